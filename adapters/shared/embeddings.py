"""Compare vectors of images and texts: scale them to length one, give cosines, read those of classes from a file."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ecoflap.core.errors import DataError


def unit_vectors(made: Any) -> Float[Tensor, "*rows features"]:
    """Scale vectors to length one along their last axis, in float32.

    A vector of zeros stays one, and its cosine with every other is 0.

    :param made: The vectors, or what transformers 5 gives in their place, which has them as its ``pooler_output``.
    """
    vectors: Tensor = made if isinstance(made, Tensor) else made.pooler_output
    return F.normalize(vectors.float(), dim=-1)


def cosines(
    images: Float[Tensor, "images features"], texts: Float[Tensor, "texts features"]
) -> Float[Tensor, "images texts"]:
    """Give the cosine of each image with each text, in float32, of vectors of any length and type."""
    return unit_vectors(images) @ unit_vectors(texts.to(images)).T


def read_classifier(file: Path) -> Float[Tensor, "classes features"]:
    """Read a zero-shot classifier, the text embeddings of a data set's classes: the one tensor of a safetensors file.

    :raises DataError: Where the file is not there or of another format, holds anything else, or numbers that are not
        finite.
    """
    wanted = "a zero-shot classifier is a safetensors file of one tensor [classes, features] of text embeddings"
    if not file.is_file():
        raise DataError(f"classifier: {file} is not there; {wanted}.")
    try:
        with safe_open(file, framework="pt") as stored:
            found: dict[str, Tensor] = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"classifier: {file} cannot be read ({error}); {wanted}.") from error
    tensors = list(found.values())
    if len(tensors) != 1 or tensors[0].ndim != 2 or not tensors[0].is_floating_point():
        held = ", ".join(f"{name} {tuple(one.shape)} {one.dtype}" for name, one in found.items()) or "none"
        raise DataError(f"classifier: {file} holds {held}; {wanted}.")
    if not torch.isfinite(tensors[0]).all():
        raise DataError(f"classifier: {file} holds NaN or infinite values.")
    return tensors[0]
