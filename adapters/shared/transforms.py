"""Put images through a transform, which timm and open_clip have in place of an image processor."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ecoflap.adapters.shared.images import images_of, pixels_of
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError


def transformed(transform: Any, samples: Sequence[Sample]) -> Float[Tensor, "batch channels height width"]:
    """Put the images of all samples through a transform and into one tensor.

    :param transform: Makes a tensor of a PIL image; an image processor of transformers will do too.
    :raises DataError: Where there is none, or it does not make tensors of one shape.
    """
    if not callable(transform) or hasattr(transform, "preprocess") or hasattr(transform, "image_processor"):
        if transform is None:
            raise DataError(
                "this model needs a transform from a PIL image to a tensor, and came without: give ecoflap.run a "
                "processor, such as timm.data.create_transform(...) or a transformers image processor."
            )
        return pixels_of(transform, samples)
    images = images_of(samples)
    try:
        return torch.stack([transform(image) for image in images])
    except (ValueError, TypeError, RuntimeError) as error:
        sizes = sorted({image.size for image in images})
        raise DataError(f"the transform cannot make one tensor of images of sizes {sizes[:4]}: {error}") from error
