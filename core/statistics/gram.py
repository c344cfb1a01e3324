"""The Gram matrix of a layer's inputs, which pruners that solve for the kept weights ask for.

    H = Σ_n x_n x_nᵀ over all tokens n, in float32

Inputs in bfloat16 are multiplied as they are where the library of kernels can: a product of two of them is exact in
float32, and torch has no such product on a CPU but by widening both, which takes twice as long and more.
"""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from jaxtyping import BFloat16, Float, Float32
from torch import Tensor

from ecoflap.core.errors import ModelError
from ecoflap.core.guards.untouched import writes
from ecoflap.core.kernel.route import route

_ROWS = 512  # enough for a matrix product at full speed
_STRIP = 384  # rows in a product by torch: fewer leave out more of what is above the diagonal, but are slower
_MIRRORED = 48  # columns at a time: the library leaves out what is above a diagonal of squares of this size


class Gram:
    """Sums x xᵀ over all tokens: the Hessian, up to a factor, of a layer's squared output error.

    Tokens are gathered until there are enough for one product. The products are then the same however the tokens came.
    The matrix is symmetric: what is above the diagonal is not summed, which saves nearly half of the time.

    :param in_features: The length of one input.
    """

    def __init__(self, in_features: int) -> None:
        self.in_features = in_features
        self.tokens = 0
        self._sum = torch.zeros(in_features, in_features, dtype=torch.float32)  # what is above the diagonal is no sum
        self._waiting = torch.zeros(_ROWS, in_features, dtype=torch.float32)
        self._waits = 0
        self._factors: dict[Hashable, tuple[Any, list[int | None]]] = {}

    @property
    def matrix(self) -> Float32[Tensor, "in in"]:
        """Give Σ x xᵀ over the tokens that were added, symmetric and in the inputs' unit squared.

        It is a new tensor each time.
        """
        whole = self._sum.clone()
        _add_products(whole, self._waiting[: self._waits])
        for start in range(0, self.in_features, _MIRRORED):
            strip = slice(start, start + _MIRRORED)
            whole[:start, strip] = whole[strip, :start].T
            square = whole[strip, strip]
            square.copy_(square.tril() + square.tril(-1).T)  # torch's differ in the last bit on the sides of a diagonal
        return whole

    def __getstate__(self) -> dict[str, Any]:
        """Give what another process is sent: the sum, and neither rows that wait nor what was derived."""
        return {"in_features": self.in_features, "tokens": self.tokens, "sum": self.matrix}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["in_features"])  # type: ignore[misc]
        self.tokens, self._sum = state["tokens"], state["sum"]
        self._waiting = self._waiting.to(self._sum.device)

    def add(self, inputs: Float[Tensor, "... in"]) -> None:
        """Add the products of some tokens' inputs; each counts once, whatever axes they lie along."""
        rows = inputs.detach().reshape(-1, self.in_features)
        self._changed(len(rows))
        self._wait_as(torch.bfloat16 if _multiplies(rows) else torch.float32)
        while len(rows):
            some = rows[: _ROWS - self._waits]
            self._waiting[self._waits : self._waits + len(some)] = some
            self._waits += len(some)
            rows = rows[len(some) :]
            if self._waits == _ROWS:
                _add_products(self._sum, self._waiting)
                self._waits = 0

    def cached(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what ``make()`` gives, which is kept under its key until inputs are added or the sums are moved.

        Layers with the same inputs share their statistic, and so what a pruner derives from the matrix.

        :param key: Names the pruner and whatever else the value depends on.
        :raises ModelError: Where what is kept was written into since: other layers would be given something else.
        """
        if key not in self._factors:
            made = make()
            self._factors[key] = made, _writes(made)
        kept, before = self._factors[key]
        if _writes(kept) != before:
            raise ModelError(
                f"what is kept under {key!r} was written into after it was made, and layers that share an input share "
                f"it: have it make a new tensor, value.pow(2) and not value.pow_(2)"
            )
        return kept

    def merge(self, other: "Gram") -> None:
        """Add the sum of another, taken over other tokens; what waits in it is summed there first."""
        self._changed(other.tokens)
        other._add_waiting()  # in place, so that there is no third matrix
        self._sum += other._sum.to(self._sum.device)

    def to(self, device: torch.device | str) -> "Gram":
        """Move the sum and the tokens that wait to a device, in place, and return itself."""
        if torch.device(device) != self._sum.device:
            self._sum, self._waiting = self._sum.to(device), self._waiting.to(device)
            self._factors.clear()
        return self

    def _wait_as(self, dtype: torch.dtype) -> None:
        """Have tokens of another type wait from now on."""
        if self._waiting.dtype != dtype:
            self._add_waiting()
            self._waiting = torch.zeros_like(self._waiting, dtype=dtype)

    def _add_waiting(self) -> None:
        """Add the tokens that wait for more of them."""
        waiting, self._waits = self._waiting[: self._waits], 0
        _add_products(self._sum, waiting)

    def _changed(self, tokens: int) -> None:
        self.tokens += tokens
        self._factors.clear()


def _multiplies(rows: Float[Tensor, "tokens in"]) -> bool:
    """Say whether the library multiplies tokens as they are."""
    return rows.dtype == torch.bfloat16 and not rows.is_cuda and route().adds_grams


def _add_products(total: Float32[Tensor, "in in"], rows: Float[Tensor, "tokens in"]) -> None:
    """Add the products of tokens to a total, at least up to its diagonal."""
    if not len(rows):  # torch would go over the whole total
        return
    if _multiplies(rows):
        _add_by_library(total, rows)
        return
    for start in range(0, len(total), _STRIP):
        stop = min(start + _STRIP, len(total))
        total[start:stop, :stop].addmm_(rows[:, start:stop].float().T, rows[:, :stop].float())


def _add_by_library(total: Float32[Tensor, "in in"], rows: BFloat16[Tensor, "tokens in"]) -> None:
    found = route()
    assert found.library is not None  # or it would not add
    tokens, features = rows.shape
    where, threads = (rows.data_ptr(), tokens, features, rows.stride(0), total.data_ptr()), torch.get_num_threads()
    found.library.call("add_gram", found.number, *where, threads)


def _writes(kept: Any) -> list[int | None]:
    """Count how often each tensor of a value was written to: one tensor, or those of a tuple or list."""
    if isinstance(kept, Tensor):
        return [writes(kept)]
    return [number for one in kept for number in _writes(one)] if isinstance(kept, tuple | list) else []
