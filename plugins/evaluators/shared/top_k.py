"""Top-k measures tell whether the right one of several candidates is among the k that a model scores highest."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ecoflap.core.contracts.records import Answered, Measure, Sample
from ecoflap.core.errors import DataError, ModelError, first_of
from ecoflap.core.ranks.ranks import Ranks
from ecoflap.plugins.evaluators.shared.batches import batches
from ecoflap.plugins.evaluators.shared.means import image_of, mean_over_images

CLASS_CUTOFFS = (1, 5)
"""Each k that accuracies of classification are given for."""

Ranked = tuple[Float[Tensor, "rows candidates"], Bool[Tensor, "rows candidates"]]
"""How well each candidate fits, and whether it is right."""


def found_within(
    scores: Float[Tensor, "rows candidates"], right: Bool[Tensor, "rows candidates"], cutoffs: Sequence[int]
) -> Float[Tensor, "rows cutoffs"]:
    """Give for each row the chance that a right candidate is among the first k, those of equal score being shuffled.

    Without ties this is 0 or 1. A model that finds all alike is so credited with luck, and with no more: counting the
    order in which candidates happen to stand would give it all or nothing.

    :param cutoffs: Each k, at least 1.
    """
    best = scores.masked_fill(~right, -math.inf).amax(1, keepdim=True)
    above = ((scores > best) & ~right).sum(1)
    level = ((scores == best) & ~right).sum(1)
    alike = ((scores == best) & right).sum(1)
    missed = torch.stack([_missed(above, level, alike, k) for k in cutoffs], 1)
    return torch.where(right.any(1, keepdim=True), 1 - missed, 0.0)


def _missed(
    above: Int64[Tensor, " rows"], level: Int64[Tensor, " rows"], alike: Int64[Tensor, " rows"], k: int
) -> Float[Tensor, " rows"]:
    """Compute the chance that no right candidate is among the first k.

    :param above: How many wrong candidates score higher than the best right one.
    :param level: How many wrong ones score the same as it; k − above are drawn from these and from those alike.
    :param alike: How many right ones score the same as it.
    """
    missed = torch.ones(above.shape, dtype=torch.float64, device=above.device)
    for drawn in range(k):
        others, left = (level - drawn).clamp(min=0).double(), (level + alike - drawn).clamp(min=1)
        missed = torch.where(above + drawn < k, missed * others / left, missed)
    return missed


def cutoffs_below(candidates: int, usual: Sequence[int]) -> tuple[int, ...]:
    """Give each k that can be missed: among five candidates one of the first five is always right."""
    return tuple(k for k in usual if k < candidates)


def class_accuracies(
    name: str,
    samples: Iterable[Sample],
    size: int,
    scores_of: Callable[[list[Sample]], Float[Tensor, "images classes"]],
    ranks: Ranks,
    prefix: str = "",
) -> Mapping[str, Measure]:
    """Measure top-1 and top-5 accuracy, from 0 to 1, each where there are more classes than that.

    :param name: The evaluator's name, for messages.
    :param size: How many images are a batch.
    :param scores_of: Scores how well each class fits each image.
    :param ranks: The processes that score a share of the batches each.
    :param prefix: What the measures' names begin with.
    :raises DataError: Where there is no image, or one without a label that is a class's number.
    """

    def compute(numbered: tuple[int, list[Sample]]) -> tuple[str, list[tuple[Hashable, dict[int, float]]]]:
        number, batch = numbered
        scores, right = _labelled(name, scores_of(batch), [sample.label for sample in batch])
        cutoffs = cutoffs_below(scores.shape[1], CLASS_CUTOFFS)
        images = [image_of(sample, size * number + place) for place, sample in enumerate(batch)]
        rows = found_within(scores, right, cutoffs).tolist()
        chances = (dict(zip(cutoffs, row, strict=True)) for row in rows)
        return "sentences" if batch[0].images else "images", list(zip(images, chances, strict=True))

    parts = ranks.deal(enumerate(batches(samples, size)), compute)
    if not parts:
        raise DataError(f"{name}: its data holds no image.")
    images, chances = zip(*(one for _, part in parts for one in part), strict=True)
    unit = parts[0][0]
    return {
        f"{prefix}top-{k}": mean_over_images([of_image[k] for of_image in chances], images, unit) for k in chances[0]
    }


def likeliest_classes(
    name: str,
    samples: Iterable[Sample],
    size: int,
    scores_of: Callable[[list[Sample]], Float[Tensor, "images classes"]],
) -> Iterator[Answered]:
    """Yield for each image the number of the class that fits it best, of several the first.

    :param name: The evaluator's name, for messages.
    :param size: How many images are a batch.
    :param scores_of: Scores how well each class fits each image.
    """
    number = 0
    for batch in batches(samples, size):
        scores = scores_of(batch)
        _refuse_broken(name, scores)
        for sample, best in zip(batch, scores.argmax(1).tolist(), strict=True):
            yield Answered(best, image_of(sample, number))
            number += 1


def _refuse_broken(name: str, scores: Float[Tensor, "images classes"]) -> None:
    if not scores.isfinite().all():
        raise ModelError(f"{name}: the model's scores of an image are not finite; the model is broken.")


def _labelled(name: str, scores: Float[Tensor, "images classes"], labels: Sequence[int | None]) -> Ranked:
    """Give the scores on the CPU, and which class of each image is the right one."""
    classes = scores.shape[1]
    known = [label for label in labels if label is not None]
    wrong = sorted({label for label in known if not 0 <= label < classes})
    if len(known) < len(labels):
        raise DataError(f"{name}: {len(labels) - len(known)} of {len(labels)} images have no label. Give all of them.")
    if wrong:
        named = first_of([str(label) for label in wrong], 5)
        raise DataError(f"{name}: the data has the labels {named}, and there are classes 0 to {classes - 1}.")
    _refuse_broken(name, scores)
    return scores.cpu(), torch.arange(classes) == torch.tensor(known)[:, None]
