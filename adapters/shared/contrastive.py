"""Ask of a recipe what a contrastive loss needs: that every batch holds at least two pairs."""

from collections.abc import Iterator
from typing import Any


def pair_problems(recipe: Any) -> Iterator[str]:
    """Yield a sentence for each calibration or evaluation that has a batch of one pair, whose loss is always 0.

    Where a dataset does not say before it is read how many samples it has, the loss itself refuses such a batch.

    :param recipe: The checked recipe, as a ``PlanContext`` has it.
    """
    yield from dict.fromkeys(problem for use in recipe.calibration_uses() for problem in _problems(*use))
    for number, evaluator in enumerate(recipe.evaluate):
        size = evaluator.options.loss_batch_size
        if size is not None and size < 2 and "batch_size" not in evaluator.parameters:
            yield (
                f"evaluate.{number}: {evaluator.use} reads one sample at a time, but a contrastive loss compares pairs "
                f"with each other: take loss, or retrieval."
            )
        elif size is not None:  # the evaluator itself sees to it that no sample is left over
            yield from _problems(f"evaluate.{number}", size, None)


def _problems(where: str, size: int, samples: int | None) -> Iterator[str]:
    if size < 2:
        yield f"{where}.batch_size is {size}, but a contrastive loss compares pairs with each other: set 2 or more."
    elif samples is not None and samples % size == 1:
        yield (
            f"{where}.batch_size is {size}, which leaves one of {samples} samples over, but a contrastive loss "
            f"compares pairs with each other: let it divide their number, or leave more than one over."
        )
