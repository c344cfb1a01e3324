"""Read what a sweep is made of: a recipe, values for some of its keys, named methods, seeds.

``--set sparsity=0.5,0.6`` is read as the YAML list ``[0.5, 0.6]``, so that a list or a mapping inside stays whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from ecoflap.core.disk.paths import absolute
from ecoflap.core.errors import EcoflapError, RecipeError
from ecoflap.core.recipe.load import find_recipe
from ecoflap.core.recipe.overrides import Assignment
from ecoflap.core.text.problems import Problems, RecipeProblems
from ecoflap.core.text.strict_yaml import Document, KeyPath, Place, described, parse_yaml, read_small_text

KEYS = ("version", "recipe", "seeds", "grid", "methods")
SEED_KEY = "seed"
"""The recipe's one key that takes no values in turn: seeds are what a mean is taken over, and so have ``seeds:``."""

MOST_SEEDS = 1_000
_SEEDS_WANTED = f"should be how many seeds, counted from 0 and {MOST_SEEDS:,} at most, or a list of them"
"""Begins what is said of seeds that are neither."""

Axes: TypeAlias = Mapping[str, tuple[Assignment, ...]]
"""The values that keys take in turn, by key."""


@dataclass(frozen=True)
class Sweep:
    """Holds a sweep as it is written; nothing of its recipes is checked yet.

    :param seeds: None for the recipe's own.
    :param methods: What each sets; a single one without a name where none is named.
    """

    recipe: Path
    seeds: tuple[int, ...] | None
    axes: Axes
    methods: Mapping[str, tuple[Assignment, ...]]


def read_sweep(what: Path | str, set_: Sequence[str] = (), seeds: str | int | Sequence[int] | None = None) -> Sweep:
    """Read the sweep of a file, or make one over a recipe, with what the command line adds.

    :param what: A sweep's file or a recipe's, or the name of one that ships.
    :param set_: ``key=value,value``; it takes the place of the file's values of that key.
    :param seeds: How many, or which; a text as ``--seeds`` has it.
    :raises RecipeError: With every problem, each with its place.
    """
    path, problems = find_recipe(str(what)), list[str]()
    document = _document(path)
    if document is None:
        sweep = Sweep(path, None, {}, {"": ()})
    else:
        sweep, problems = _Reading(path, document).sweep()
    axes, in_sets = _axes_of(set_)
    given, in_seeds = _seeds_of(seeds) if seeds is not None else (sweep.seeds, [])
    problems += [*in_sets, *in_seeds]
    if problems:
        raise RecipeProblems(str(what), *problems)
    return replace(sweep, axes={**sweep.axes, **axes}, seeds=given)


def _document(path: Path) -> Document | None:
    """Read a file; None where it is a recipe's, which has none of a sweep's keys but ``version``."""
    try:
        document, problems = parse_yaml(read_small_text(path), Place(str(path), 1, 1, path.parent.absolute()))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    is_sweep = isinstance(document.value, dict) and any(key in document.value for key in KEYS[1:])
    if is_sweep and problems:
        raise RecipeProblems(str(path), *problems)
    return document if is_sweep else None


class _Reading:
    """Reads a sweep's file once. Every method notes problems and goes on."""

    def __init__(self, path: Path, document: Document) -> None:
        self.path, self.document, self.problems = path, document, Problems(document)

    def sweep(self) -> tuple[Sweep, list[str]]:
        written = self.document.value
        self.problems.add_unknown_keys((), written, KEYS)
        if written.get("version") != 1:
            self.problems.add(("version",), f"should be 1, not {described(written.get('version'))}.")
        seeds = None
        if written.get("seeds") is not None:
            seeds = read_seeds(written["seeds"])
            if seeds is None:
                self.problems.add(("seeds",), f"{_SEEDS_WANTED}, not {described(written['seeds'])}.")
        sweep = Sweep(self._recipe(), seeds, dict(self._axes()), dict(self._methods()) or {"": ()})
        try:
            self.problems.raise_if_any()
        except EcoflapError as error:
            return sweep, list(error.problems)
        return sweep, []

    def _recipe(self) -> Path:
        written = self.document.value.get("recipe")
        if not isinstance(written, str):
            wanted = "required: a recipe's file, or the name of one that ships"
            self.problems.add(("recipe",), f"{wanted}, not {described(written)}.")
            return self.path
        try:
            beside = absolute(written, self.path.parent)
            return beside if beside.is_file() else find_recipe(written)
        except EcoflapError as error:
            self.problems.add(("recipe",), f"{error}")
            return self.path

    def _axes(self) -> Iterator[tuple[str, tuple[Assignment, ...]]]:
        for key, values in self._mapping(("grid",)).items():
            path = ("grid", key)
            if not isinstance(values, list) or not values:
                self.problems.add(path, f"should be a list of the values it takes in turn, not {described(values)}.")
            elif _is_settable(self.problems, path):
                yield str(key), tuple(self._assignment(path, (*path, index)) for index in range(len(values)))

    def _methods(self) -> Iterator[tuple[str, tuple[Assignment, ...]]]:
        for name in self._mapping(("methods",)):
            path = ("methods", name)
            if not isinstance(name, str) or not name.strip():
                self.problems.add(path, f"a method's name should be a text, not {described(name)}.", key=True)
                continue
            keys = [key for key in self._mapping(path) if _is_settable(self.problems, (*path, key))]
            yield name, tuple(self._assignment((*path, key), (*path, key)) for key in keys)

    def _mapping(self, path: KeyPath) -> dict[Any, Any]:
        value: Any = self.document.value
        for step in path:
            value = value.get(step)
        if value is not None and not isinstance(value, dict):
            self.problems.add(path, f"should map keys of the recipe to values, not {described(value)}.")
        return value if isinstance(value, dict) else {}

    def _assignment(self, key: KeyPath, value: KeyPath) -> Assignment:
        return Assignment(str(key[-1]).strip(), _part_of(self.document, value, self.document.where(key, key=True)))


def _is_settable(problems: Problems, path: KeyPath) -> bool:
    """Say whether a key can take values in turn. Seeds cannot: they are what a mean is taken over."""
    key = path[-1]
    if key == SEED_KEY:
        problems.add(path, "seeds are written seeds: 3, or seeds: [4, 7].", key=True)
    elif not isinstance(key, str) or not all(key.strip().split(".")):
        problems.add(path, "should be a key of the recipe, such as prune.use.", key=True)
    else:
        return True
    return False


def _part_of(document: Document, path: KeyPath, start: Place) -> Document:
    value = document.value
    for step in path:
        value = value[step]
    deep = len(path)
    keys = {known[deep:]: place for known, place in document.keys.items() if known[:deep] == path and known != path}
    values = {known[deep:]: place for known, place in document.values.items() if known[:deep] == path}
    return Document(value, start, keys, values)


def _axes_of(set_: Sequence[str]) -> tuple[Axes, list[str]]:
    axes: dict[str, tuple[Assignment, ...]] = {}
    problems: list[str] = []
    for text in set_:
        name, equals, written = text.partition("=")
        key, place = name.strip(), Place(f"--set {text}")
        if not equals or not all(key.split(".")):
            problems.append(f"{place}: should be KEY=VALUE,VALUE, such as prune.use=wanda,sparsegpt.")
        elif key == SEED_KEY:
            problems.append(f"{place}: seeds are written --seeds 3, or --seeds 4,7.")
        else:
            values, wrong = _split(written, place)
            axes[key] = tuple(Assignment(key, Document(value, place)) for value in values)
            problems += [f"{problem} Put the value in quotes if it is a text." for problem in wrong]
    return axes, problems


def _split(written: str, place: Place) -> tuple[list[Any], list[str]]:
    """Divide a text at its commas, except inside of brackets and quotes; an empty text is one null.

    :return: The values, and what is wrong with the text.
    """
    document, problems = parse_yaml(f"[{written}\n]", place)
    return document.value or [None], problems


def _seeds_of(written: str | int | Sequence[int]) -> tuple[tuple[int, ...] | None, list[str]]:
    place = Place(f"--seeds {written}")
    values, problems = _split(written, place) if isinstance(written, str) else ([written], [])
    seeds = read_seeds(values[0] if len(values) == 1 else values)
    return seeds, problems or ([] if seeds is not None else [f"{place}: {_SEEDS_WANTED}: --seeds 3, or --seeds 4,7."])


def read_seeds(written: Any) -> tuple[int, ...] | None:
    """Return the seeds: ``3`` stands for 0, 1 and 2, a list for itself; None for anything else."""
    seeds = list(range(min(written, MOST_SEEDS + 1))) if type(written) is int else written
    if (
        not isinstance(seeds, list | tuple)
        or len(seeds) > MOST_SEEDS
        or not seeds
        or not all(type(seed) is int for seed in seeds)
    ):
        return None
    return tuple(dict.fromkeys(seeds))
