"""Some layers of a model pruned and all others dense, for as long as a scorer looks at the loss."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from ecoflap.core.budget.counts import Keep, keep_count
from ecoflap.core.contracts.protocols import Pruner
from ecoflap.core.contracts.records import Statistics
from ecoflap.core.errors import EcoflapError
from ecoflap.core.forward.placement import restored
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Layer


@contextmanager
def pruned_alone(
    replay: Replay, index: int, layers: Sequence[Layer], pruner: Pruner, seen: Mapping[str, Statistics], level: float
) -> Iterator[None]:
    """Hold layers of a block at a sparsity; afterwards their weights are what they were, bit for bit.

    :param index: The block's number.
    :param seen: The statistics that the pruner needs, by the layer's name.
    """
    with restored(layers):
        for layer in layers:
            layer.weight.data.copy_(_pruned(replay, index, layer, pruner, seen, level))
        yield


def _pruned(
    replay: Replay, index: int, layer: Layer, pruner: Pruner, seen: Mapping[str, Statistics], level: float
) -> Float[Tensor, "out in"]:
    statistics, place = seen.get(layer.name, Statistics()), replay.place(index, layer)
    with replay.placement.held([layer.parameter]):
        weight = layer.weight.data.contiguous()
        try:
            answer = pruner(weight, statistics, Keep(keep_count(layer.size, level)), place)
        except EcoflapError as error:
            raise type(error)(*(f"{layer.name}: {problem}" for problem in error.problems)) from error
    if answer.weight.shape != weight.shape or not bool(torch.isfinite(answer.weight).all()):
        raise EcoflapError(
            f"{layer.name}: at a sparsity of {level:g} the pruner gave no finite weight of shape {tuple(weight.shape)}"
        )
    return answer.weight
