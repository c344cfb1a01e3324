"""Gaussian noise that depends on what it is for, and on nothing else.

Each draw has its own generator on the CPU, seeded by the recipe's seed and a name: a score depends neither on the order
in which layers are scored nor on how many processes share the work, and the global generator is never touched.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import torch
from jaxtyping import Float
from torch import Tensor


def gaussian(shape: tuple[int, ...], seed: int, *names: str | int) -> Float[Tensor, "..."]:
    """Draw z ~ N(0, 1) in float32 on the CPU.

    :param names: What it is for, such as the layer's name, the batch's number and the draw's.
    """
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed_for(seed, *names)))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators for a while; afterwards they are as they were."""
    generators = [torch.default_generator]
    if torch.cuda.is_initialized():
        generators += torch.cuda.default_generators
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        # torch.manual_seed would note a stack trace each time for a CUDA that may never come
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def seed_for(seed: int, *names: str | int) -> int:
    """Derive a 63-bit seed from the recipe's seed and any names."""
    digest = sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
