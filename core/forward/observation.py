"""What is learnt of a block's layers while it runs: statistics over their real tokens, shared where inputs are."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import ReferenceType, ref

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.protocols import GradientStatistic
from ecoflap.core.contracts.records import PADDING, Statistics
from ecoflap.core.errors import ModelError, NotFiniteError
from ecoflap.core.forward.block_gradient import add_gradients, with_gradients
from ecoflap.core.forward.capture import Picked
from ecoflap.core.forward.counted_tokens import CountedTokens, PerPosition
from ecoflap.core.forward.nested import map_tensors
from ecoflap.core.forward.unfed import refuse_unfed
from ecoflap.core.forward.walk import BlockWatch, Finished
from ecoflap.core.guards.untouched import watched, writes
from ecoflap.core.machine.part_code import is_ours
from ecoflap.core.model.anatomy import Block, Layer
from ecoflap.core.ranks.ranks import Ranks
from ecoflap.core.ranks.shares import owners

_Sums = dict[type[Any], Any]
"""Statistics by their type."""
_Key = tuple[str, str]
"""Of sums: a layer's name, and what they are of: ``inputs``, or the ``gradient``."""


@dataclass(frozen=True)
class Observed:
    """Tells what was learnt of some layers of a block, each by one of the processes.

    :param owners: By the layer's name, the process that has its statistics.
    :param seen: By the layer's name, its statistics; those of another process' layers are empty.
    :param inputs: By the layer's name, the first layer that is fed the same; empty where no input was looked at.
    :param held: The most bytes that a forward held at one of their products; None where that was not looked at, or
        where forwards cannot wait there, for not each of them is multiplied once and by ``F.linear``.
    """

    owners: Mapping[str, int]
    seen: Mapping[str, Statistics]
    inputs: Mapping[str, str] = field(default_factory=dict)
    held: int | None = None

    @classmethod
    def of(cls, seen: Mapping[str, Statistics], layers: Sequence[Layer], size: int) -> "Observed":
        """Deal layers of which every process knows all to so many of them."""
        return cls(_dealt([[layer] for layer in layers], size), seen)

    def everywhere(self, ranks: Ranks) -> Mapping[str, Statistics]:
        """Give all statistics to all processes."""
        mine = {name: one for name, one in self.seen.items() if self.owners[name] == ranks.rank}
        found = {name: one for some in ranks.gather(mine) for name, one in some.items()}
        return {name: found[name] for name in self.seen}

    def joined(self, needs: Sequence[type[Any]], others: Mapping[str, Statistics]) -> "Observed":
        """Put these statistics and others of the same layers together, in the order of ``needs``."""
        both = {name: {**others[name], **one} for name, one in self.seen.items()}
        seen = {
            name: Statistics({need: both[name][need] for need in needs if need in both[name]}, is_fed=one.is_fed)
            for name, one in self.seen.items()
        }
        return replace(self, seen=seen)


class Observation(BlockWatch):
    """Sums statistics over all batches of one block, span by span.

    Layers that are fed the same tensor object share one statistic, so q, k and v cost one Gram matrix, not three. A
    statistic that takes gradients is each layer's own. Where none takes gradients, a forward ends where the last input
    is seen: the product behind it is for nobody, and is a fifth of a LLaMA's block. A span's sums are added to those of
    the spans before it, so that what is summed has the same bits whichever process has seen which span.

    :param needs: The statistics' types; each layer gets one of each.
    :param device: Where the block runs; None where its weights are.
    """

    def __init__(
        self, block: Block, layers: Sequence[Layer], needs: Sequence[type[Any]], device: torch.device | None = None
    ) -> None:
        self._block, self._layers = block, layers
        self._names = frozenset(layer.name for layer in layers)
        self._of_inputs = [need for need in needs if not issubclass(need, GradientStatistic)]
        self._of_gradients = [need for need in needs if issubclass(need, GradientStatistic)]
        self._order = tuple(needs)
        self._leader: dict[str, str] = {}
        self._sums: dict[_Key, _Sums] = {}  # of the span that is being seen
        self._parts: dict[_Key, list[_Sums]] = {}  # of the spans before it
        self._inputs: dict[int, tuple[ReferenceType[Tensor], str]] = {}
        self._counted = CountedTokens(block)
        self._fed: set[str] = set()  # layers with a real token among their inputs
        self._tokens_of: PerPosition
        self._runs_on = device
        self._device = torch.device("cpu")  # where inputs are seen
        self._call = 0  # which call of the block in one forward is being seen
        self._calls: Counter[str] = Counter()  # of each layer, in this batch
        self._usual: Counter[str] | None = None  # in the first batch in which every layer was seen
        every_position = all(layer.layout in ("batch token", "token batch") for layer in layers)
        self._may_end = block.calls == 1 and every_position and not self._of_gradients

    def begin(self, tokens_of: PerPosition, weights_of: PerPosition) -> None:
        """Begin a new batch; functions of tower and call say what its positions are and how much each counts."""
        self._tokens_of = tokens_of
        self._counted.begin(weights_of)
        if self._usual is None and self._calls.keys() == self._names:
            self._usual = Counter(self._calls)
        self._calls.clear()
        self._inputs.clear()

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
        :raises Finished: Where every layer has been seen as often as in the first batch in which all were.
        """
        if layer.name not in self._names:
            return
        self._add_input(layer, inputs, picked)
        self._calls[layer.name] += 1
        if self._may_end and self._calls == self._usual:
            raise Finished

    def see_alike(self, layers: Sequence[Layer], inputs: Float[Tensor, "... in"]) -> None:
        """Add the one input of some layers."""
        with suppress(Finished):
            for layer in layers:
                self.see(layer, inputs)

    @property
    def saw_each_once(self) -> bool:
        """Say whether the last batch came to each layer, and to none twice."""
        return self._calls == dict.fromkeys(self._names, 1)

    @property
    def knows_inputs(self) -> bool:
        """Say whether every layer was seen, so that no other batch tells more of which are fed the same.

        Of experts it does not: any batch may be the first one in which a router gives one of them something.
        """
        return self._leader.keys() == self._names and all(layer.layout != "routed" for layer in self._layers)

    def _add_input(self, layer: Layer, inputs: Tensor, picked: Picked | None) -> None:
        leader = self._first_fed(layer, inputs)
        known = self._leader.setdefault(layer.name, leader)
        if known != leader:
            if known != layer.name:
                raise ModelError(f"{layer.name} shares its input with {known} in some batches and not in others")
            leader = known
        self._device = inputs.device
        mine = self._made((layer.name, "gradient"), self._of_gradients)
        theirs = self._made((layer.name, "inputs"), self._of_inputs) if leader == layer.name else {}
        if mine or theirs or layer.layout == "routed":
            tokens = self._counted.of(layer, inputs, self._call, picked)
            self._fed.update([layer.name] if len(tokens) else [])
            for statistic in (*mine.values(), *theirs.values()):
                _feed(statistic, "add", tokens)

    def _add_gradient(self, layer: Layer, gradient: Float[Tensor, "out in"]) -> None:
        for statistic in self._made((layer.name, "gradient"), self._of_gradients).values():
            _feed(statistic, "add_gradient", gradient)

    def _real_positions(self) -> Bool[Tensor, "batch tokens"] | None:
        if self._layers[0].layout == "selected":
            return None
        return self._tokens_of(self._block.tower, self._call) != PADDING

    def _first_fed(self, layer: Layer, inputs: Tensor) -> str:
        """Name the first layer that was fed this very tensor in this batch."""
        # A weak reference: an id may be used again once its tensor is gone, and holding the tensor costs its memory.
        reference, leader = self._inputs.get(id(inputs), (None, ""))
        if reference is None or reference() is not inputs:
            leader = layer.name
            self._inputs[id(inputs)] = ref(inputs), leader
        return leader

    def _made(self, key: _Key, needs: Sequence[type[Any]]) -> _Sums:
        """Give the statistics of these types of a layer, made when it is first seen."""
        if key not in self._sums:
            self._sums[key] = self._new(key, needs)
        return self._sums[key]

    def end_span(self, *, first: bool = True) -> None:
        """Keep what was summed over a span, and begin to sum anew.

        :param first: Whether the spans before it were all seen here, so that sums can be added to theirs at once.
        """
        for key, sums in self._sums.items():
            parts = self._parts.setdefault(key, [])
            parts[:] = [self._added(key, parts, sums)] if first else [*parts, sums]
        self._sums = {}

    def observed(self, ranks: Ranks) -> Observed:
        """Give each layer's statistics over the batches of all processes to the one that is to work with them.

        :raises ModelError: Where a layer was not seen.
        :raises NotFiniteError: Where what is fed to a layer is not finite.
        """
        self._hear_of_others(ranks)
        unseen = [layer for layer in self._layers if layer.name not in self._leader]
        unused = [layer.name for layer in unseen if layer.layout != "routed"]
        if unused:
            raise ModelError(
                f"{self._block.name} ran without these matrices being multiplied with anything, so nothing is known of "
                f"their inputs: {', '.join(unused)}. A method that needs inputs cannot prune them"
            )
        if self._of_inputs or self._of_gradients:
            firsts = [layer for layer in self._layers if self._leader.get(layer.name) == layer.name]
            refuse_unfed(self._block, [layer for layer in firsts if layer.name not in self._fed])
        fed_alike: dict[str, list[Layer]] = {}
        for layer in self._layers:
            fed_alike.setdefault(self._leader.get(layer.name, layer.name), []).append(layer)
        owner_of = _dealt(list(fed_alike.values()), ranks.size)
        keys = [*((name, "inputs") for name in fed_alike), *((layer.name, "gradient") for layer in self._layers)]
        collected = ranks.collect_each(self._parts, {key: owner_of[key[0]] for key in keys})
        summed = {key: self._summed(key, of_ranks) for key, of_ranks in collected}
        seen = {layer.name: self._answer(layer, summed, owner_of[layer.name] == ranks.rank) for layer in self._layers}
        _require_finite(seen, ranks)
        inputs = {layer.name: name for name, layers in fed_alike.items() for layer in layers}
        return Observed(owner_of, seen, inputs)

    def _hear_of_others(self, ranks: Ranks) -> None:
        """Learn which layers others have seen, and which of them share an input."""
        for leader, fed in ranks.gather((self._leader, self._fed)):
            self._fed = self._fed | fed
            for name, first in leader.items():
                if self._leader.setdefault(name, first) != first:
                    raise ModelError(f"{name} shares its input with {first} in some batches and not in others")

    def _summed(self, key: _Key, of_ranks: Mapping[int, Sequence[_Sums]]) -> _Sums:
        """Add what each process has summed, in the order of the spans, to the sums that the first has."""
        total = list(of_ranks.get(0, []))
        for sums in (sums for rank, parts in of_ranks.items() if rank > 0 for sums in parts):
            total = [self._added(key, total, sums)]
        return total[0]

    def _added(self, key: _Key, before: Sequence[_Sums], sums: _Sums) -> _Sums:
        """Add the sums of a span to those of the spans before it, of which there may be none."""
        total = before[0] if before else self._new(key, list(sums))
        for need, statistic in sums.items():
            with blaming(_called(statistic)):
                total[need].merge(statistic)
        return total

    def _new(self, key: _Key, needs: Sequence[type[Any]]) -> _Sums:
        """Make statistics of some types that have seen nothing yet."""
        (in_features,) = (layer.shape[1] for layer in self._layers if layer.name == key[0])
        return {need: _made_of(need, in_features, self._device) for need in needs}

    def _answer(self, layer: Layer, summed: Mapping[_Key, _Sums], is_mine: bool) -> Statistics:
        is_fed = layer.layout != "routed" or layer.name in self._fed
        if not is_mine:
            return Statistics(is_fed=is_fed)
        if not is_fed:
            return self._by_weight_alone(layer)
        found = {**summed.get((self._leader[layer.name], "inputs"), {}), **summed.get((layer.name, "gradient"), {})}
        return Statistics({need: found[need] for need in self._order})

    def _by_weight_alone(self, layer: Layer) -> Statistics:
        """Give statistics of an expert that saw no token: as though each input had come once and alone.

        Then ‖X_j‖ is 1 and X Xᵀ the identity, so that what is left for a method to look at is the weight.
        """
        device = self._runs_on or layer.weight.device
        made = {need: _made_of(need, layer.shape[1], device) for need in self._order}
        for statistic in made.values():
            _feed(statistic, "add", torch.eye(layer.shape[1], device=device))
            if isinstance(statistic, GradientStatistic):
                _feed(statistic, "add_gradient", torch.ones_like(layer.weight, device=device))
        return Statistics(made, is_fed=False)


def bytes_of_statistic(kind: type[Any], outputs: int, inputs: int) -> int:
    """Give the bytes that a statistic of a layer of so many outputs and inputs holds, for the plan; nothing is held
    meanwhile. What one of gradients makes of the first it is given is taken for a number a weight in float32.
    """
    with blaming(f"the statistic {kind.__name__}, made without memory,"), torch.device("meta"):
        values = vars(kind(inputs)).values()
    of_gradients = 4 * outputs * inputs if issubclass(kind, GradientStatistic) else 0
    return of_gradients + sum(value.nbytes for value in values if isinstance(value, Tensor))


def _made_of(kind: type[Any], in_features: int, device: torch.device) -> Any:
    """Make a statistic that has seen nothing yet.

    :raises ModelError: Where what its ``to`` gives is none.
    """
    with blaming(f"the statistic {kind.__name__}"):
        made = kind(in_features).to(device)
    if not isinstance(made, kind):
        raise ModelError(f"the statistic {kind.__name__}: its to() gave {made!r:.60}; it returns the statistic itself")
    return made


def _feed(statistic: Any, how: str, given: Float[Tensor, "..."]) -> None:
    """Let a statistic add what the model itself goes on with, and refuse one that writes into it."""
    before = writes(given)
    # Bits are read for those of others alone: ours write in no way that PyTorch does not count.
    is_read = given.device.type == "cpu" and not is_ours(type(statistic))
    written_since = watched({how: given} if is_read else {}, counting=False)
    with blaming(_called(statistic)):
        getattr(statistic, how)(given)
    if writes(given) != before or written_since():
        raise ModelError(
            f"{_called(statistic)} wrote into what {how} is given to look at, and the model goes on with. Have it "
            f"write into what it has made itself: inputs.abs() and not inputs.abs_()"
        )


def _called(statistic: Any) -> str:
    return f"the statistic {type(statistic).__name__}"


def _dealt(fed_alike: Sequence[Sequence[Layer]], size: int) -> dict[str, int]:
    """Choose which process owns each layer. Layers that share an input have one owner, who factors its matrix once.

    A solver multiplies in³ numbers to factor the matrix ``[in, in]`` of an input, and for each layer in·(out·in) to
    pass over the weight's rows, column by column. To begin a column takes 30 µs, as long as a million multiplications.
    """
    costs = [
        float(layers[0].shape[1] ** 3 + sum((layer.size + 1_000_000) * layer.shape[1] for layer in layers))
        for layers in fed_alike
    ]
    dealt = zip(fed_alike, owners(costs, size), strict=True)
    return {layer.name: owner for layers, owner in dealt for layer in layers}


def _require_finite(seen: Mapping[str, Statistics], ranks: Ranks) -> None:
    """Refuse inputs that are not finite, which the owner of a layer's statistics sees and all processes refuse."""
    mine = [name for name, own in seen.items() if not all(map(_is_finite, own.values()))]
    broken = [name for names in ranks.gather(mine) for name in names]
    if broken:
        first = next(name for name in seen if name in broken)
        raise NotFiniteError(f"{first}: its inputs hold NaN or infinite values on the calibration data")


def _is_finite(statistic: Any) -> bool:
    tensors = [value for value in vars(statistic).values() if isinstance(value, Tensor)]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
