"""What evaluators share that have a model sort images into classes: labels against scores, and accuracies."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ecoflap.core.contracts.records import Measure, Sample
from ecoflap.core.errors import DataError, ModelError
from ecoflap.plugins.evaluators.shared.comparing import batches
from ecoflap.plugins.evaluators.shared.generating import image_of, mean
from ecoflap.plugins.evaluators.shared.ranking import Ranked, cutoffs_below, found_within

CUTOFFS = (1, 5)


def accuracies(
    name: str,
    samples: Iterable[Sample],
    size: int,
    classes_of: Callable[[list[Sample]], Float[Tensor, "images classes"]],
    prefix: str = "",
) -> Mapping[str, Measure]:
    """Top-1 and top-5 accuracy from 0 to 1, each k as far as there are more classes than that.

    :param name: The evaluator's, for messages.
    :param size: Images at a time.
    :param classes_of: How well each class fits each image.
    :param prefix: Of the measures' names.
    """
    found: dict[int, list[float]] = {}
    images: list[Hashable] = []
    for batch in batches(samples, size):
        scores, right = labelled(name, classes_of(batch), [sample.label for sample in batch])
        cutoffs = cutoffs_below(scores.shape[1], CUTOFFS)
        for k, column in zip(cutoffs, found_within(scores, right, cutoffs).T, strict=True):
            found.setdefault(k, []).extend(column.tolist())
        images += [image_of(sample, len(images) + number) for number, sample in enumerate(batch)]
    if not images:
        raise DataError(f"{name}: its data holds no image.")
    return {f"{prefix}top-{k}": mean(values, images, "images") for k, values in found.items()}


def labelled(name: str, scores: Float[Tensor, "images classes"], labels: Sequence[int | None]) -> Ranked:
    """Scores on the CPU, and which class of each image is the right one."""
    classes = scores.shape[1]
    known = [label for label in labels if label is not None]
    wrong = sorted({label for label in known if not 0 <= label < classes})
    if len(known) < len(labels):
        raise DataError(f"{name}: {len(labels) - len(known)} of {len(labels)} images have no label. Give all of them.")
    if wrong:
        raise DataError(f"{name}: the data has the labels {wrong[:5]}, and there are classes 0 to {classes - 1}.")
    if not scores.isfinite().all():
        raise ModelError(f"{name}: the model's scores of an image are not finite; the model is broken.")
    return scores.cpu(), torch.arange(classes) == torch.tensor(known)[:, None]
