"""The coarse step: score the layers, keeping each score as soon as it is known."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ecoflap.core.contracts.blame import blaming, blaming_each
from ecoflap.core.contracts.events import Event, Progress, Warned
from ecoflap.core.contracts.records import Aggregate, Estimate, Score, Unit
from ecoflap.core.disk.sealed_lines import append_line, read_lines
from ecoflap.core.errors import ModelError, nearest
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Block, Layer
from ecoflap.core.pruning.scores import Scores, checked, header_line, read_scores, score_line
from ecoflap.core.recipe.part_spec import PartSpec


def score_layers(
    scorer: PartSpec,
    aggregate: Aggregate,
    replay: Replay,
    layers: Sequence[tuple[Block, Layer]],
    path: Path,
    emit: Callable[[Event], None],
) -> Scores:
    """Score every layer, or every block; what ``path`` holds already is not asked again.

    :param path: The file that grows by a line a score.
    """
    unit: Unit = scorer.options.unit
    if not (path.is_file() and read_lines(path)):
        append_line(path, header_line(unit, aggregate))
    done = dict(read_scores(path).values)
    names = [layer.name if unit == "layer" else block.name for block, layer in layers]
    total = len(dict.fromkeys(names))
    remaining = [layer for name, (_, layer) in zip(names, layers, strict=True) if name not in done]
    emit(Progress("score", len(done), total, f"{unit}s"))
    if remaining:
        for name, score in _asked(scorer, replay, remaining):
            _require_wanted(name, names, unit)
            if name in done:  # by an earlier process; a scorer need not look at which layers it was given
                continue
            done[name] = _checked(name, score)
            append_line(path, score_line(name, done[name]))
            emit(Progress("score", len(done), total, f"{unit}s"))
    scores = _complete(done, names, unit)
    for sentence in _uninformative(scores, unit):
        emit(Warned(f"{scorer.use}: {sentence}"))
    return Scores(unit, aggregate, scores)


def _asked(scorer: PartSpec, replay: Replay, layers: Sequence[Layer]) -> Iterator[tuple[str, Score]]:
    """Ask a scorer, and name it where its code raises or yields something else than names with scores."""
    who = f"the scorer {scorer.use}"
    with blaming(who):
        answers: Any = scorer.built(replay, layers)
    if not isinstance(answers, Iterable):
        raise ModelError(f"{who} returned {answers!r}; it yields pairs of a name and a score")
    for answer in blaming_each(who, answers):
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise ModelError(f"{who} gave {answer!r}; it yields pairs of a name and a score")
        yield answer


def _uninformative(scores: Mapping[str, Score], unit: Unit) -> Iterator[str]:
    """Warn of scores that say nothing: an allocator can only spread the budget evenly by them."""
    values = {float(score) for score in scores.values()}
    if len(scores) > 1 and values == {0.0}:
        yield (
            f"the score of every {unit} is 0, so nothing tells them apart. Does the loss depend on them at all, and is "
            f"the scorer's step large enough for the loss to move?"
        )
    elif len(scores) > 1 and len(values) == 1:
        yield f"the score of every {unit} is {values.pop():g}, so nothing tells them apart."


def _checked(name: str, score: Any) -> Score:
    """Hold a scorer to its contract: what it says of a layer must be a number."""
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise ModelError(f"{name}: the scorer gave {score!r} as its score; a score is a float")
    return checked(name, score if isinstance(score, Estimate) else float(score))


def _require_wanted(name: str, names: Sequence[str], unit: Unit) -> None:
    if name not in names:
        raise ModelError(
            f"the scorer gave a score for {name!r}, which is no {unit} to be pruned.{nearest(name, names)} "
            f"A scorer with unit = {unit!r} yields the names of {unit}s"
        )


def _complete(done: Mapping[str, Score], names: Sequence[str], unit: Unit) -> Mapping[str, Score]:
    missing = [name for name in dict.fromkeys(names) if name not in done]
    if missing:
        more = " …" if len(missing) > 5 else ""
        raise ModelError(f"the scorer gave no score for {len(missing)} {unit}(s): {', '.join(missing[:5])}{more}")
    return done
