"""Plan the runs of a sweep: all are checked before the first begins, and follow so that each can use what is found."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal, TypeVar

from ecoflap.core.errors import EcoflapError, RecipeError
from ecoflap.core.machine.part_code import code_of_parts, digests_of
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.recipe.differences import changes, differences
from ecoflap.core.recipe.load import load_recipe
from ecoflap.core.recipe.overrides import Assignment
from ecoflap.core.recipe.schema import Recipe, seed_keys
from ecoflap.core.record.evaluations import Evaluation
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.identity import Identity
from ecoflap.core.record.report import read_report
from ecoflap.core.record.reuse import lasting_parts, what_scores_depend_on
from ecoflap.core.registry.registry import Registry
from ecoflap.core.sweep.file import SEED_KEY, Sweep
from ecoflap.core.text.strict_yaml import Document, Place, parse_yaml, read_yaml_file

State = Literal["done", "begun", "to do"]
MOST_RUNS = 10_000
"""A few keys of many values each have more combinations than could be listed, let alone run."""

_ONE_LIST = re.compile(r"--set ([^=\n]+)=\s*\[(.+)\]: .* not a list\.")
"""A problem with a list that was written on the command line."""

LONGEST_NAME = 120
"""Bytes of a run folder's name, of which some scripts take three or four a letter; a digest stands behind them."""


@dataclass(frozen=True)
class Choice:
    """Says what one run of a sweep is made of.

    :param method: The method's name in the sweep; empty where that names none.
    :param own: What the method sets.
    :param grid: One value of each key of the grid.
    :param seed: None for the recipe's own.
    """

    method: str
    own: tuple[Assignment, ...]
    grid: tuple[Assignment, ...]
    seed: int | None

    @property
    def words(self) -> list[str]:
        """Say it in words: ``wanda``, ``sparsity=0.5``, ``seed=0``. A method's name stands for what it sets."""
        values = [f"{item.key}={value_text(item.value.value)}" for item in self.grid]
        seed = [] if self.seed is None else [f"seed={self.seed}"]
        return [*([self.method] if self.method else []), *values, *seed]


@dataclass(frozen=True)
class PlannedRun:
    """Holds one run of a sweep, checked.

    :param scored: Whether it looks at scores.
    :param adapter: What makes its adapter; None until it is prepared.
    """

    choice: Choice
    recipe: Recipe
    folder: RunFolder
    scored: bool = False
    adapter: Callable[..., Any] | None = None

    @property
    def state(self) -> State:
        """Say how far the run is. It is done also without its model, but not with another ``evaluate:`` than before.

        Nor is it where its own parts are of other code now.
        """
        if self.folder.report.is_file() and self._is_by_this_code():
            before = read_report(self.folder.report).recipe.plain()
            # A sweep itself adds to reuse: what another of its runs found; nothing else may differ from what was asked.
            if not differences(before, self.recipe.plain(), ignore=("reuse",)):
                return "done"
        return "begun" if self.folder.is_ours else "to do"

    def _is_by_this_code(self) -> bool:
        """Say whether its parts are those of its folder, and what evaluators found is found by what they are now."""
        code = digests_of(code_of_parts(lasting_parts(self.recipe)))
        measured = (Evaluation(one).is_done(self.folder.evaluations, "pruned") for one in self.recipe.evaluate)
        return Identity(self.folder).goes_on_with(code) and all(measured)

    @property
    def model(self) -> str:
        """Give a text that is equal for runs of the same dense model."""
        return json.dumps(self.recipe.model.plain())

    @property
    def scores(self) -> str:
        """Give a text that is equal for runs with the same scores; empty for one that looks at none, or in rounds, of
        which each has its own.
        """
        at_once = self.scored and self.recipe.round_count == 1
        return json.dumps(what_scores_depend_on(self.recipe.plain())) if at_once else ""


def planned_runs(
    sweep: Sweep, folder: Path, registry: Registry, *, fresh: bool = False, accept_change: bool = False
) -> list[PlannedRun]:
    """Return all runs, in the order in which each can use most of what others found.

    :param folder: The sweep's folder, in which each run has one.
    :param fresh: Whether what the runs' folders hold will be deleted, so that it does not count.
    :param accept_change: Whether runs may go on by other code of their parts than they were begun with.
    :raises RecipeError: With all that is wrong with any of them, each thing once.
    """
    found = _Problems()
    choices = list(islice(_choices(sweep), MOST_RUNS + 1))
    if len(choices) > MOST_RUNS:
        raise RecipeError(
            f"{sweep.recipe}: a sweep has {MOST_RUNS:,} runs at most, and the combinations of this are more."
        )
    runs = found.in_any(choices, lambda one: PlannedRun(one, _loaded(sweep.recipe, one, registry), RunFolder(folder)))
    runs = list({json.dumps([run.choice.words, run.recipe.plain()]): run for run in runs}.values())  # each once
    runs = found.in_any([_with_seed(run) for run in runs], _Prepared(registry))
    runs = list(_in_folders(runs, folder.absolute()))
    if not fresh:
        runs = found.in_any(runs, _not_another)
    if not fresh and not accept_change:
        runs = found.in_any(runs, _not_by_others)
    found.raise_if_any(len(choices))
    return _ordered(runs)


def _choices(sweep: Sweep) -> Iterator[Choice]:
    """Yield every combination. A key that a method sets has that value alone."""
    for name, own in sweep.methods.items():
        axes = [axis for key, axis in sweep.axes.items() if not _is_set(key, own)]
        for seed in sweep.seeds or (None,):
            yield from (Choice(name, own, values, seed) for values in product(*axes))


def _is_set(key: str, own: Sequence[Assignment]) -> bool:
    """Return whether a method sets a key: also ``score.samples``, where it sets ``score`` to null."""
    return any(key == mine.key or (mine.value.value is None and key.startswith(f"{mine.key}.")) for mine in own)


def _loaded(path: Path, choice: Choice, registry: Registry) -> Recipe:
    seed = [] if choice.seed is None else [Assignment(SEED_KEY, Document(choice.seed, Place("seeds")))]
    # A part before what is inside of it: another one drops the parameters of the one that was there.
    set_ = sorted([*choice.own, *choice.grid], key=lambda one: one.key.removesuffix(".use").count("."))
    try:
        return load_recipe(path, set_=[*set_, *seed], registry=registry)
    except RecipeError as error:
        raise RecipeError(*map(_without_brackets, error.problems)) from error


def _without_brackets(problem: str) -> str:
    """Say how values in turn are written, where a list of them was taken for one value, which the key cannot have."""
    values = _ONE_LIST.match(problem)
    in_turn = f" To give it these in turn: --set {values[1]}={values[2]}, without brackets." if values else ""
    return f"{problem}{in_turn}"


def _with_seed(run: PlannedRun) -> PlannedRun:
    return replace(run, choice=replace(run.choice, seed=run.recipe.seed))


class _Prepared:
    """Prepares runs on the model without its weights; those that differ in their seed alone once for all."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: dict[str, tuple[bool, type] | EcoflapError] = {}

    def __call__(self, run: PlannedRun) -> PlannedRun:
        key = json.dumps(_without_seeds(run.recipe.plain()))
        if key not in self._known:
            try:
                prepared = prepare(run.recipe, self._registry)
                self._known[key] = prepared.looks_at_scores, type(prepared.adapter)  # of thousands no model is held
            except EcoflapError as error:
                self._known[key] = error
        known = self._known[key]
        if isinstance(known, EcoflapError):
            raise known
        scored, adapter = known
        return replace(run, scored=scored, adapter=adapter)


def _without_seeds(plain: dict[str, Any]) -> dict[str, Any]:
    """Return a plain recipe without its own seed, and without those that its calibrations have from it."""
    for name in seed_keys():
        *around, seed = name.split(".")
        keys = plain
        for step in around:
            keys = keys.get(step) or {}
        keys.pop(seed, None)
    return plain


def _not_another(run: PlannedRun) -> PlannedRun:
    before = run.folder.recipe
    changed = []
    if run.folder.is_ours:
        changed = changes(read_yaml_file(before).value, run.recipe.plain())
    if changed:
        raise RecipeError(
            f"begun with another recipe: {'; '.join(changed)} (before vs now). Sweep into another folder with "
            f"--folder, delete the folders of these runs alone, or begin all anew with --fresh"
        )
    return run


def _not_by_others(run: PlannedRun) -> PlannedRun:
    """Refuse a run that holds what other code of its parts has found."""
    by_adapter = [] if run.adapter is None else [run.adapter]
    code = code_of_parts([*lasting_parts(run.recipe), *by_adapter])
    others = Identity(run.folder).found_by_others(code, code_of_parts(by_adapter)) if run.folder.is_ours else ""
    if others:
        raise RecipeError(
            f"{run.folder.path} was begun with {others} than is there now: what is there was computed by other code. "
            f"Delete that folder and give the same command again, which begins this run anew and no other; or keep "
            f"what is there and go on with --accept-change (accept_change=True from Python)"
        )
    return run


_Item = TypeVar("_Item", Choice, PlannedRun)


@dataclass
class _Problems:
    """Collects what is wrong with many runs: each problem once, with the runs that have it."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def in_any(self, items: Iterable[_Item], check: Callable[[_Item], PlannedRun]) -> list[PlannedRun]:
        """Return what the check makes of each item, without those that it finds something wrong with."""
        passed = []
        for item in items:
            try:
                passed.append(check(item))
            except EcoflapError as error:
                choice = item.choice if isinstance(item, PlannedRun) else item
                for problem in error.problems:
                    self.found.setdefault(problem, []).append(", ".join(choice.words))
        return passed

    def raise_if_any(self, runs: int) -> None:
        if self.found:
            raise RecipeError(*(f"{problem}{_in(where, runs)}" for problem, where in self.found.items()))


def _in(where: Sequence[str], runs: int) -> str:
    """Say in which runs a problem is; nothing where it is in all of them."""
    if len(where) == runs:
        return ""
    more = f"; and {len(where) - 3} more" if len(where) > 3 else ""
    return f" (in {len(where)} of {runs} runs: {'; '.join(where[:3])}{more})"


def value_text(value: Any) -> str:
    """Return a value as ``--set`` has it: a text in quotes where it would be read as something else, as ``null``."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {value_text(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_text, value))}]"
    if isinstance(value, str):
        return value if parse_yaml(value, Place("a value"))[0].value == value else json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def _in_folders(runs: Sequence[PlannedRun], folder: Path) -> Iterator[PlannedRun]:
    """Give each run a folder named after its words, with their digest where that is no name, too long, or another's."""
    names = [re.sub(r"[^\w.+-]+", "-", "-".join(run.choice.words)).strip("-.") for run in runs]
    for name, run in zip(names, runs, strict=True):
        if not name or names.count(name) > 1 or len(name.encode()) > LONGEST_NAME:
            digest = sha256(json.dumps(run.choice.words).encode()).hexdigest()[:8]
            name = f"{name.encode()[:LONGEST_NAME].decode(errors='ignore')}-{digest}".lstrip("-")
        yield replace(run, folder=RunFolder(folder / name))


def _ordered(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Sort by seed, model and scores, each in the order in which it is first there; so equal scores are neighbours."""
    keys = [(run.recipe.seed, run.model, run.scores) for run in runs]
    first = [list(dict.fromkeys(column)) for column in zip(*keys, strict=True)]
    places = [tuple(known.index(value) for known, value in zip(first, key, strict=True)) for key in keys]
    return [run for _, run in sorted(zip(places, runs, strict=True), key=lambda pair: pair[0])]
