"""What adapters that compare images with texts share: vectors of length one, and their cosines."""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def unit_vectors(made: Any) -> Float[Tensor, "*rows features"]:
    """Along the last axis, in float32. A vector of zeros stays one, whose cosine with everything is 0.

    :param made: The vectors, or what transformers 5 gives in their place, which has them as its ``pooler_output``.
    """
    vectors: Tensor = made if isinstance(made, Tensor) else made.pooler_output
    return F.normalize(vectors.float(), dim=-1)


def cosines(
    images: Float[Tensor, "images features"], texts: Float[Tensor, "texts features"]
) -> Float[Tensor, "images texts"]:
    """Of vectors of any length and type, in float32."""
    return unit_vectors(images) @ unit_vectors(texts.to(images)).T
