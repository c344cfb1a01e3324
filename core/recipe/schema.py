"""A checked recipe as frozen values. Each key is declared here and nowhere else: its type, default and meaning."""

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import AfterValidator, Field, InstanceOf, PrivateAttr

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Aggregate, Granularity, TokenChoice
from ecoflap.core.recipe.keys import Key, Keys, is_mapping, key_of, type_of
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.recipe.where_written import WhereWritten
from ecoflap.core.text.strict_yaml import write_yaml

Spec: TypeAlias = InstanceOf[PartSpec]


def _known_device(device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ValueError("should be auto, cpu, cuda or cuda:N")
    return device


class Model(Keys):
    """``model:``; a bare text is its source."""

    bare = "source"
    source: str = Field(
        description="hub id, folder, `file.gguf`, `package:NAME`, or `timm:`, `open_clip:` or `lavis:` and a name",
        min_length=1,
    )
    revision: str | None = Field(None, description="a hub id's branch, tag or commit; `org/name@v1.0` says the same")
    config: Annotated[Path | None, Key(may_change=True)] = Field(
        None, description="a hub id's `config.json`, or its folder, for `ecoflap plan` without a network"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="`auto` is the checkpoint's own"
    )
    compute: Literal["auto", "model", "float32"] = Field(
        "auto",
        description="what products are computed in: `model`, its own type; `float32`, which its weights are widened to "
        "while they are used; `auto` is `float32` on a CPU that has no products in the model's type, which torch does "
        "several times as slowly there",
    )
    adapter: Annotated[Spec | None, Key("adapter")] = Field(
        None, description="adapter; by default the one that matches the model"
    )
    device: Annotated[str, AfterValidator(_known_device)] = Field(
        "auto", description="`auto`, `cpu`, `cuda` or `cuda:N`: where blocks run"
    )
    offload: Annotated[Literal["cpu", "disk"] | None, Key(may_change=True)] = Field(
        None,
        description="`cpu`: the model stays there, and its blocks go to `device` one at a time; `disk`: it stays in "
        "its files, for one that is larger than memory",
    )

    @property
    def adapter_name(self) -> str | None:
        """Give the name or import path of the adapter that the recipe names."""
        return self.adapter.use if self.adapter else None

    @property
    def revised_source(self) -> str:
        """Give the source with its revision, as :func:`~ecoflap.core.model.source.open_source` takes it."""
        return f"{self.source}@{self.revision}" if self.revision else self.source

    def named_adapter(self) -> Adapter | None:
        """Make the adapter that the recipe names; None where it leaves that to the registry."""
        adapter: Adapter | None = self.adapter.build() if self.adapter else None
        return adapter


class CalibrationKeys(Keys):
    """``calibration:``; a dataset with a key of the engine beside its parameters."""

    inline = "data"
    fills = ("seed",)  # what calibrates is drawn by the recipe's seed; what evaluates is not
    data: Annotated[Spec, Key("dataset")] = Field(description="dataset")
    batch_size: int = Field(1, description="samples in one forward", ge=1)
    keep: Annotated[Literal["memory", "disk"], Key(may_change=True, method=False)] = Field(
        "memory", description="where what each finished block gave is kept: `disk` for more samples than memory holds"
    )


class Score(Keys):
    """``score:``; a scorer with keys of the engine beside its parameters."""

    inline = "scorer"
    scorer: Annotated[Spec, Key("scorer")] = Field(description="scorer")
    granularity: Granularity = Field(
        "block", description="what shares one sparsity; by default `layer` with a scorer of numbers a weight"
    )
    aggregate: Aggregate = Field(description="how layers' scores make a group's; by default the scorer's way")
    calibration: CalibrationKeys | None = Field(
        None, description="dataset to score on; by default the recipe's `calibration`"
    )


class TowerChoice(Keys):
    """What one tower does otherwise than the recipe."""

    sparsity: float | None = Field(None, description="share of its weights to prune, or a pattern")
    pattern: InstanceOf[Pattern] | None = Field(None, description="`n:m`: n weights stay of every m")
    prune: Annotated[Spec | None, Key("pruner")] = Field(None, description="pruner")
    tokens: TokenChoice | None = Field(None, description="which tokens count in statistics of its layers' inputs")
    refine: Annotated[tuple[Spec, ...] | None, Key("refiner")] = Field(
        None, description="refiner of blocks, or a list of them; `[]` for none"
    )

    @property
    def sparsity_fraction(self) -> Fraction | None:
        """Its sparsity without rounding; None where it is not its own."""
        return None if self.sparsity is None and self.pattern is None else _fraction(self.sparsity, self.pattern)

    @property
    def is_pruned(self) -> bool:
        """Say whether it has the tower pruned, by how much or by what; its other keys say how, where it is pruned."""
        return self.sparsity_fraction is not None or self.prune is not None

    def plain(self) -> dict[str, Any]:
        """Write its keys as a recipe does, a pattern under ``sparsity``."""
        return _pattern_as_sparsity(super().plain())


class CalibrationUse(NamedTuple):
    """One use of calibration data.

    :param where: The place in the recipe that has the data.
    :param samples: How many samples are looked at; None where that shows only when they are read.
    """

    where: str
    batch_size: int
    samples: int | None


class Recipe(Keys):
    """A checked recipe."""

    _written: WhereWritten = PrivateAttr(default_factory=WhereWritten)
    version: Annotated[Literal[1], Key(method=False)] = Field(description="of this schema")
    seed: Annotated[int, Key(scores=True, method=False)] = Field(
        0,
        # What draws samples, random.Random, takes a number and its negative for one.
        ge=0,
        description="all that is random follows from it: noises, and what calibration draws",
    )
    model: Annotated[Model, Key(scores=True)] = Field(description="the model to prune")
    calibration: Annotated[CalibrationKeys | None, Key(scores=True)] = Field(
        None, description="dataset that scorer and pruner look at"
    )
    sparsity: Annotated[float | None, Key(method=False)] = Field(
        None,
        description="share of the weights to prune, from 0 to below 1, or a pattern such as `2:4`; masks and plans of "
        "elsewhere (`from_masks`, `from_file`) say it themselves",
    )
    pattern: InstanceOf[Pattern] | None = Field(
        None, description="`n:m`, another way to write a pattern: n weights stay of every m"
    )
    towers: Annotated[Mapping[str, Literal["keep"] | TowerChoice], Key(scores=True)] = Field(
        default_factory=dict,
        description="by tower: `keep`, or what is its own; `sparsity` and `prune` have one pruned "
        "that is kept by default",
    )
    include: Annotated[tuple[str, ...], Key(scores=True, each="a tower or a matrix, by its name")] = Field(
        (), description="what is kept by default and pruned here: a tower such as `qformer`, a matrix such as `lm_head`"
    )
    score: Annotated[Score | None, Key(scores=True)] = Field(
        None, description="scorer; needed where the allocator looks at scores"
    )
    allocate: Annotated[Spec, Key("allocator")] = Field(
        description="allocator; by default `uniform` where a pattern fixes every budget, what the pruner brings along "
        "as `from_masks` does, `ecoflap` with a score, `marginal` with one of curves, `threshold` with one of numbers "
        "a weight, and else `uniform`"
    )
    prune: Annotated[Spec, Key("pruner")] = Field(description="pruner")
    rounds: Annotated[int | tuple[float, ...] | None, Key(scores=True)] = Field(
        None,
        description="how often the model is scored, allocated and pruned: of n rounds the i-th leaves "
        "(1 - sparsity)^(i/n) of the weights; or the sparsity after each round, up to the recipe's",
    )
    tokens: TokenChoice = Field(
        "real",
        description="which tokens count in statistics of layers' inputs: those that are no padding, some of them in "
        "towers with text and images, or all with padding",
    )
    sequential: bool = Field(
        False, description="whether a block's layers see what those before them in it give after they were pruned"
    )
    refine: Annotated[tuple[Spec, ...], Key("refiner")] = Field(
        (), description="refiner of the kept weights, or a list of them, in their order"
    )
    evaluate: Annotated[tuple[Spec, ...], Key("evaluator", may_change=True)] = Field(
        (), description="evaluator, or a list of them"
    )
    export: Annotated[tuple[Spec, ...], Key("exporter", may_change=True, method=False)] = Field(
        (), description="exporter, or a list of them"
    )
    reuse: Annotated[tuple[Path, ...], Key(may_change=True, method=False, each="a run folder")] = Field(
        (), description="run folders whose scores and dense evaluation are taken over where equal"
    )

    @property
    def sparsity_fraction(self) -> Fraction | None:
        """Give the share of pruned weights without rounding; None where the allocator says how many are kept."""
        return None if self.sparsity is None and self.pattern is None else _fraction(self.sparsity, self.pattern)

    @property
    def round_count(self) -> int:
        """Say how often the model is scored, allocated and pruned."""
        return rounds_in(self.rounds)

    @property
    def included(self) -> frozenset[str]:
        """Towers, and matrices outside the blocks, that are pruned because the recipe names them."""
        named = [name for name, own in self.towers.items() if own != "keep" and own.is_pruned]
        return frozenset([*(name.removesuffix(".weight") for name in self.include), *named])

    @property
    def score_calibration(self) -> CalibrationKeys | None:
        """Give the data that the scorer is given, its own or the recipe's; None without a scorer."""
        return self.score.calibration or self.calibration if self.score else None

    def calibration_uses(self) -> Iterator[CalibrationUse]:
        """Yield each use of calibration data: by pruners and scorer together, or by the scorer alone."""
        if self.calibration is not None:
            yield CalibrationUse("calibration", self.calibration.batch_size, self.calibration.data.options.samples)
        if self.score is not None and (keys := self.score_calibration) is not None:
            where = "calibration" if self.score.calibration is None else "score.calibration"
            counts = (keys.data.options.samples, self.score.scorer.options.samples)
            samples = min((count for count in counts if count is not None), default=None)
            yield CalibrationUse(where, keys.batch_size, samples)

    @property
    def allocated_at(self) -> str:
        """Name the key that has the allocator: ``allocate``, or that of a pruner which brings its own."""
        asked = self.allocate.plain()
        pruners = [(where, spec) for where, spec in self.prune.with_inner("prune") if spec.kind == "pruner"]
        brought = [where for where, spec in pruners if _is_part_of(spec.options.allocate, asked)]
        return next(iter(brought), "allocate")

    def block_refiners_of(self, tower: str) -> tuple[PartSpec, ...]:
        """Give the refiners of a tower's blocks: its own, or those that all towers share which name none."""
        own = self.towers.get(tower)
        if isinstance(own, TowerChoice) and own.refine is not None:
            return own.refine
        return tuple(one for one in self.refine if one.options.scope == "block")

    @property
    def takes_scores(self) -> bool:
        """Say whether the allocator looks at scores."""
        return self.allocate.options.takes is not None

    def plain(self) -> dict[str, Any]:
        """Write every key as a recipe does, defaults too."""
        plain = _pattern_as_sparsity(super().plain())
        # What stands for nothing is left out of keys that are newer than folders of runs that are to go on.
        newer = {"include": [], "refine": [], "sequential": False, "tokens": "real"}
        return {key: value for key, value in plain.items() if key not in newer or value != newer[key]}

    def model_post_init(self, context: Any) -> None:
        """Take over where its keys were written, which is the context that it is validated in."""
        if isinstance(context, WhereWritten):
            self._written = context

    def placed(self, problem: str) -> str:
        """Put before a problem, which begins with its key, where that is written."""
        return self._written.put_before(problem)

    def dump(self) -> str:
        """Write the recipe as YAML, every default written out and every path absolute; it loads as an equal recipe.

        Where it takes leave to run code, a comment says so.
        """
        code = ", ".join(self.code())
        needs = f"# It runs only with --allow-code, or allow_code=True from Python, for it names code: {code}\n"
        return (needs if code else "") + write_yaml(self.plain())

    def code(self) -> list[str]:
        """Name what its parts run that no plugin brings, each with its place: import paths, and files with code."""
        found = [
            (where, [spec.use] if ":" in spec.use else spec.options.runs_code_of()) for where, spec in self.specs()
        ]
        return [f"{where}: {one}" for where, named in found for one in named]


def may_change() -> tuple[str, ...]:
    """Name the keys, dotted, in which two runs in one folder may differ."""
    return tuple(name for name, key in _declared(Recipe) if key.may_change)


def scores_depend_on() -> tuple[str, ...]:
    """Name the keys that scores depend on."""
    return tuple(name for name, key in _declared(Recipe) if key.scores)


def rounds_in(rounds: int | tuple[float, ...] | None) -> int:
    """Count the rounds that a recipe's ``rounds`` stands for; 1 where it says none."""
    return len(rounds) if isinstance(rounds, tuple) else rounds or 1


def not_the_method() -> tuple[str, ...]:
    """Name the keys in which runs of one method may differ."""
    return tuple(name for name, key in _declared(Recipe) if not key.method)


def seed_keys() -> tuple[str, ...]:
    """Name the keys, dotted, that hold a run's seed: its own, and those that its calibration data have from it."""
    return ("seed", *(f"{name}.seed" for name in calibration_keys()))


def calibration_keys() -> tuple[str, ...]:
    """Name the keys, dotted, that hold calibration data."""
    return tuple(_calibrations(Recipe))


def _calibrations(keys: type[Keys], inside: str = "") -> Iterator[str]:
    """Yield each key, dotted, that holds calibration data."""
    for name, field in keys.model_fields.items():
        wanted = type_of(field)
        if wanted is CalibrationKeys:
            yield inside + name
        elif is_mapping(wanted):
            yield from _calibrations(wanted, f"{inside}{name}.")


def _declared(keys: type[Keys], inside: str = "") -> Iterator[tuple[str, Key]]:
    """Yield each key by its dotted name, with those of mappings, such as ``model.config``."""
    for name, field in keys.model_fields.items():
        yield inside + name, key_of(field)
        wanted = type_of(field)
        if is_mapping(wanted):
            yield from _declared(wanted, f"{inside}{name}.")


def _is_part_of(own: Mapping[str, Any] | str | None, asked: Mapping[str, Any]) -> bool:
    """Say whether a part has what a recipe's entry for one says: its name alone, or parameters too."""
    written = {"use": own} if isinstance(own, str) else own
    return written is not None and asked == {**asked, **written}


def _fraction(sparsity: float | None, pattern: Pattern | None) -> Fraction:
    # The shortest decimal of a float is what was written: 0.7 is 7/10 and not the float's binary expansion.
    return pattern.sparsity if pattern else Fraction(str(sparsity))


def _pattern_as_sparsity(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Write a pattern under ``sparsity``, which it stands for."""
    return {"sparsity" if key == "pattern" else key: str(v) if key == "pattern" else v for key, v in plain.items()}
