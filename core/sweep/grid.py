"""The runs of a sweep, all checked before the first begins, in an order in which each can use what others found."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

from ecoflap.core.errors import EcoflapError, RecipeError
from ecoflap.core.recipe.load import load_recipe
from ecoflap.core.recipe.overrides import Assignment
from ecoflap.core.recipe.schema import Recipe, differences
from ecoflap.core.record.folder import RunFolder, read_json
from ecoflap.core.record.reuse import what_scores_depend_on
from ecoflap.core.registry.registry import Registry
from ecoflap.core.run.prepare import prepare
from ecoflap.core.sweep.file import Sweep
from ecoflap.core.text.strict_yaml import Document, Place, read_yaml

State = Literal["done", "begun", "to do"]
LONGEST_NAME = 120


@dataclass(frozen=True)
class Choice:
    """What one run of a sweep is made of.

    :param method: As the sweep names it; empty where it names none.
    :param own: What the method sets.
    :param grid: A value for each key of the grid.
    :param seed: None for the recipe's own.
    """

    method: str
    own: tuple[Assignment, ...]
    grid: tuple[Assignment, ...]
    seed: int | None

    @property
    def words(self) -> list[str]:
        """``wanda``, ``sparsity=0.5``, ``seed=0``: the method's name stands for what it sets."""
        values = [f"{item.key}={value_text(item.value.value)}" for item in self.grid]
        seed = [] if self.seed is None else [f"seed={self.seed}"]
        return [*([self.method] if self.method else []), *values, *seed]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, checked.

    :param scored: Whether it looks at scores.
    """

    choice: Choice
    recipe: Recipe
    folder: RunFolder
    scored: bool = False

    @property
    def state(self) -> State:
        """A finished run whose model is gone is done all the same; with another ``evaluate:`` it is not."""
        if self.folder.report.is_file():
            before = read_json(self.folder.report)["recipe"]
            if not differences(before, self.recipe.plain(), ignore=("reuse",)):
                return "done"
        return "begun" if self.folder.is_ours else "to do"

    @property
    def model(self) -> str:
        """Equal where the dense model is."""
        return json.dumps(self.recipe.model.plain())

    @property
    def scores(self) -> str:
        """Equal where scores are; empty where none are looked at."""
        return json.dumps(what_scores_depend_on(self.recipe.plain())) if self.scored else ""


def grid_of(sweep: Sweep, folder: Path, registry: Registry, *, fresh: bool = False) -> list[Cell]:
    """Every run, in the order they are best done in.

    :param folder: The sweep's own; each run has one in it.
    :param fresh: What the runs' folders hold does not count, for it will be deleted.
    :raises RecipeError: With all that is wrong with any of them, each thing once.
    """
    found = _Problems()
    choices = list(_choices(sweep))
    cells = found.in_any(choices, lambda one: Cell(one, _loaded(sweep.recipe, one, registry), RunFolder(folder)))
    cells = found.in_any([_with_seed(cell) for cell in cells], _Prepared(registry))
    cells = list(_in_folders(cells, folder.absolute()))
    if not fresh:
        cells = found.in_any(cells, _not_another)
    found.raise_if_any(len(choices))
    return _ordered(cells)


def _choices(sweep: Sweep) -> Iterator[Choice]:
    """Where a method sets a key, its value is the only one."""
    for name, own in sweep.methods.items():
        axes = [axis for key, axis in sweep.axes.items() if not _is_set(key, own)]
        for seed in sweep.seeds or (None,):
            yield from (Choice(name, own, values, seed) for values in product(*axes))


def _is_set(key: str, own: Sequence[Assignment]) -> bool:
    """Also ``score.samples``, by a method that sets ``score`` to null."""
    return any(key == mine.key or (mine.value.value is None and key.startswith(f"{mine.key}.")) for mine in own)


def _loaded(path: Path, choice: Choice, registry: Registry) -> Recipe:
    seed = [] if choice.seed is None else [Assignment("seed", Document(choice.seed, Place("seeds")))]
    return load_recipe(path, set_=[*choice.own, *choice.grid, *seed], registry=registry)


def _with_seed(cell: Cell) -> Cell:
    return replace(cell, choice=replace(cell.choice, seed=cell.recipe.seed))


class _Prepared:
    """What the weightless model says of a recipe. Those that differ in their seed alone are asked once."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: dict[str, bool | EcoflapError] = {}

    def __call__(self, cell: Cell) -> Cell:
        key = json.dumps(_without_seeds(cell.recipe.plain()))
        if key not in self._known:
            try:
                self._known[key] = prepare(cell.recipe, self._registry).looks_at_scores
            except EcoflapError as error:
                self._known[key] = error
        known = self._known[key]
        if isinstance(known, EcoflapError):
            raise known
        return replace(cell, scored=known)


def _without_seeds(plain: dict[str, Any]) -> dict[str, Any]:
    """A recipe as written, but for its own seed and those that its calibrations have from it."""
    score = plain.get("score") or {}
    for keys in (plain, plain.get("calibration"), score.get("calibration")):
        if keys:
            keys.pop("seed", None)
    return plain


def _not_another(cell: Cell) -> Cell:
    before = cell.folder.recipe
    changed = []
    if cell.folder.is_ours:
        changed = differences(read_yaml(before.read_text("utf-8"), str(before)).value, cell.recipe.plain())
    if changed:
        raise RecipeError(
            f"begun with another recipe: {'; '.join(changed)} (before vs now). Sweep into another folder with "
            f"--folder, or begin anew with --fresh"
        )
    return cell


_Item = TypeVar("_Item", Choice, Cell)


@dataclass
class _Problems:
    """Of many runs: each problem once, with the runs that have it."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def in_any(self, items: Iterable[_Item], check: Callable[[_Item], Cell]) -> list[Cell]:
        """What the check makes of each item that it finds nothing wrong with."""
        passed = []
        for item in items:
            try:
                passed.append(check(item))
            except EcoflapError as error:
                choice = item.choice if isinstance(item, Cell) else item
                for problem in error.problems:
                    self.found.setdefault(problem, []).append(", ".join(choice.words))
        return passed

    def raise_if_any(self, runs: int) -> None:
        if self.found:
            raise RecipeError(*(f"{problem}{_in(where, runs)}" for problem, where in self.found.items()))


def _in(where: Sequence[str], runs: int) -> str:
    """In which runs; nothing where it is all of them."""
    if len(where) == runs:
        return ""
    more = f"; and {len(where) - 3} more" if len(where) > 3 else ""
    return f" (in {len(where)} of {runs} runs: {'; '.join(where[:3])}{more})"


def value_text(value: Any) -> str:
    """A value as ``--set`` has it."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {value_text(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_text, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def _in_folders(cells: Sequence[Cell], folder: Path) -> Iterator[Cell]:
    """Where two names come out the same, or one is too long, a digest of the words tells them apart."""
    names = [re.sub(r"[^\w.+-]+", "-", "-".join(cell.choice.words)).strip("-.") for cell in cells]
    for name, cell in zip(names, cells, strict=True):
        if names.count(name) > 1 or len(name) > LONGEST_NAME:
            digest = sha256(json.dumps(cell.choice.words).encode()).hexdigest()[:8]
            name = f"{name[:LONGEST_NAME]}-{digest}"
        yield replace(cell, folder=RunFolder(folder / name))


def _ordered(cells: Sequence[Cell]) -> list[Cell]:
    """Seed by seed, model by model, runs with the same scores one after another; otherwise as they were written."""
    keys = [(cell.recipe.seed, cell.model, cell.scores) for cell in cells]
    first = [list(dict.fromkeys(column)) for column in zip(*keys, strict=True)]
    places = [tuple(known.index(part) for known, part in zip(first, key, strict=True)) for key in keys]
    return [cell for _, cell in sorted(zip(places, cells, strict=True), key=lambda pair: pair[0])]
