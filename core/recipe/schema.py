"""A checked recipe as frozen values: its keys, their types and their defaults."""

import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, InstanceOf

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Aggregate
from ecoflap.core.errors import ModelError
from ecoflap.core.recipe.part_spec import Part
from ecoflap.core.text.strict_yaml import write_yaml

Granularity = Literal["layer", "block", "tower", "model"]


def _known_device(device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ValueError("should be auto, cpu, cuda or cuda:N")
    return device


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Model(_Keys):
    """``model:``; a bare text is its source."""

    source: str = Field(description="hub id, folder, `file.gguf`, or `package:NAME`", min_length=1)
    config: Path | None = Field(
        None, description="a hub id's `config.json`, or its folder, for `ecoflap plan` without a network"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="`auto` is the checkpoint's own"
    )
    adapter: InstanceOf[Part] | None = Field(None, description="adapter; by default the one that matches the model")
    device: Annotated[str, AfterValidator(_known_device)] = Field(
        "auto", description="`auto`, `cpu`, `cuda` or `cuda:N`: where blocks run"
    )
    offload: Literal["cpu"] | None = Field(
        None, description="`cpu`: the model stays there, and its blocks go to `device` one at a time"
    )

    def named_adapter(self) -> Adapter | None:
        """A new adapter of the kind that the recipe names; None where it leaves that to the registry.

        :raises ModelError: Where what it names is no adapter.
        """
        if self.adapter is None:
            return None
        built = self.adapter.build()
        if not isinstance(built, Adapter):
            raise ModelError(f"model.adapter: {self.adapter.use} is no adapter: it lacks some of an adapter's methods")
        return built

    def plain(self) -> dict[str, Any]:
        keys = self.model_dump(exclude={"adapter", "config"})
        config, adapter = self.config and str(self.config), self.adapter and self.adapter.plain()
        return _set({**keys, "config": config, "adapter": adapter})


class Calibration(_Keys):
    """``calibration:``; a dataset with a key of the engine beside its parameters."""

    data: InstanceOf[Part] = Field(description="dataset")
    batch_size: int = Field(1, description="samples in one forward", ge=1)

    def plain(self) -> dict[str, Any]:
        return {**self.data.plain(), "batch_size": self.batch_size}


class Score(_Keys):
    """``score:``; a scorer with keys of the engine beside its parameters."""

    part: InstanceOf[Part] = Field(description="scorer")
    granularity: Granularity = Field("block", description="what shares one sparsity")
    aggregate: Aggregate = Field(description="how layers' scores make a group's; by default the scorer's way")
    calibration: Calibration | None = Field(
        None, description="dataset to score on; by default the recipe's `calibration`"
    )

    def plain(self) -> dict[str, Any]:
        calibration = self.calibration and self.calibration.plain()
        engine = self.model_dump(exclude={"part", "calibration"})
        return {**self.part.plain(), **engine, **_set({"calibration": calibration})}


class TowerChoice(_Keys):
    """What one tower does otherwise than the recipe."""

    sparsity: float | None = Field(None, description="share of its weights to prune, or a pattern")
    pattern: InstanceOf[Pattern] | None = Field(None, description="`n:m`: n weights stay of every m")
    prune: InstanceOf[Part] | None = Field(None, description="pruner")

    @property
    def sparsity_fraction(self) -> Fraction | None:
        """Its sparsity without rounding; None where it is not its own."""
        return None if self.sparsity is None and self.pattern is None else _fraction(self.sparsity, self.pattern)

    def plain(self) -> dict[str, Any]:
        sparsity = _plain_sparsity(self.sparsity, self.pattern)
        return _set({"sparsity": sparsity, "prune": self.prune and self.prune.plain()})


class Recipe(_Keys):
    """A checked recipe."""

    version: Literal[1] = Field(description="of this schema")
    seed: int = Field(0, description="all that is random follows from it: noises, and what calibration draws")
    model: Model = Field(description="the model to prune")
    calibration: Calibration | None = Field(None, description="dataset that scorer and pruner look at")
    sparsity: float | None = Field(
        None, description="share of the weights to prune, from 0 to below 1, or a pattern such as `2:4`"
    )
    pattern: InstanceOf[Pattern] | None = Field(
        None, description="`n:m`, another way to write a pattern: n weights stay of every m"
    )
    towers: Mapping[str, Literal["keep"] | TowerChoice] = Field(
        default_factory=dict, description="by tower: `keep`, or what is its own"
    )
    include: tuple[str, ...] = Field(
        (), description="what is kept by default and pruned here: a tower such as `qformer`, a matrix such as `lm_head`"
    )
    score: Score | None = Field(None, description="scorer; needed where the allocator looks at scores")
    allocate: InstanceOf[Part] = Field(description="allocator; by default `ecoflap` with a score and `uniform` without")
    prune: InstanceOf[Part] = Field(description="pruner")
    evaluate: tuple[InstanceOf[Part], ...] = Field((), description="evaluator, or a list of them")
    export: tuple[InstanceOf[Part], ...] = Field((), description="exporter, or a list of them")
    reuse: tuple[Path, ...] = Field(
        (), description="run folders whose scores and dense evaluation are taken over where equal"
    )

    @property
    def sparsity_fraction(self) -> Fraction:
        """The share of pruned weights without rounding, as it was written; a pattern's is 1 - n/m."""
        return _fraction(self.sparsity, self.pattern)

    @property
    def included(self) -> frozenset[str]:
        """Towers, and matrices outside the blocks, that are pruned because the recipe names them."""
        named = [name for name, own in self.towers.items() if own != "keep"]
        return frozenset([*(name.removesuffix(".weight") for name in self.include), *named])

    @property
    def score_calibration(self) -> Calibration | None:
        """What the scorer looks at."""
        return self.score.calibration or self.calibration if self.score else None

    def plain(self) -> dict[str, Any]:
        """As a recipe writes it, with everything written out."""
        plain = {
            "version": self.version,
            "seed": self.seed,
            "model": self.model.plain(),
            "calibration": self.calibration and self.calibration.plain(),
            "sparsity": _plain_sparsity(self.sparsity, self.pattern),
            "towers": {name: "keep" if own == "keep" else own.plain() for name, own in self.towers.items()},
            "include": list(self.include) or None,
            "score": self.score and self.score.plain(),
            "allocate": self.allocate.plain(),
            "prune": self.prune.plain(),
            "evaluate": [part.plain() for part in self.evaluate],
            "export": [part.plain() for part in self.export],
            "reuse": list(map(str, self.reuse)),
        }
        return _set(plain)

    def dump(self) -> str:
        """As YAML with every default written out and every path absolute; it loads as an equal recipe."""
        return write_yaml(self.plain())


MAY_CHANGE = ("evaluate", "export", "reuse", "model.config")
"""Keys that may differ between two runs in one folder: what precedes them is taken over."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any], ignore: Sequence[str] = MAY_CHANGE) -> list[str]:
    """Each key in which two recipes, as :meth:`Recipe.plain` writes them, differ: ``prune.compare: row vs layer``.

    :param ignore: Keys, dotted or not, that do not count.
    """
    return [
        f"{path}: {before} vs {after}"
        for path, before, after in _differing(_set(old), _set(new), "")
        if not any(path == key or path.startswith(f"{key}.") for key in ignore)
    ]


_NOT_SET = object()


def _differing(old: Any, new: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Where two plain values differ. Of a part that was exchanged only the names are told, not its parameters."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        if old != new:
            yield path, _told(old), _told(new)
    elif old.get("use") != new.get("use"):
        yield f"{path}.use", _told(old.get("use")), _told(new.get("use"))
    else:
        for key in dict.fromkeys([*old, *new]):
            inside = f"{path}.{key}" if path else str(key)
            yield from _differing(old.get(key, _NOT_SET), new.get(key, _NOT_SET), inside)


def _told(value: Any) -> str:
    if value is _NOT_SET or value is None or value == []:
        return "not set"
    if isinstance(value, dict) and "use" in value:
        return str(value["use"])
    return str(value)


def _fraction(sparsity: float | None, pattern: Pattern | None) -> Fraction:
    # The shortest decimal of a float is what was written: 0.7 is 7/10 and not the float's binary expansion.
    return pattern.sparsity if pattern else Fraction(str(sparsity))


def _plain_sparsity(sparsity: float | None, pattern: Pattern | None) -> float | str | None:
    return str(pattern) if pattern else sparsity


def _set(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if value is not None}
