"""Let a refiner train an opened view; it is judged on batches that it did not train on."""

from collections.abc import Callable, Iterator
from time import perf_counter

from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.events import Event, Refined, Warned
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.refining.views import RefinedView


def refine(view: RefinedView, refiner: PartSpec, emit: Callable[[Event], None]) -> Refined:
    """Let a refiner train a view, and take back what made it worse.

    :param view: Opened.
    """
    started = perf_counter()
    weights = view.weights
    weights.remember()
    before = _errors(view)
    with blaming(f"the refiner {refiner.use}, at {view.name},"):
        refiner.built(view)
    weights.round()
    after = _errors(view) if weights.are_finite() else {}
    is_better = bool(after) and after["held_out"] < before["held_out"]
    if not is_better:
        weights.restore()
    for sentence in _doubts(view, refiner, before, after):
        emit(Warned(sentence))
    done = Refined(view.name, refiner.use, before, after, is_better, perf_counter() - started)
    emit(done)
    return done


def _errors(view: RefinedView) -> dict[str, float]:
    """Measure held-out batches, and as many of those that are trained on; all of them would cost as training does."""
    return {
        "training": view.measure(view.training[: len(view.held_out)]),
        "held_out": view.measure(view.held_out),
    }


def _doubts(view: RefinedView, refiner: PartSpec, before: dict[str, float], after: dict[str, float]) -> Iterator[str]:
    """Say what the user should know of an outcome: that it was taken back, or what it could not be judged by."""
    where = f"the refiner {refiner.use} at {view.name}"
    if not after:
        yield f"{where} gave NaN or infinite weights, and was undone: a smaller learning rate may help"
    elif not after["held_out"] < before["held_out"]:
        yield (
            f"{where} did not lower the error on held-out calibration data ({before['held_out']:.4g}, then "
            f"{after['held_out']:.4g}), and was undone"
        )
    if view.training == view.held_out:
        yield (
            "there is a single calibration batch, so refiners are judged by what they were trained on: more samples, "
            "or a smaller batch_size, leave some to be held out"
        )
