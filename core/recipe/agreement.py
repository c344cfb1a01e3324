"""Hold the keys of a recipe against each other: a pattern leaves nothing to score, and who looks at data needs some."""

from collections.abc import Iterator, Mapping
from typing import Any

from ecoflap.core.contracts.records import SCORES_CALLED, ScoreKind
from ecoflap.core.errors import EcoflapError, unknown
from ecoflap.core.recipe.defaults import EVEN_ALLOCATOR
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
        if allocate is not FAILED and allocate.use != EVEN_ALLOCATOR:
            reader.problems.add(("allocate",), f"{fixed}, so nothing can be allocated. Remove allocate:.")
    elif score is None and allocate is not FAILED and allocate.options.takes is not None:
        options = allocate.options
        fit = ", ".join(options.scorers) or _that_fit(reader, "scorer", "gives", options.takes)
        reader.problems.add(("allocate",), f"{allocate.use} looks at scores; add score:. Scorers that fit: {fit}.")
    elif isinstance(score, dict) and score["scorer"] is not FAILED and allocate is not FAILED:
        _note_other_kind(reader, score["scorer"], allocate)
        _note_other_scorer(reader, score["scorer"], allocate)
    _note_scopes(reader, fields)
    if fields.get("rounds") is not None:
        _note_rounds(reader, fields)
    if fields.get("calibration") is None:
        _note_missing_calibration(reader, list(dict.fromkeys(_who_looks_at_data(fields))))


def _note_rounds(reader: KeyReader, fields: Mapping[str, Any]) -> None:
    """Note what leaves rounds nothing to do, or what a list of them says nothing of."""
    rounds, sparsity = fields["rounds"], fields.get("sparsity")
    if rounds == 1:  # which is as good as none
        return
    own = {name: tower for name, tower in fields["towers"].items() if isinstance(tower, TowerChoice)}
    patterns = [fields["pattern"], *(tower.pattern for tower in own.values())]
    pattern = next((one for one in patterns if one is not None), None)
    if pattern is not None:
        reader.problems.add(("rounds",), f"the pattern {pattern} is pruned at once. Remove rounds:, or write a share.")
    if pattern is None and sparsity is None:
        reader.problems.add(("rounds",), _without_sparsity(fields["allocate"]))
    if not isinstance(rounds, tuple):
        return
    if sparsity is not None and rounds[-1] != sparsity:
        reader.problems.add(
            ("rounds",), f"the last round prunes {rounds[-1]:g}, and sparsity is {sparsity:g}. Make them the same."
        )
    named = [name for name, tower in own.items() if tower.sparsity is not None]
    if named:
        reader.problems.add(
            ("rounds",),
            f"a list says nothing of {' and '.join(named)}, with a sparsity of its own. Write how many rounds there "
            f"are: {len(rounds)}.",
        )


def _without_sparsity(allocator: PartSpec) -> str:
    if allocator is not FAILED and allocator.options.keeps is not None:
        return f"{allocator.use} says itself how much is pruned, all of it at once. Remove rounds:."
    return "each prunes a share of sparsity, which is not written. Write it."


def _note_other_kind(reader: KeyReader, scorer: PartSpec, allocator: PartSpec) -> None:
    """Note an allocator that takes scores of one kind where the scorer gives those of another."""
    wanted = allocator.options.takes
    gives = _gives(scorer)
    if wanted is None or gives in (None, wanted):
        return
    scorers, allocators = _that_fit(reader, "scorer", "gives", wanted), _that_fit(reader, "allocator", "takes", gives)
    taken, given = SCORES_CALLED[wanted], SCORES_CALLED[gives]
    reader.problems.add(
        ("allocate",),
        f"{allocator.use} looks at scores that are {taken}, and {scorer.use} gives {given}. "
        f"Scorers that give {taken}: {scorers}. Allocators that take {given}: {allocators}.",
    )


def _note_other_scorer(reader: KeyReader, scorer: PartSpec, allocator: PartSpec) -> None:
    """Note an allocator whose formula is about what one scorer measures, where the scores are of another."""
    wanted, takes, like = allocator.options.scorers, allocator.options.takes, scorer.options.like
    if not wanted or like is None or like in wanted or _gives(scorer) != takes:
        return
    registry = reader.parts.registry
    if scorer.factory in [registry.find("scorer", name) for name in wanted if name in registry.names("scorer")]:
        return
    there = registry.names("scorer")
    if strange := [name for name in wanted if name not in there]:
        reader.problems.add(
            ("allocate",), f"{allocator.use}, in its member scorers: {unknown('scorer', strange[0], there)}"
        )
        return
    others = _that_fit(reader, "allocator", "takes", takes, reads_all=True)
    reader.problems.add(
        ("allocate",),
        f"{allocator.use} reads the scores of {' or '.join(wanted)}, and those of {like or scorer.use} are others. "
        f"Write score: {wanted[0]}, or allocate by what reads any {SCORES_CALLED[takes]}: {others}.",
    )


def _gives(scorer: PartSpec) -> ScoreKind | None:
    """Say what a scorer gives; None where it cannot tell, which its own ``problems`` give the reason of."""
    try:
        gives: ScoreKind = getattr(scorer.built, "gives", "number")
    except EcoflapError:
        return None
    return gives


def _that_fit(reader: KeyReader, kind: str, member: str, wanted: str | None, *, reads_all: bool = False) -> str:
    """Name the parts of a kind whose factory has the wanted member; a property, such as that of ``from_run``, fits.

    :param reads_all: Leave out allocators that read the scores of some scorers alone.
    """
    registry = reader.parts.registry
    found = {name: registry.find(kind, name) for name in registry.names(kind)}
    if reads_all:
        found = {name: one for name, one in found.items() if not _reads_some(one)}
    values = {name: getattr(one, member, "number") for name, one in found.items()}
    fit = (name for name, value in values.items() if isinstance(value, property) or value == wanted)
    return ", ".join(fit) or "none"


def _reads_some(allocator: Any) -> bool:
    """Say whether what makes an allocator reads the scores of some scorers alone, or may, as candidates of its do."""
    scorers = getattr(allocator, "scorers", ())
    return isinstance(scorers, property) or bool(scorers)


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
    yield from (f"the refiner {refiner.use}" for refiner in _refiners(fields))
    score = fields.get("score")
    own = isinstance(score, dict) and score.get("calibration") is not None
    if isinstance(score, dict) and not own and score["scorer"] is not FAILED and score["scorer"].options.data:
        yield f"the scorer {score['scorer'].use}"


def _note_scopes(reader: KeyReader, fields: Mapping[str, Any]) -> None:
    """Refuse a refiner of the whole model among those of one tower."""
    for name, own in fields["towers"].items():
        for index, refiner in enumerate(own.refine or () if isinstance(own, TowerChoice) else ()):
            if refiner is not FAILED and refiner.options.scope == "model":
                reader.problems.add(
                    ("towers", name, "refine", index),
                    f"{refiner.use} refines the whole model, so it cannot be of one tower. Put it under refine:.",
                )


def _refiners(fields: Mapping[str, Any]) -> list[PartSpec]:
    towers = [one for own in fields["towers"].values() if isinstance(own, TowerChoice) for one in own.refine or ()]
    return [refiner for refiner in [*fields.get("refine", ()), *towers] if refiner is not FAILED]


def _pruners(fields: Mapping[str, Any]) -> list[PartSpec]:
    towers = [own.prune for own in fields["towers"].values() if isinstance(own, TowerChoice) and own.prune]
    return [pruner for pruner in [fields["prune"], *towers] if pruner is not FAILED]
