"""Some layers of a model pruned and all others dense, for as long as a scorer looks at the loss."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from ecoflap.core.budget.counts import Keep, keep_count
from ecoflap.core.contracts.protocols import Pruner
from ecoflap.core.contracts.records import Pruned, Statistics
from ecoflap.core.forward.placement import restored
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Layer
from ecoflap.core.pruning.pruner_answer import asked, at_layer
from ecoflap.core.seeding import seed_for, seeded


@contextmanager
def pruned_alone(
    replay: Replay, index: int, layers: Sequence[Layer], pruner: Pruner, seen: Mapping[str, Statistics], level: float
) -> Iterator[tuple[str, ...]]:
    """Hold layers of a block at a sparsity; afterwards their weights are what they were, bit for bit.

    What the pruner notes is yielded. What it notes of several layers alike is told of the first of them.

    :param index: The block's number.
    :param seen: The statistics that the pruner needs, by the layer's name.
    """
    with restored(layers):
        noted: dict[str, str] = {}
        for layer in layers:
            answer = _pruned(replay, index, layer, pruner, seen, level)
            layer.weight.data.copy_(answer.weight)
            for note in answer.notes:
                noted.setdefault(note, f"{layer.name}: {note}")
        yield tuple(noted.values())


def _pruned(
    replay: Replay, index: int, layer: Layer, pruner: Pruner, seen: Mapping[str, Statistics], level: float
) -> Pruned:
    statistics, place = seen.get(layer.name, Statistics()), replay.place(index, layer)
    with replay.placement.as_precise().held([layer.parameter]):
        weight, budget = layer.weight.data.contiguous(), Keep(keep_count(layer.size, level))
        who = f"at a sparsity of {level:g} the pruner {type(pruner).__name__}"
        with at_layer(layer.name), seeded(seed_for(replay.seed, "prune", layer.name)):
            return asked(who, pruner, weight, statistics, budget, place)
