"""Which rows of a layer's input count, and how much, by what its adapter says of each position."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ecoflap.core.errors import ModelError
from ecoflap.core.forward.capture import Picked
from ecoflap.core.model.anatomy import Block, Layer

PerPosition = Callable[[str, int], Shaped[Tensor, "batch tokens"]]
"""Gives a number for each position of a batch, by a tower's name and the call of its block in one forward."""


class CountedTokens:
    """Picks the inputs of positions that count, batch by batch."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._weights: dict[tuple[str, int], Shaped[Tensor, "batch tokens"]] = {}
        self._weights_of: PerPosition

    def begin(self, weights_of: PerPosition) -> None:
        """Begin a new batch, of whose positions a function of tower and call says how much they count."""
        self._weights_of = weights_of
        self._weights.clear()

    def of(
        self, layer: Layer, inputs: Float[Tensor, "... in"], call: int, picked: Picked | None
    ) -> Float[Tensor, "some in"]:
        """Give the inputs of positions that count. One that counts w is given √w times, so that it counts w in a sum
        of squares.

        :param call: Which call of the block in one forward they are seen in.
        :param picked: Which rows of the hidden states they were picked as, where that is known.
        :raises ModelError: Where the input is not laid out as the adapter says, or nobody knows which positions it has.
        """
        flat = inputs.detach().reshape(-1, inputs.shape[-1])
        if layer.layout == "selected":
            return flat
        declared = self._declared(layer, call)
        rows = declared.reshape(-1).to(inputs.device)
        if layer.layout == "routed":
            if picked is not None and picked.of == len(rows):
                return _weighted(flat, rows[picked.rows])
            # An expert that is given every position has zeros where the router gave it none.
            rows = rows * flat.ne(0).any(1) if len(flat) == len(rows) else rows
        if len(flat) != len(rows):
            self._refuse(layer, inputs, len(flat), len(rows))
        _refuse_turned(layer, inputs, declared)
        return _weighted(flat, rows)

    def _declared(self, layer: Layer, call: int) -> Shaped[Tensor, "rows columns"]:
        """Give how much each position counts, laid out as the adapter says that the layer's input is."""
        key = (layer.reads or self._block.tower, 0 if layer.reads else call)
        if key not in self._weights:
            self._weights[key] = self._weights_of(*key)
        weights = self._weights[key]
        return weights.T if layer.layout == "token batch" else weights

    def _refuse(self, layer: Layer, inputs: Tensor, given: int, known: int) -> None:
        if layer.layout == "routed":
            raise ModelError(
                f"{layer.name}: a router gives it {given} rows, and which of the {known} positions they are "
                f"could not be followed, so neither could what of them is padding. Experts of this kind cannot be "
                f"pruned"
            )
        raise ModelError(
            f"{layer.name}: its input {tuple(inputs.shape)} holds {given} tokens, but the tower it reads, "
            f"{layer.reads or self._block.tower!r}, has {known}. Its adapter's reads, layout or tokens is wrong"
        )


def _refuse_turned(layer: Layer, inputs: Tensor, declared: Shaped[Tensor, "rows columns"]) -> None:
    """Refuse an input that is laid out the other way round, so that padding would be taken for tokens.

    Where all positions count alike, as an image's do, nothing hangs on it; where samples are as many as positions,
    nothing shows it.
    """
    is_turned = inputs.shape[:-1] == declared.T.shape != declared.shape
    if is_turned and not torch.equal(declared.reshape(-1), declared.T.reshape(-1)):
        other = "batch token" if layer.layout == "token batch" else "token batch"
        raise ModelError(
            f"{layer.name}: its input {tuple(inputs.shape)} is laid out as {other!r}, and by its adapter's layout, "
            f"{layer.layout!r}, padding would be taken for tokens"
        )


def _weighted(flat: Float[Tensor, "tokens in"], weights: Shaped[Tensor, " tokens"]) -> Float[Tensor, "some in"]:
    """Give the rows that count, each times the root of its weight."""
    counts = weights != 0
    some = flat if bool(counts.all()) else flat[counts]
    return some * weights[counts].sqrt()[:, None] if weights.is_floating_point() else some
