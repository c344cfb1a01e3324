"""Gaussian noise that depends on what it is for, and on nothing else.

Each draw has its own generator on the CPU, seeded by the recipe's seed and a name: a score depends neither on the order
in which layers are scored nor on how many processes share the work, and the global generator is never touched.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ecoflap.core.seeding import seed_for


def gaussian(shape: tuple[int, ...], seed: int, *names: str | int) -> Float[Tensor, "..."]:
    """Draw z ~ N(0, 1) in float32 on the CPU.

    :param names: What it is for, such as the layer's name, the batch's number and the draw's.
    """
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed_for(seed, *names)))
