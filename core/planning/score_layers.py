"""The coarse step: score the layers, keeping each score as soon as it is known."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from ecoflap.core.budget.curves import Curve, CurveError
from ecoflap.core.budget.weight_scores import WeightScores
from ecoflap.core.contracts.answers import shown
from ecoflap.core.contracts.blame import blaming, blaming_each
from ecoflap.core.contracts.events import Event, Progress, Warned
from ecoflap.core.contracts.records import SCORES_CALLED, Aggregate, Estimate, KeptScore, Score, Unit
from ecoflap.core.errors import ModelError, cut, first_of, nearest
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Block, Layer
from ecoflap.core.planning.scores import (
    Scores,
    checked,
    file_name,
    folder_of,
    header_line,
    read_scores,
    score_line,
    split_by_kind,
)
from ecoflap.core.ranks.ranks import Ranks
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.sealing.sealed_lines import append_line, read_lines
from ecoflap.core.seeding import seed_for, seeded
from ecoflap.core.statistics.few_tokens import warning_of_few
from ecoflap.core.strides import layout_but_dense

_ROUNDING = 1e-4
"""The share of a score by which processes may differ that have found the same, each on a CPU of its own kind."""


def score_layers(
    scorer: PartSpec,
    aggregate: Aggregate,
    replay: Replay,
    layers: Sequence[tuple[Block, Layer]],
    path: Path,
    emit: Callable[[Event], None],
    refuse_changed: Callable[[Ranks], None] = lambda ranks: None,
) -> Scores:
    """Score every layer, or every block; what ``path`` holds already is not asked again.

    :param replay: Of the batches of one process or of several; the first of them keeps the scores.
    :param path: The file that grows by a line a score. Numbers of single weights are put into files beside it.
    :param refuse_changed: Raises before a score is kept where files that weights are mapped from have changed.
    """
    unit: Unit = scorer.options.unit
    ranks = replay.ranks
    done = dict(ranks.first(lambda: _begun(path, unit, aggregate)))
    names = [layer.name if unit == "layer" else block.name for block, layer in layers]
    places = {layer.name: (at, layer.shape) for at, (_, layer) in enumerate(layers)}
    total = len(dict.fromkeys(names))
    remaining = [layer for name, (_, layer) in zip(names, layers, strict=True) if name not in done]
    emit(Progress("score", len(done), total, f"{unit}s"))
    told, earlier = set[str](), frozenset(done)
    if remaining:
        asked = [layer for _, layer in layers] if scorer.options.together else remaining
        begins_behind = "" if scorer.options.together else next(reversed(done), "")
        for name, score in _asked(scorer, replay, asked, begins_behind):
            _require_wanted(scorer.use, name, names, unit)
            if name in earlier:  # by an earlier process; a scorer need not look at which layers it was given
                continue
            if name in done:
                raise _a_second(scorer.use, name, score, unit)
            place, shape = places.get(name, (0, None))  # a block has neither
            answer = _agreed(scorer.use, name, _checked(scorer, name, score, done, shape), ranks)
            refuse_changed(ranks)
            done[name] = _kept(name, answer, folder_of(path) / file_name(place), ranks)
            ranks.at_first(partial(append_line, path, score_line(name, done[name])))
            for note in answer.notes if isinstance(answer, Curve) else ():
                emit(Warned(f"{scorer.use}: {note}"))
            _tell_few(scorer.use, replay, told, emit)
            emit(Progress("score", len(done), total, f"{unit}s"))
    scores = _complete(scorer.use, done, names, unit)
    for sentence in _uninformative(scores, unit):
        emit(Warned(f"{scorer.use}: {sentence}"))
    return Scores(unit, aggregate, scores)


def _a_second(use: str, name: str, score: Any, unit: Unit) -> ModelError:
    return ModelError(
        f"the scorer {use} gave {name} a second score, {shown(score)}; it yields one for each {unit}, so what it finds "
        "in several batches is to be put together first"
    )


def _tell_few(use: str, replay: Replay, told: set[str], emit: Callable[[Event], None]) -> None:
    """Warn of layers that saw few tokens, of which nothing was told yet: block by block, as they are looked at."""
    few = {name: said for name, said in replay.few_tokens_seen.items() if name not in told}
    if few:
        emit(Warned(f"{use}: {warning_of_few(few)}"))
        told.update(few)


def _begun(path: Path, unit: Unit, aggregate: Aggregate) -> Mapping[str, KeptScore]:
    """Give the scores that there are, in a file that is begun where there is none; files that it names are read."""
    if not (path.is_file() and read_lines(path)):
        append_line(path, header_line(unit, aggregate))
    found = read_scores(path)
    found.check_files()
    return found.values


def _agreed(use: str, name: str, score: Score, ranks: Ranks) -> Score:
    """Give the score that the first process has, where all have found the same but for rounding.

    :raises ModelError: Where one has found another, as by its own batches alone.
    """
    if ranks.size == 1:
        return score
    found = ranks.gather(_in_a_number(score))
    if max(found) - min(found) > _ROUNDING * max(map(abs, found)):
        raise ModelError(
            f"the scorer {use} gave {name} {min(found):.6g} in one process and {max(found):.6g} in another: one that "
            f"says shares = True has to yield the same in each. Ask of every batch by replay.each(…), or put together "
            f"what each process has found by replay.gathered(…)"
        )
    return score if isinstance(score, Tensor) else ranks.first(lambda: score)


def _in_a_number(score: Score) -> float:
    """Sum up a score, so that processes can hold theirs beside each other's."""
    if isinstance(score, Tensor):
        return float(score.sum(dtype=torch.float64))
    return sum(map(abs, score.rises)) if isinstance(score, Curve) else float(score)


def _kept(name: str, score: Score, file: Path, ranks: Ranks) -> KeptScore:
    """Put numbers of single weights into a file; any other score is kept as it is."""
    if isinstance(score, Tensor):
        return ranks.first(partial(WeightScores.written, file, name, score))
    return score


def _asked(
    scorer: PartSpec, replay: Replay, layers: Sequence[Layer], begins_behind: str
) -> Iterator[tuple[str, Score]]:
    """Ask a scorer, and name it where its code raises or yields something else than names with scores.

    :param begins_behind: The name behind whose score it goes on; empty where it begins.
    """
    who = f"the scorer {scorer.use}"
    with blaming(who), seeded(seed_for(replay.seed, "score")):
        answers: Any = scorer.built(replay, layers)
    if not isinstance(answers, Iterable):
        raise ModelError(f"{who} returned {shown(answers)}; it yields pairs of a name and a score")
    where = ", at its first answer"
    drawn = _drawn_alike(answers, replay.seed, begins_behind)
    try:
        for answer in blaming_each(who, drawn, lambda _, answer: f"{_behind(answer[0])},"):
            if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[0], str):
                raise ModelError(f"{who} gave {shown(answer)}; it yields pairs of a name and a score")
            yield answer
            where = _behind(answer[0])
    except CurveError as error:
        raise ModelError(*(f"{who}{where}: {problem}" for problem in error.problems)) from error


def _drawn_alike(answers: Iterable[Any], seed: int, behind: str) -> Iterator[Any]:
    """Yield a scorer's answers; what it draws from the global generators for one depends on which it gave before it.

    So a run that was cut off draws for a layer what an unbroken one does.
    """
    with seeded(seed_for(seed, "score")):
        iterator = iter(answers)
    while True:
        with seeded(seed_for(seed, "score", behind)):
            try:
                answer = next(iterator)
            except StopIteration:
                return
        yield answer
        behind = answer[0]  # whoever asks for the next has seen that it is a name


def _behind(name: str) -> str:
    """Say where a scorer is that has answered for a layer or block: which one it is at, it alone knows."""
    return f", at its answer behind that for {name}"


def _uninformative(scores: Mapping[str, KeptScore], unit: Unit) -> Iterator[str]:
    """Warn of scores that say nothing: an allocator can only spread the budget evenly by them."""
    curves, numbers = split_by_kind(scores.values())
    values = {rise for curve in curves for rise in curve.rises} | set(map(float, numbers))
    if len(scores) > 1 and values == {0.0}:
        yield (
            f"the score of every {unit} is 0, so nothing tells them apart. Does the loss depend on them at all, and is "
            f"the scorer's step large enough for the loss to move?"
        )
    elif len(curves) > 1 and len(set(curves)) == 1:
        yield f"the curve of every {unit} is the same, {curves[0]}, so nothing tells them apart."
    elif len(numbers) > 1 and len(values) == 1 and not any(isinstance(one, WeightScores) for one in scores.values()):
        yield f"the score of every {unit} is {values.pop():g}, so nothing tells them apart."


def _checked(
    scorer: PartSpec, name: str, score: Any, done: Mapping[str, KeptScore], shape: tuple[int, int] | None
) -> Score:
    """Hold a scorer to its contract: a number, a curve like those before, or a number for each weight of the layer.

    :param done: The scores that are there already.
    :param shape: The layer's; None for a block.
    """
    first, who = next(iter(done.values()), score), f"{name}: the scorer {scorer.use} gave"
    of_weights = scorer.options.gives == "weights"
    if isinstance(first, WeightScores) != isinstance(score, Tensor) and done:
        raise ModelError(f"{who} {shown(score)}, and {shown(first)} before; all of its scores are of one kind")
    if of_weights or isinstance(first, WeightScores):
        return _checked_numbers(who, score, shape)
    is_other = isinstance(score, Curve) != (scorer.options.gives == "curve")
    if not done and is_other and isinstance(score, Curve | int | float):
        raise ModelError(
            f"{who} {shown(score)}, and says that it gives {SCORES_CALLED[scorer.options.gives]}, by which allocators "
            f"are chosen: one of curves has gives = 'curve', one of numbers gives = 'number', which is the default"
        )
    if isinstance(score, Curve) or isinstance(first, Curve):
        return _checked_curve(scorer.use, name, score, first)
    if isinstance(score, bool) or not isinstance(score, int | float) or abs(score) > sys.float_info.max:
        raise ModelError(
            f"{who} {shown(score)} as its score; a score is a finite float, as float(...) makes of a tensor of one "
            f"number, or a Curve, and a tensor where the scorer has gives = 'weights'"
        )
    return checked(f"{name}, by the scorer {scorer.use}", score if isinstance(score, Estimate) else float(score))


def _checked_numbers(who: str, score: Any, shape: tuple[int, int] | None) -> Float32[Tensor, "out in"]:
    """Give numbers of single weights in float32 on the CPU, if there is one for each and an allocator can use them."""
    is_tensor = isinstance(score, Tensor) and not layout_but_dense(score)
    if not isinstance(score, Tensor) or not is_tensor or tuple(score.shape) != shape or not score.is_floating_point():
        found = f"{score.dtype} of {tuple(score.shape)}" if is_tensor else shown(score)
        raise ModelError(f"{who} {found}; it has to give one floating-point number for each weight, {shape} here")
    numbers = score.detach().to("cpu", torch.float32).contiguous()
    wrong = ~(numbers.isfinite() & (numbers >= 0))
    if bool(wrong.any()):
        row, column = (int(at) for at in wrong.nonzero()[0])
        raise ModelError(
            f"{who} {float(numbers[row, column])} for the weight in row {row} and column {column}, the first of "
            f"{int(wrong.sum())} such; numbers of weights are finite in float32, and not negative"
        )
    return numbers


def _checked_curve(scorer: str, name: str, score: Any, first: Any) -> Curve:
    who = f"{name}: the scorer {scorer} gave"
    if not isinstance(score, Curve) or not isinstance(first, Curve):
        raise ModelError(f"{who} {shown(score)}, and {shown(first)} before; all of its scores are of one kind")
    if score.levels != first.levels:
        before, here = (list(curve.levels) for curve in (first, score))
        raise ModelError(f"{who} a curve at {here}, and those before are at {before}; all are at the same sparsities")
    return score


def _require_wanted(scorer: str, name: str, names: Sequence[str], unit: Unit) -> None:
    if name not in names:
        raise ModelError(
            f"the scorer {scorer} gave a score for {cut(name)!r}, which is no {unit} to be pruned."
            f"{nearest(name, names)} A scorer with unit = {unit!r} yields the names of {unit}s"
        )


def _complete(scorer: str, done: Mapping[str, KeptScore], names: Sequence[str], unit: Unit) -> Mapping[str, KeptScore]:
    missing = [name for name in dict.fromkeys(names) if name not in done]
    if missing:
        raise ModelError(f"the scorer {scorer} gave no score for {len(missing)} {unit}(s): {first_of(missing, 5)}")
    return done
