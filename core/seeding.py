"""Seeds, and the global generators of torch, Python and numpy, which are put back once they have served.

What is drawn in a run follows from the recipe's seed and from what it is for, and not from what was drawn before.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor


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
        others = random.getstate(), np.random.get_state()  # first: what checks types in tests draws from Python's
        return cls([generator.get_state() for generator in _generators()], others)

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
