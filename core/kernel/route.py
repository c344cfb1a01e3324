"""Choose how products with packed weights are computed: the library's fastest path, or torch, or what the user says.

``ECOFLAP_KERNEL`` names a path of the library (``avx2``), or ``torch``: a panel of rows is decoded and given to torch.
It is read once, when a process first plans a run, packs a model, loads one packed, or computes a product.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import torch

from ecoflap.core.errors import KernelError, unknown
from ecoflap.core.kernel.library import TYPES, VALUES, Library, Values, opened

VARIABLE = "ECOFLAP_KERNEL"
TORCH = "torch"
SAVED = {
    "avx2": "memory; time in float32 alone, and in int8 they cost time",
    "neon": "memory; whether time was not measured",
    "portable": "memory, but no time",
    TORCH: "memory, but no time",
}
"""What zeros save on a path, where it is not both: benchmarks/kernel.py measured it."""
BY_TORCH = "each panel of rows is decoded and multiplied by torch: right and small, but not fast"


@dataclass(frozen=True)
class Route:
    """Says how products are computed.

    :param library: None where there is none; then panels are decoded by numpy.
    :param number: Of the library's path; it decodes too where torch multiplies.
    :param name: Of the path, or ``torch``.
    :param why: In words, why it is this one.
    """

    library: Library | None
    number: int
    name: str
    why: str

    @property
    def saved(self) -> str:
        """Say what zeros save here, in words."""
        return SAVED.get(self.name, "memory and time")

    @property
    def told(self) -> str:
        """Say in a sentence what computes products and what zeros save so."""
        return f"Products are computed by {self.name}, where zeros save {self.saved}."

    @cached_property
    def batches(self) -> Mapping[tuple[torch.dtype, Values], int]:
        """Give the largest batch of each type that the library multiplies itself: 0 where it is left to torch."""
        if self.library is None or self.name == TORCH:
            return {}
        largest = self.library.functions.ecoflap_path_batch
        return {
            (dtype, values): int(largest(self.number, number + more))
            for dtype, number in TYPES.items()
            for values, more in VALUES.items()
        }

    @cached_property
    def adds_grams(self) -> bool:
        """Say whether the library adds Gram matrices of bfloat16, faster than torch does in float32."""
        if self.library is None or self.name == TORCH:
            return False
        return bool(self.library.functions.ecoflap_path_adds_grams(self.number))

    def batch(self, dtype: torch.dtype, values: Values = "exact") -> int:
        """Give the largest batch that the library multiplies itself."""
        return self.batches.get((dtype, values), 0)


@cache
def route() -> Route:
    """Give the way that is taken. A process chooses once: it is asked for at every product.

    :raises KernelError: Where ``ECOFLAP_KERNEL`` names a path that is not known, or that cannot be taken here.
    """
    return _route(os.environ.get(VARIABLE, ""))


def _route(named: str) -> Route:
    library = opened()
    if isinstance(library, str):
        return _without(named, library)
    paths = library.paths()
    usable = [path for path in paths if not path.lacks]
    if named == TORCH:
        return Route(library, usable[0].number, TORCH, f"{VARIABLE} says so: {BY_TORCH}")
    if not named:
        return Route(library, usable[0].number, usable[0].name, "it is the fastest that this CPU has")
    choices = [*(path.name for path in paths), TORCH]
    if named not in choices:
        raise KernelError(f"{VARIABLE}={named}: {unknown('path', named, choices)}")
    (path,) = (path for path in paths if path.name == named)
    if path.lacks:
        can = ", ".join([*(path.name for path in usable), TORCH])
        raise KernelError(f"{VARIABLE}={named}: {path.lacks}. Here it may be {can}; unset, it is {usable[0].name}.")
    return Route(library, path.number, path.name, f"{VARIABLE} says so")


def _without(named: str, reason: str) -> Route:
    if named not in ("", TORCH):
        raise KernelError(f"{VARIABLE}={named}: {reason}. Unset it, and torch multiplies.")
    return Route(None, 0, TORCH, f"{reason}. Until then {BY_TORCH}")
