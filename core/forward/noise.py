"""Gaussian noise that depends on what it is for, and on nothing else.

Each draw has its own generator on the CPU, seeded by the recipe's seed and a name: a score depends neither on the order
in which layers are scored nor on how many processes share the work, and the global generator is never touched.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def gaussian(shape: tuple[int, ...], seed: int, *names: str | int) -> Float[Tensor, "..."]:
    """Draw z ~ N(0, 1) in float32 on the CPU.

    :param names: What it is for, such as the layer's name, the batch's number and the draw's.
    """
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed_for(seed, *names)))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators for a while; afterwards they are as they were."""
    before = GeneratorStates.now()
    seed_generators(seed)
    try:
        yield
    finally:
        before.restore()


def seed_generators(seed: int) -> None:
    """Seed the global generators, which whoever calls puts back."""
    for generator in _generators():
        # torch.manual_seed would note a stack trace each time for a CUDA that may never come
        generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # it takes no larger ones


class GeneratorStates:
    """Holds the states that the global generators had at some moment, to which they may be put back.

    :param states: Of torch's, the CPU's first.
    :param others: Of Python's ``random`` and of numpy.
    """

    def __init__(self, states: Sequence[UInt8[Tensor, " bytes"]], others: tuple[Any, Any]) -> None:
        self._states, self._others = states, others

    @classmethod
    def now(cls) -> "GeneratorStates":
        """Take the states that they have now."""
        return cls([generator.get_state() for generator in _generators()], (random.getstate(), np.random.get_state()))

    def restore(self) -> None:
        """Put the generators back to these states."""
        # One of a CUDA that was not there yet stays as it is.
        for generator, state in zip(_generators(), self._states, strict=False):
            generator.set_state(state)
        of_python, of_numpy = self._others
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def _generators() -> list[torch.Generator]:
    on_gpus = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    return [torch.default_generator, *on_gpus]


def seed_for(seed: int, *names: str | int) -> int:
    """Derive a 63-bit seed from the recipe's seed and any names."""
    digest = sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
