"""What is learnt of a block's layers while it runs: statistics over their real tokens, shared where inputs are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import ReferenceType, ref

import torch
from jaxtyping import Int8
from torch import Tensor

from ecoflap.core.errors import ModelError
from ecoflap.core.model.anatomy import Block, Layer

TokensOf = Callable[[str, int], Int8[Tensor, "batch tokens"]]


class Observation:
    """Sums statistics over all batches of one block.

    Layers that are fed the same tensor object share one statistic, so q, k and v cost one Gram matrix, not three.

    :param needs: The statistics' types; each layer gets one of each.
    """

    def __init__(self, block: Block, layers: Sequence[Layer], needs: Sequence[type[Any]]) -> None:
        self._block, self._layers, self._needs = block, layers, needs
        self._leader: dict[str, str] = {}
        self._statistics: dict[str, tuple[Any, ...]] = {}
        self._inputs: dict[int, tuple[ReferenceType[Tensor], str]] = {}
        self._rows: dict[tuple[str, int], Tensor] = {}
        self._tokens_of: TokensOf
        self.call = 0
        """Which call of the block in one forward is being seen."""

    def begin(self, tokens_of: TokensOf) -> None:
        """A new batch: ``tokens_of(tower, call)`` says what its positions are."""
        self._tokens_of = tokens_of
        self._inputs.clear()
        self._rows.clear()

    def see(self, layer: Layer, inputs: Tensor) -> None:
        """Add one layer's input, unless another layer's statistic has it already."""
        leader = self._first_fed(layer, inputs)
        known = self._leader.setdefault(layer.name, leader)
        if known != leader:
            if known != layer.name:
                raise ModelError(f"{layer.name} shares its input with {known} in some batches and not in others")
            leader = known
        if leader == layer.name:
            tokens = self._real_tokens(layer, inputs)
            for statistic in self._statistics_of(layer, inputs.device):
                statistic.add(tokens)

    def _first_fed(self, layer: Layer, inputs: Tensor) -> str:
        """The first layer that was fed this very tensor in this batch."""
        # A weak reference: an id may be used again once its tensor is gone, and holding the tensor costs its memory.
        reference, leader = self._inputs.get(id(inputs), (None, ""))
        if reference is None or reference() is not inputs:
            leader = layer.name
            self._inputs[id(inputs)] = ref(inputs), leader
        return leader

    def _statistics_of(self, layer: Layer, device: torch.device) -> tuple[Any, ...]:
        if layer.name not in self._statistics:
            in_features = layer.shape[1]
            self._statistics[layer.name] = tuple(need(in_features).to(device) for need in self._needs)
        return self._statistics[layer.name]

    def _real_tokens(self, layer: Layer, inputs: Tensor) -> Tensor:
        """``inputs`` without its padding, as ``[tokens, in]``."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        if layer.layout == "selected":
            return flat
        rows = self._real_rows(layer).to(inputs.device)
        if len(flat) != len(rows):
            raise ModelError(
                f"{layer.name}: its input {tuple(inputs.shape)} holds {len(flat)} tokens, but the tower it reads, "
                f"{layer.reads or self._block.tower!r}, has {len(rows)}. Its adapter's reads, layout or tokens is wrong"
            )
        return flat if bool(rows.all()) else flat[rows]

    def _real_rows(self, layer: Layer) -> Tensor:
        tower = layer.reads or self._block.tower
        call = 0 if layer.reads else self.call
        if (tower, call) not in self._rows:
            self._rows[tower, call] = self._tokens_of(tower, call) > 0
        rows = self._rows[tower, call]
        return (rows if layer.layout == "batch token" else rows.T).reshape(-1)

    def statistics(self) -> Mapping[str, Any]:
        """By layer: the statistic where one was needed, a tuple where several were, None where none was."""
        missing = [layer.name for layer in self._layers if layer.name not in self._leader]
        if missing:
            raise ModelError(
                f"{self._block.name} ran without these matrices being used through torch.nn.functional.linear, so "
                f"nothing is known of their inputs: {', '.join(missing)}. A method that needs inputs cannot prune them"
            )
        return {layer.name: self._answer(layer) for layer in self._layers}

    def _answer(self, layer: Layer) -> Any:
        statistics = self._statistics[self._leader[layer.name]]
        for statistic in statistics:
            if not _is_finite(statistic):
                raise ModelError(f"{layer.name}: its inputs hold NaN or infinite values on the calibration data")
        if len(statistics) > 1:
            return statistics
        return statistics[0] if statistics else None


def _is_finite(statistic: Any) -> bool:
    tensors = [value for value in vars(statistic).values() if isinstance(value, Tensor)]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
