"""What the keys of a recipe say to each other: a pattern leaves nothing to score, and who looks at data needs some."""

from collections.abc import Iterator, Mapping
from typing import Any

from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.recipe.read_budget import is_patterned
from ecoflap.core.recipe.read_keys import FAILED, KeyReader
from ecoflap.core.recipe.schema import TowerChoice


def note_disagreements(reader: KeyReader, fields: Mapping[str, Any]) -> None:
    """Note every pair of keys that cannot both stand, and every key that another one needs."""
    score, allocate = fields.get("score"), fields["allocate"]
    if is_patterned(fields):
        fixed = f"the pattern {fields['pattern']} fixes each layer's budget"
        if score is not None:
            reader.problems.add(("score",), f"{fixed}, so no score is looked at. Remove score:.")
        if allocate is not FAILED and allocate.use != "uniform":
            reader.problems.add(("allocate",), f"{fixed}, so nothing can be allocated. Remove allocate:.")
    elif score is None and allocate is not FAILED and allocate.options.takes is not None:
        known = ", ".join(reader.parts.registry.choices("scorer"))
        reader.problems.add(("allocate",), f"{allocate.use} looks at scores; add score:. Known scorers: {known}.")
    if fields.get("calibration") is None:
        _note_missing_calibration(reader, list(dict.fromkeys(_who_looks_at_data(fields))))


def _note_missing_calibration(reader: KeyReader, who: list[str]) -> None:
    if who:
        known = ", ".join(reader.parts.registry.choices("dataset")) or "none"
        looks = f"{' and '.join(who)} look{'s' if len(who) == 1 else ''} at data"
        reader.problems.add(("calibration",), f"missing, and {looks}. Known datasets: {known}.")


def _who_looks_at_data(fields: Mapping[str, Any]) -> Iterator[str]:
    """Name the parts that look at the recipe's calibration data."""
    for pruner in _pruners(fields):
        if pruner.options.needs:
            yield f"the pruner {pruner.use}"
    score = fields.get("score")
    own = isinstance(score, dict) and score.get("calibration") is not None
    if isinstance(score, dict) and not own and score["scorer"] is not FAILED and score["scorer"].options.data:
        yield f"the scorer {score['scorer'].use}"


def _pruners(fields: Mapping[str, Any]) -> list[PartSpec]:
    towers = [own.prune for own in fields["towers"].values() if isinstance(own, TowerChoice) and own.prune]
    return [pruner for pruner in [fields["prune"], *towers] if pruner is not FAILED]
