"""Means over samples have standard errors that know which samples depend on each other."""

import math
from collections.abc import Hashable, Sequence
from hashlib import sha256

from ecoflap.core.contracts.records import Measure, Sample


def image_of(sample: Sample, number: int) -> Hashable:
    """Give what samples of one image have in common: its name, or without one its pixels.

    :param number: The sample's own number, by which one without an image is known.
    """
    if sample.image_id is not None:
        return sample.image_id
    if sample.image is None:
        return number, "no image"
    return sha256(repr((sample.image.mode, sample.image.size)).encode() + sample.image.tobytes()).digest()


def mean_over_images(values: Sequence[float], images: Sequence[Hashable], unit: str) -> Measure:
    """Take the mean of values, of which those of one image may depend on each other.

    The standard error is √(C/(C − 1)·Σ(Σ(x − mean))²)/n over C images, the inner sum being over one image's values.
    With one value an image that is s/√n.

    :param images: What each value's image is known by.
    :param unit: What the values are of, such as ``questions``.
    """
    n, total = len(values), math.fsum(values)
    deviations: dict[Hashable, float] = {}
    for value, image in zip(values, images, strict=True):
        deviations[image] = deviations.get(image, 0.0) + value - total / n
    count = len(deviations)
    squares = math.fsum(deviation**2 for deviation in deviations.values())
    error = math.sqrt(count / (count - 1) * squares) / n if count > 1 else math.inf
    return Measure(total / n, n, error, unit)


def mean_of_means(means: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Take the mean over everything that some means are over, with its standard error.

    The error takes the means as independent of each other; it is infinite for a single one.

    :param counts: How many things each mean is over.
    """
    number, total = len(means), sum(counts)
    mean = sum(m * n for m, n in zip(means, counts, strict=True)) / total
    spread = sum((n / total * (m - mean)) ** 2 for m, n in zip(means, counts, strict=True))
    return mean, math.sqrt(spread * number / (number - 1)) if number > 1 else math.inf
