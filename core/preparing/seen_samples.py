"""Find what evaluates a model by samples that it may have been pruned by: such a figure flatters the pruned model.

Two parts of a recipe draw from the same rows where they are one dataset with the same parameters, but for those that
say which of the rows are drawn and how they are shown, and where their portions overlap.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ecoflap.core.recipe.differences import is_within
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.recipe.schema import Recipe

PORTION = "portion"
OF_DRAWING = frozenset({PORTION, "samples", "seed", "order", "skip", "captions", "prefix", "sequence_length", "bos"})
"""Parameters that keep no rows apart, or that do so by some of their values alone."""
ALL = (0.0, 1.0)


def seen_samples(recipe: Recipe) -> list[str]:
    """Say which data of an evaluation may be the samples that pruning looks at; no sentence where none are."""
    data = [(where, spec) for where, spec in recipe.specs() if spec.kind == "dataset"]
    measured = [(where, spec) for where, spec in data if is_within(where, ("evaluate",))]
    looked_at = [(where, spec) for where, spec in data if is_within(where, ("calibration", "score"))]
    found = []
    for where, spec in measured:
        place = next((place for place, other in looked_at if _draw_alike(spec, other)), None)
        found += [_said(where, place, spec)] if place is not None else []
    return found


def _draw_alike(one: PartSpec, other: PartSpec) -> bool:
    return one.use == other.use and _rows(one) == _rows(other) and _overlap(_portion(one), _portion(other))


def _rows(data: PartSpec) -> Mapping[str, Any]:
    return {name: value for name, value in data.plain().items() if name not in OF_DRAWING}


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
