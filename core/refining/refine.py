"""Let a refiner train an opened view; it is judged on batches that it did not train on."""

from collections.abc import Callable, Iterator
from inspect import isasyncgen, iscoroutine, isgenerator
from math import isfinite
from time import perf_counter
from typing import Any

from ecoflap.core.contracts.answers import shown
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.events import Event, Refined, Warned
from ecoflap.core.contracts.options import RefinerOptions
from ecoflap.core.errors import ModelError, NotFiniteError
from ecoflap.core.guards.untouched import settings_put_back
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.refining.block_view import BlockView
from ecoflap.core.refining.views import RefinedView
from ecoflap.core.seeding import seed_for, seeded

WHY_WHOLE = "it has no two sub-blocks that hold all of its layers, run in every batch and give a state for each token"
"""Why a block is trained at once although its sub-blocks were asked for."""

_TRIES = 3
"""How often a refiner is tried: steps that are right for one model's weights are too large for another's."""


def refine_block(view: BlockView, refiner: PartSpec, number: int, emit: Callable[[Event], None]) -> list[Refined]:
    """Let a refiner train a block, or its sub-blocks one after another where it is a refiner of those.

    :param view: Opened.
    :param number: Which of the block's refiners it is, from 0.
    """
    if refiner.options.each == "block":
        return [refine(view, refiner, number, emit)]
    if not view.subblocks:
        emit(Warned(f"{view.name}: {refiner.use} trains it as a whole: {WHY_WHOLE}"))
        return [refine(view, refiner, number, emit)]
    done = []
    for one in view.subblocks:
        with one.opened():
            done.append(refine(one, refiner, number, emit))
    return done


def refine(view: RefinedView, refiner: PartSpec, number: int, emit: Callable[[Event], None]) -> Refined:
    """Let a refiner train a view, and take back what made it worse.

    It is not called for one that has no error at all, as of a block that was left whole. One that knows a ``gentler``
    one is tried again by that, from where it began.

    :param view: Opened.
    :param number: Which of its refiners it is, from 0.
    """
    started = perf_counter()
    view.weights.remember()
    before = _errors(view)
    if not before:
        raise NotFiniteError(  # a plan that is only tried is not taken then
            f"{view.name}: as it was pruned it is infinitely far from the dense model on the calibration data, or what "
            f"it gives is NaN, so that {refiner.use} has nothing to begin from. Prune less, or leave it out of refine:"
        )
    is_better, after = False, before
    if any(before.values()):  # nothing is better than no error
        is_better, after = _trained(view, refiner, number, before, emit)
    done = Refined(view.name, refiner.use, before, after, is_better, perf_counter() - started, number)
    emit(done)
    return done


def _trained(
    view: RefinedView, refiner: PartSpec, number: int, before: dict[str, float], emit: Callable[[Event], None]
) -> tuple[bool, dict[str, float]]:
    """Let it train by steps that are ever gentler, and say whether the view is better for it, and its errors then."""
    weights = view.weights
    tries, is_better, after = min(view.failed_before(), _TRIES - 1), False, dict[str, float]()
    one = _gentlest(refiner, tries)
    while one is not None and not is_better:
        view.begin_try(tries)
        who = f"the refiner {refiner.use}, at {view.name},"
        drawing = seeded(seed_for(view.seed, "refine", view.name, number, tries))
        with settings_put_back(), drawing, weights.trained_alone(who, view.shown), blaming(who):
            _has_run(who, one(view))
        weights.round()
        after, tries = _errors(view), tries + 1
        is_better = bool(after) and after["held_out"] < before["held_out"]
        if not is_better:
            weights.restore()
            one = _gentler(one, refiner.use) if tries < _TRIES else None
    for sentence in _doubts(view, refiner, before, after, tries):
        emit(Warned(sentence))
    return is_better, after


def _has_run(who: str, answer: object) -> None:
    """Refuse a refiner of which nothing has run, because it is written as what yields or is waited for."""
    if not (isgenerator(answer) or isasyncgen(answer) or iscoroutine(answer)):
        return
    said = shown(answer)
    if not isasyncgen(answer):
        answer.close()  # Python warns of a coroutine that nobody waits for
    raise ModelError(
        f"{who} gave {said}, of which nothing has run: a refiner trains view.parameters in place when it is called. "
        f"Have it do so without yield or async"
    )


def _gentlest(refiner: PartSpec, tries: int) -> Any:
    """Give the refiner that is tried after so many others."""
    one = refiner.built
    for _ in range(tries):
        one = _gentler(one, refiner.use)
    return one


def _gentler(one: Any, name: str) -> Any:
    with blaming(f"the refiner {name}, asked for a gentler one,"):
        found = options_of(RefinerOptions, one).gentler()
    if found is not None and not callable(found):
        raise ModelError(f"the refiner {name}: its gentler() gave {shown(found)}; it gives a refiner, or None for none")
    return found


def _errors(view: RefinedView) -> dict[str, float]:
    """Measure held-out batches, and as many of those that are trained on; all of them would cost as training does.

    Nothing is given where they are not finite, or the weights are not.
    """
    if not view.weights.are_finite():
        return {}
    errors = {
        "training": view.measure(view.training[: len(view.held_out)]),
        "held_out": view.measure(view.held_out),
    }
    return errors if all(map(isfinite, errors.values())) else {}


def _doubts(
    view: RefinedView, refiner: PartSpec, before: dict[str, float], after: dict[str, float], tries: int
) -> Iterator[str]:
    """Say what the user should know of an outcome: that it was taken back, or what it could not be judged by."""
    undone = f"was undone{f', also by smaller steps, {tries} times in all' if tries > 1 else ''}"
    where = f"the refiner {refiner.use} at {view.name}"
    if not after:
        yield f"{where} gave NaN or infinite numbers, and {undone}: a smaller learning rate may help"
    elif not after["held_out"] < before["held_out"]:
        cure = "more calibration samples may help, or fewer steps"
        yield (
            f"{where} did not lower the error on held-out calibration data ({before['held_out']:.4g}, then "
            f"{after['held_out']:.4g}), and {undone}: {cure if tries > 1 else f'a smaller learning rate, or {cure}'}"
        )
    if view.training == view.held_out:
        yield (
            "there is a single calibration batch, so refiners are judged by what they were trained on: more samples, "
            "or a smaller batch_size, leave some to be held out"
        )
