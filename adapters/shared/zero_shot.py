"""A zero-shot classifier: the text embeddings of a data set's classes, in a file of one tensor."""

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ecoflap.core.errors import DataError


def read_classifier(file: Path) -> Float[Tensor, "classes features"]:
    """The one tensor of a safetensors file, whatever its name.

    :raises DataError: Where the file is not there, of another format, or holds anything else.
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
