"""What is learnt of a block's layers while it runs: statistics over their real tokens, shared where inputs are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import ReferenceType, ref

import torch
from jaxtyping import Bool, Float, Int8, Shaped
from torch import Tensor

from ecoflap.core.contracts.protocols import GradientStatistic
from ecoflap.core.contracts.records import Statistics
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.block_gradient import add_gradients, with_gradients
from ecoflap.core.forward.capture import Picked
from ecoflap.core.forward.placement import map_tensors
from ecoflap.core.forward.walk import BlockWatch
from ecoflap.core.model.anatomy import Block, Layer

TokensOf = Callable[[str, int], Int8[Tensor, "batch tokens"]]
WeightsOf = Callable[[str, int], Shaped[Tensor, "batch tokens"]]


class Observation(BlockWatch):
    """Sums statistics over all batches of one block.

    Layers that are fed the same tensor object share one statistic, so q, k and v cost one Gram matrix, not three. A
    statistic that takes gradients is each layer's own.

    :param needs: The statistics' types; each layer gets one of each.
    """

    def __init__(self, block: Block, layers: Sequence[Layer], needs: Sequence[type[Any]]) -> None:
        self._block, self._layers = block, layers
        self._names = frozenset(layer.name for layer in layers)
        self._of_inputs = [need for need in needs if not issubclass(need, GradientStatistic)]
        self._of_gradients = [need for need in needs if issubclass(need, GradientStatistic)]
        self._order = tuple(needs)
        self._leader: dict[str, str] = {}
        self._shared: dict[str, dict[type[Any], Any]] = {}
        self._own: dict[str, dict[type[Any], Any]] = {}
        self._inputs: dict[int, tuple[ReferenceType[Tensor], str]] = {}
        self._rows: dict[tuple[str, int], Tensor] = {}
        self._fed: set[str] = set()  # layers with a real token among their inputs
        self._tokens_of: TokensOf
        self._weights_of: WeightsOf
        self._call = 0  # which call of the block in one forward is being seen

    def begin(self, tokens_of: TokensOf, weights_of: WeightsOf) -> None:
        """Begin a new batch, of whose positions functions of tower and call say what they are and how much they count.

        One that counts w adds √w times its input, so that it counts w in a sum of squares.
        """
        self._tokens_of, self._weights_of = tokens_of, weights_of
        self._inputs.clear()
        self._rows.clear()

    def around(self, number: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], run: Callable[[], Any]) -> Any:
        """Run the block, with a backward through it for each sample where a statistic takes gradients."""
        self._call = number
        if not self._of_gradients:
            return run()
        with with_gradients(self._block, self._layers):
            output = run()
            add_gradients(self._block, self._layers, output, self._real_positions(), self._add_gradient)
        return map_tensors(output, Tensor.detach)

    def see(self, layer: Layer, inputs: Float[Tensor, "... in"], picked: Picked | None = None) -> None:
        """Add one layer's input, unless another layer's statistic has it already.

        :param picked: Which rows of the hidden states they were picked as, where that is known.
        """
        if layer.name not in self._names:
            return
        leader = self._first_fed(layer, inputs)
        known = self._leader.setdefault(layer.name, leader)
        if known != leader:
            if known != layer.name:
                raise ModelError(f"{layer.name} shares its input with {known} in some batches and not in others")
            leader = known
        mine = self._made(self._own, self._of_gradients, layer, inputs.device)
        theirs = self._made(self._shared, self._of_inputs, layer, inputs.device) if leader == layer.name else {}
        if mine or theirs or layer.layout == "routed":
            tokens = self._counted_tokens(layer, inputs, picked)
            self._fed.update([layer.name] if len(tokens) else [])
            for statistic in (*mine.values(), *theirs.values()):
                statistic.add(tokens)

    def _add_gradient(self, layer: Layer, gradient: Float[Tensor, "out in"]) -> None:
        for statistic in self._own.get(layer.name, {}).values():  # an expert without a token has none
            statistic.add_gradient(gradient)

    def _real_positions(self) -> Bool[Tensor, "batch tokens"] | None:
        if self._layers[0].layout == "selected":
            return None
        return self._tokens_of(self._block.tower, self._call) > 0

    def _first_fed(self, layer: Layer, inputs: Tensor) -> str:
        """Name the first layer that was fed this very tensor in this batch."""
        # A weak reference: an id may be used again once its tensor is gone, and holding the tensor costs its memory.
        reference, leader = self._inputs.get(id(inputs), (None, ""))
        if reference is None or reference() is not inputs:
            leader = layer.name
            self._inputs[id(inputs)] = ref(inputs), leader
        return leader

    def _made(
        self,
        of: dict[str, dict[type[Any], Any]],
        needs: Sequence[type[Any]],
        layer: Layer,
        device: torch.device,
    ) -> dict[type[Any], Any]:
        """Give the layer's statistics of these types, made when it is first seen."""
        if layer.name not in of:
            in_features = layer.shape[1]
            of[layer.name] = {need: need(in_features).to(device) for need in needs}
        return of[layer.name]

    def _counted_tokens(self, layer: Layer, inputs: Tensor, picked: Picked | None) -> Tensor:
        """Give the inputs of positions that count, as ``[tokens, in]``."""
        flat = inputs.detach().reshape(-1, inputs.shape[-1])
        if layer.layout == "selected":
            return flat
        rows = self._row_weights(layer).to(inputs.device)
        if layer.layout == "routed":
            if picked is not None and picked.of == len(rows):
                return _weighted(flat, rows[picked.rows])
            # An expert that is given every position has zeros where the router gave it none.
            rows = rows * flat.ne(0).any(1) if len(flat) == len(rows) else rows
        if len(flat) != len(rows) and layer.layout == "routed":
            raise ModelError(
                f"{layer.name}: a router gives it {len(flat)} rows, and which of the {len(rows)} positions they are "
                f"could not be followed, so neither could what of them is padding. Experts of this kind cannot be "
                f"pruned"
            )
        if len(flat) != len(rows):
            raise ModelError(
                f"{layer.name}: its input {tuple(inputs.shape)} holds {len(flat)} tokens, but the tower it reads, "
                f"{layer.reads or self._block.tower!r}, has {len(rows)}. Its adapter's reads, layout or tokens is wrong"
            )
        return _weighted(flat, rows)

    def _row_weights(self, layer: Layer) -> Tensor:
        tower = layer.reads or self._block.tower
        call = 0 if layer.reads else self._call
        if (tower, call) not in self._rows:
            self._rows[tower, call] = self._weights_of(tower, call)
        rows = self._rows[tower, call]
        return (rows.T if layer.layout == "token batch" else rows).reshape(-1)

    def statistics(self) -> Mapping[str, Statistics]:
        """Give each layer's statistics by its name.

        :raises ModelError: Where a layer was not seen, or its inputs are not finite.
        """
        unseen = [layer for layer in self._layers if layer.name not in self._leader]
        unused = [layer.name for layer in unseen if layer.layout != "routed"]
        if unused:
            raise ModelError(
                f"{self._block.name} ran without these matrices being multiplied with anything, so nothing is known of "
                f"their inputs: {', '.join(unused)}. A method that needs inputs cannot prune them"
            )
        return {layer.name: self._answer(layer) for layer in self._layers}

    def _answer(self, layer: Layer) -> Statistics:
        if layer.layout == "routed" and layer.name not in self._fed:
            return self._by_weight_alone(layer)
        found = {**self._shared[self._leader[layer.name]], **self._own[layer.name]}
        for statistic in found.values():
            if not _is_finite(statistic):
                raise ModelError(f"{layer.name}: its inputs hold NaN or infinite values on the calibration data")
        return Statistics({need: found[need] for need in self._order})

    def _by_weight_alone(self, layer: Layer) -> Statistics:
        """Give statistics of an expert that saw no token: as though each input had come once and alone.

        Then ‖X_j‖ is 1 and X Xᵀ the identity, so that what is left for a method to look at is the weight.
        """
        found = Statistics({need: need(layer.shape[1]).to(layer.weight.device) for need in self._order}, is_fed=False)
        for statistic in found.values():
            statistic.add(torch.eye(layer.shape[1], device=layer.weight.device))
            if isinstance(statistic, GradientStatistic):
                statistic.add_gradient(torch.ones_like(layer.weight))
        return found


def _weighted(flat: Float[Tensor, "tokens in"], weights: Shaped[Tensor, " tokens"]) -> Float[Tensor, "some in"]:
    """Give the rows that count, each times the root of its weight."""
    counts = weights != 0
    some = flat if bool(counts.all()) else flat[counts]
    return some * weights[counts].sqrt()[:, None] if weights.is_floating_point() else some


def _is_finite(statistic: Any) -> bool:
    tensors = [value for value in vars(statistic).values() if isinstance(value, Tensor)]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
