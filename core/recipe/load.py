"""Loads recipes: reads the YAML, applies ``--set``, and checks the whole of it before anything else is loaded."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.errors import EcoflapError, RecipeError, unknown
from ecoflap.core.recipe.overrides import Assignment, override
from ecoflap.core.recipe.part_spec import Part, PartChecker, absolute
from ecoflap.core.recipe.schema import Calibration, Model, Recipe, Score, TowerChoice
from ecoflap.core.registry.registry import Registry
from ecoflap.core.text.problems import Problems, SeveralProblems
from ecoflap.core.text.strict_yaml import Document, KeyPath, Place, named, parse_yaml

__all__ = ["Part", "Recipe", "find_recipe", "load_recipe", "parse_recipe"]

# Stands in for a part with problems, so that the rest can be checked in the same go.
_FAILED = Part("", "", {}, dict)


def load_recipe(
    path: Path | str, *, set_: Sequence[str | Assignment] = (), registry: Registry, in_memory: bool = False
) -> Recipe:
    """The checked recipe of a file.

    :param set_: Assignments such as ``prune.use=sparsegpt``, applied in order before checking.
    :param in_memory: The model is given in memory, so ``model:`` may be missing.
    :raise RecipeError: With every problem, each with its place.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}") from error
    return parse_recipe(text, set_=set_, registry=registry, file=path, in_memory=in_memory)


def parse_recipe(
    source: Mapping[str, Any] | str,
    *,
    set_: Sequence[str | Assignment] = (),
    registry: Registry,
    file: Path | str = "recipe",
    in_memory: bool = False,
) -> Recipe:
    """The checked recipe of a YAML text, or of a mapping, whose parts may then be part objects.

    :param file: Named in messages; paths in the recipe are relative to its folder.
    """
    folder = Path(file).parent.absolute()
    if isinstance(source, str):
        document, problems = parse_yaml(source, Place(str(file), 1, 1, folder))
    else:
        document, problems = Document(dict(source), Place(str(file), folder=folder)), []
    if not isinstance(document.value, dict):
        what = "is empty" if document.value is None else f"is {named(document.value)}"
        whole = f"{document.start}: the recipe {what}; a mapping is wanted, beginning with 'version: 1'."
        raise SeveralProblems(str(file), *(problems or [whole]))
    document, in_sets = override(document, set_)
    return _Check(document, Problems(document, [*problems, *in_sets]), registry, in_memory).recipe()


def find_recipe(name: str) -> Path:
    """A recipe file that exists, or one that ships, by its name: ``quickstart`` or ``quickstart.yaml``."""
    if Path(name).is_file():
        return Path(name)
    folder = Path(str(files("ecoflap").joinpath("recipes")))
    shipped = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}
    found = shipped.get(name.removesuffix(".yaml"))
    if found is None:
        raise RecipeError(f"{name} is no file, and there is {unknown('shipped recipe', name, tuple(shipped))}")
    return found


class _Check:
    """One pass over a recipe. Every method notes problems and goes on."""

    def __init__(self, document: Document, problems: Problems, registry: Registry, in_memory: bool) -> None:
        # A key with nothing after it is as good as absent.
        self.top = {key: value for key, value in document.value.items() if value is not None}
        self.document = document
        self.problems = problems
        self.parts = PartChecker(registry, problems)
        self.in_memory = in_memory

    def recipe(self) -> Recipe:
        self.problems.add_unknown_keys((), self.document.value, Recipe.model_fields)
        fields = {key: self.top[key] for key in ("version", "seed") if key in self.top}
        fields |= {
            "model": self._model(),
            "calibration": self._calibration(("calibration",), self.top.get("calibration")),
            **self._target((), self.top),
            "towers": self._towers(),
            "include": self._include(),
            "score": self._score(),
            "allocate": self._allocate(),
            "prune": self._required_part("pruner", "prune"),
            "evaluate": self._list("evaluator", "evaluate"),
            "export": self._list("exporter", "export"),
            "reuse": self._reuse(),
        }
        self._agreement(fields)
        recipe = None
        try:
            recipe = Recipe.model_validate(fields)
        except ValidationError as error:
            self.problems.add_invalid((), error)
        self.problems.raise_if_any()
        assert recipe is not None
        return recipe

    def _part(self, kind: str, path: KeyPath, written: Any) -> Part:
        return self.parts.check(kind, written, path) or _FAILED

    def _required_part(self, kind: str, key: str) -> Part:
        if key in self.top:
            return self._part(kind, (key,), self.top[key])
        known = ", ".join(self.parts.registry.choices(kind)) or "none"
        self.problems.add((key,), f"required, and missing. Known: {known}.")
        return _FAILED

    def _model(self) -> Any:
        written = self.top.get("model")
        if written is None and not self.in_memory:
            self.problems.add(
                ("model",), "required, and missing: a hub id, a folder or a file, such as model: ./folder."
            )
        if written is None:
            return {"source": "memory"}
        if isinstance(written, str):
            written = {"source": written}
        if not isinstance(written, dict):
            self.problems.add(("model",), f"should be a source, or {{source: …, dtype: …}}, not {named(written)}.")
            return {"source": "memory"}
        self.problems.add_unknown_keys(("model",), written, Model.model_fields)
        fields = _given(written, Model.model_fields)
        if self.in_memory:
            fields.setdefault("source", "memory")
        if isinstance(fields.get("source"), str):
            fields["source"] = self._source(fields["source"])
        if isinstance(fields.get("config"), str):
            fields["config"] = absolute(fields["config"], self.document.where(("model", "config")).folder)
        if "adapter" in fields:
            fields["adapter"] = self._part("adapter", ("model", "adapter"), fields["adapter"])
        return fields

    def _source(self, text: str) -> str:
        """A path made absolute; a hub id or ``package:NAME`` as it is."""
        folder = self.document.where(("model", "source")).folder
        is_path = text.startswith(("./", "../", "/", "~")) or text in (".", "..") or text.endswith(".gguf")
        return str(absolute(text, folder)) if text and (is_path or (folder / text).exists()) else text

    def _calibration(self, path: KeyPath, written: Any) -> Any:
        if written is None:
            return None
        part, engine = _split(written, Calibration, "data")
        return {"data": self._seeded(self._part("dataset", path, part), part), **engine}

    def _seeded(self, dataset: Part, written: Any) -> Part:
        """What calibrates is drawn by the recipe's seed, unless it names its own; what evaluates is not."""
        seed = self.top.get("seed", 0)
        draws = type(dataset.parameters.get("seed")) is int and type(seed) is int
        if not draws or self._names_seed(dataset, written):
            return dataset
        return replace(dataset, parameters={**dataset.parameters, "seed": seed})

    def _names_seed(self, dataset: Part, written: Any) -> bool:
        """In the recipe, as a site's default, or as a part object from Python, which has every parameter."""
        in_recipe = "seed" in written if isinstance(written, Mapping) else not isinstance(written, str)
        return in_recipe or "seed" in self.parts.registry.defaults_for("dataset", dataset.use)

    def _score(self) -> Any:
        written = self.top.get("score")
        if written is None:
            return None
        part, engine = _split(written, Score, "part")
        scorer = self._part("scorer", ("score",), part)
        if "calibration" in engine:
            engine["calibration"] = self._calibration(("score", "calibration"), engine["calibration"])
        own = "sum" if scorer is _FAILED else scorer.trait("aggregate", "sum")
        return {"part": scorer, "aggregate": own, **engine}

    def _allocate(self) -> Part:
        by_default = "ecoflap" if "score" in self.top and self._pattern_text() is None else "uniform"
        return self._part("allocator", ("allocate",), self.top.get("allocate", by_default))

    def _list(self, kind: str, key: str) -> tuple[Part, ...]:
        written = self.top.get(key, [])
        if not isinstance(written, (list, tuple)):
            return (self._part(kind, (key,), written),)
        return tuple(self._part(kind, (key, index), item) for index, item in enumerate(written))

    def _reuse(self) -> tuple[Path, ...]:
        written = self.top.get("reuse", [])
        folders = list(written) if isinstance(written, (list, tuple)) else [written]
        found = []
        for index, folder in enumerate(folders):
            path = ("reuse", index) if isinstance(written, (list, tuple)) else ("reuse",)
            if isinstance(folder, (str, Path)):
                found.append(absolute(folder, self.document.where(path).folder))
            else:
                self.problems.add(path, f"should be a run folder, not {named(folder)}.")
        return tuple(found)

    def _towers(self) -> Any:
        written = self.top.get("towers", {})
        if not isinstance(written, dict):
            self.problems.add(("towers",), f"should map towers to keep or to what is their own, not {named(written)}.")
            return {}
        return {str(name): self._tower(("towers", name), own) for name, own in written.items()}

    def _include(self) -> tuple[str, ...]:
        written = self.top.get("include", [])
        names = written if isinstance(written, (list, tuple)) else [written]
        for name in names:
            if not isinstance(name, str):
                self.problems.add(("include",), f"should name towers or matrices, not {named(name)}.")
        return tuple(dict.fromkeys(map(str, names)))

    def _tower(self, path: KeyPath, own: Any) -> Any:
        if own == "keep":
            return own
        if not isinstance(own, dict) or not _given(own, own):
            self.problems.add(path, f"should be keep, or {{sparsity: …, prune: …}}, not {named(own or None)}.")
            return "keep"
        self.problems.add_unknown_keys(path, own, TowerChoice.model_fields)
        prune = self._part("pruner", (*path, "prune"), own["prune"]) if own.get("prune") is not None else None
        return TowerChoice(prune=prune, **self._target(path, own, required=False))

    def _target(self, path: KeyPath, written: Mapping[str, Any], *, required: bool = True) -> dict[str, Any]:
        """Sparsity and pattern of the recipe or of a tower, at most one of which is set."""
        sparsity, pattern = written.get("sparsity"), written.get("pattern")
        if sparsity is None and pattern is None:
            if required:
                self.problems.add(
                    (*path, "sparsity"), "required, and missing: a share such as 0.5, or a pattern such as 2:4."
                )
            return {"sparsity": None, "pattern": None}
        of_pattern = self._pattern((*path, "pattern"), pattern)
        if isinstance(sparsity, str) and ":" in sparsity:
            of_sparsity = self._pattern((*path, "sparsity"), sparsity)
            if of_pattern and of_sparsity and of_pattern != of_sparsity:
                self.problems.add(
                    (*path, "pattern"), f"sparsity is {of_sparsity} and this is {of_pattern}. Remove one."
                )
            return {"sparsity": None, "pattern": of_sparsity}
        number = self._number((*path, "sparsity"), sparsity)
        if of_pattern and number is not None and not math.isclose(number, of_pattern.sparsity, abs_tol=1e-9):
            amounts = f"{of_pattern} prunes {float(of_pattern.sparsity):g}, and sparsity is {number:g}"
            self.problems.add((*path, "pattern"), f"{amounts}. Remove one.")
        return {"sparsity": None if of_pattern else number, "pattern": of_pattern}

    def _number(self, path: KeyPath, written: Any) -> float | None:
        """A share of weights to prune."""
        if written is None:
            return None
        if isinstance(written, (int, float)) and not isinstance(written, bool) and 0 <= written < 1:
            return float(written)
        wanted = "should be a number from 0 to below 1, the share of weights to prune, or a pattern such as 2:4"
        self.problems.add(path, f"{wanted}, not {named(written)}.{_meant_share(written)}")
        return None

    def _pattern(self, path: KeyPath, written: Any) -> Pattern | None:
        """``n:m``, where n weights of every m stay."""
        if written is None:
            return None
        try:
            return Pattern.parse(str(written))
        except EcoflapError as error:
            self.problems.add(path, f"{error}.")
            return None

    def _pattern_text(self) -> str | None:
        """The pattern the recipe as a whole asks for, if any."""
        sparsity, pattern = self.top.get("sparsity"), self.top.get("pattern")
        return (
            str(pattern) if pattern is not None else sparsity if isinstance(sparsity, str) and ":" in sparsity else None
        )

    def _agreement(self, fields: Mapping[str, Any]) -> None:
        """What the keys say to each other."""
        pattern, allocate, score = self._pattern_text(), fields["allocate"], fields["score"]
        if pattern is not None:
            fixed = f"the pattern {pattern} fixes each layer's budget"
            if score is not None:
                self.problems.add(("score",), f"{fixed}, so no score is looked at. Remove score:.")
            if allocate is not _FAILED and allocate.use != "uniform":
                self.problems.add(("allocate",), f"{fixed}, so nothing can be allocated. Remove allocate:.")
        elif score is None and allocate is not _FAILED and allocate.trait("takes", "score") is not None:
            known = ", ".join(self.parts.registry.choices("scorer"))
            self.problems.add(("allocate",), f"{allocate.use} looks at scores; add score:. Known scorers: {known}.")
        if fields["calibration"] is None:
            self._missing_calibration(fields)

    def _missing_calibration(self, fields: Mapping[str, Any]) -> None:
        towers = [own.prune for own in fields["towers"].values() if isinstance(own, TowerChoice) and own.prune]
        pruners = [pruner for pruner in [fields["prune"], *towers] if pruner is not _FAILED]
        want = [f"the pruner {pruner.use}" for pruner in pruners if pruner.trait("needs", ())]
        score = fields["score"]
        if (
            score
            and score["part"] is not _FAILED
            and score.get("calibration") is None
            and score["part"].trait("data", True)
        ):
            want.append(f"the scorer {score['part'].use}")
        if want:
            known = ", ".join(self.parts.registry.choices("dataset")) or "none"
            looks = f"{' and '.join(dict.fromkeys(want))} look{'s' if len(set(want)) == 1 else ''} at data"
            self.problems.add(("calibration",), f"missing, and {looks}. Known datasets: {known}.")


def _given(written: Mapping[Any, Any], names: Any) -> dict[str, Any]:
    return {key: value for key, value in written.items() if key in names and value is not None}


def _split(written: Any, model: type[Calibration] | type[Score], part: str) -> tuple[Any, dict[str, Any]]:
    """A part as written, apart from the engine's keys beside its parameters."""
    if not isinstance(written, dict):
        return written, {}
    engine = set(model.model_fields) - {part}
    return {key: value for key, value in written.items() if key not in engine}, _given(written, engine)


def _meant_share(written: Any) -> str:
    """What a percentage was meant to be."""
    percent = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", str(written))
    if not percent:
        return ""
    value = float(percent[1])
    share = value / 100 if percent[2] or value >= 2 else value
    return f" Did you mean {share:g}?" if share < 1 else ""
