"""Find what evaluates a model by samples that it may have been pruned by: such a figure flatters the pruned model.

Two parts of a recipe draw from the same rows where both read one file, by whatever path, name or copy of it; or, of
what is read from no file, where they name one data set of the hub, or are one dataset with the same parameters but for
those that say which of the rows are drawn and how they are shown. And where their portions overlap.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ecoflap.core.contracts.blame import blaming
from ecoflap.core.disk.whole_files import sha256_of
from ecoflap.core.errors import EcoflapError
from ecoflap.core.recipe.differences import is_within
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.recipe.schema import Recipe

PORTION = "portion"
OF_DRAWING = frozenset({PORTION, "samples", "seed", "order", "skip", "captions", "prefix", "sequence_length", "bos"})
"""Parameters that keep no rows apart, or that do so by some of their values alone."""
OF_THE_HUB = ("dataset", "config", "split")
"""Parameters that name a data set of the hub, whichever dataset reads it."""
ALL = (0.0, 1.0)


@dataclass(frozen=True)
class _Data:
    """Holds a dataset of a recipe with its place there, and asks once which files it reads."""

    where: str
    spec: PartSpec

    @cached_property
    def files(self) -> list[Path]:
        """Name the files that it reads, as it says itself; none where that fails, as a run says when it asks."""
        with suppress(EcoflapError), blaming(f"the dataset {self.spec.use}, asked for its files,"):
            return [Path(file).resolve() for file in self.spec.options.files() or ()]
        return []

    @cached_property
    def by_size(self) -> Mapping[int, Sequence[Path]]:
        """Sort its files by how many bytes they have."""
        found: dict[int, list[Path]] = {}
        for file in filter(Path.is_file, self.files):
            found.setdefault(file.stat().st_size, []).append(file)
        return found


def seen_samples(recipe: Recipe) -> list[str]:
    """Say which data of an evaluation may be the samples that pruning looks at; no sentence where none are."""
    data = [_Data(where, spec) for where, spec in recipe.specs() if spec.kind == "dataset"]
    measured = [one for one in data if is_within(one.where, ("evaluate",))]
    looked_at = [one for one in data if is_within(one.where, ("calibration", "score"))]
    found = []
    for one in measured:
        place = next((other.where for other in looked_at if _draw_alike(one, other)), None)
        found += [_said(one.where, place, one.spec)] if place is not None else []
    return found


def _draw_alike(one: _Data, other: _Data) -> bool:
    if not _overlap(_portion(one.spec), _portion(other.spec)):
        return False
    is_one_dataset = one.spec.use == other.spec.use and _rows(one.spec) == _rows(other.spec)
    return is_one_dataset or _is_one_of_the_hub(one.spec, other.spec) or _share_a_file(one, other)


def _rows(data: PartSpec) -> Mapping[str, Any]:
    return {name: value for name, value in data.plain().items() if name not in OF_DRAWING}


def _is_one_of_the_hub(one: PartSpec, other: PartSpec) -> bool:
    name, *rest = ([part.parameters.get(parameter) for part in (one, other)] for parameter in OF_THE_HUB)
    return name[0] is not None and all(first == second for first, second in (name, *rest))


def _share_a_file(one: _Data, other: _Data) -> bool:
    """Say whether a file of one is a file of the other, or holds the same bytes. A folder is itself alone."""
    if not set(one.files).isdisjoint(other.files):
        return True
    sizes = (one.by_size.keys() & other.by_size.keys()) - {0}  # no other file is read
    first, second = ({sha256_of(file) for size in sizes for file in data.by_size[size]} for data in (one, other))
    return not first.isdisjoint(second)


def _portion(data: PartSpec) -> Sequence[float]:
    return data.parameters.get(PORTION) or ALL


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])


def _said(where: str, place: str, data: PartSpec) -> str:
    cure = f", as {PORTION}: [0, 0.7] and {PORTION}: [0.7, 1] do" if PORTION in data.parameters else ""
    return (
        f"{where} draws from the rows that {place} draws from, so that the model may be measured by samples that it was"
        f" pruned by, which flatters it. Give each rows of its own{cure}"
    )
