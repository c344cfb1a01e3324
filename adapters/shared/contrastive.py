"""What a contrastive loss asks of a recipe: that every batch holds at least two pairs."""

from collections.abc import Iterator

from ecoflap.core.recipe.schema import Calibration, Recipe


def pair_problems(recipe: Recipe) -> Iterator[str]:
    """A sentence for each calibration or evaluation whose batches would hold one pair, with a loss of 0 in any case.

    What a dataset does not say before it is read, how many samples it has, is left to the loss.
    """
    uses = ((where, keys.batch_size, samples) for where, keys, samples in _uses(recipe))
    yield from dict.fromkeys(problem for use in uses for problem in _problems(*use))
    for number, part in enumerate(recipe.evaluate):
        if part.trait("by_loss", False):  # it leaves none over
            yield from _problems(f"evaluate.{number}", part.parameters["batch_size"], None)


def _uses(recipe: Recipe) -> Iterator[tuple[str, Calibration, int | None]]:
    """Each use of a calibration: where the recipe has it, and how many of its samples are looked at."""
    if recipe.calibration is not None:
        yield "calibration", recipe.calibration, _samples(recipe.calibration)
    keys = recipe.score_calibration
    if recipe.score is not None and keys is not None:
        where = "calibration" if recipe.score.calibration is None else "score.calibration"
        counts = (_samples(keys), recipe.score.part.trait("samples", None))
        yield where, keys, min((count for count in counts if count is not None), default=None)


def _samples(keys: Calibration) -> int | None:
    """How many the dataset yields; None where it does not say so before it is read."""
    count: int | None = keys.data.trait("samples", None)
    return count


def _problems(where: str, size: int, samples: int | None) -> Iterator[str]:
    if size < 2:
        yield f"{where}.batch_size is {size}, but a contrastive loss compares pairs with each other: set 2 or more."
    elif samples is not None and samples % size == 1:
        yield (
            f"{where}.batch_size is {size}, which leaves one of {samples} samples over, but a contrastive loss "
            f"compares pairs with each other: let it divide their number, or leave more than one over."
        )
