"""What a block was and gave before it was pruned, as its refiners ask for it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from ecoflap.core.contracts.options import RefinerOptions
from ecoflap.core.contracts.records import Target
from ecoflap.core.refining.subblocks import Hidden, Inside


@dataclass(frozen=True)
class DenseOutputs:
    """Holds what a dense block returned on the inputs that a target is about.

    :param outputs: By batch, what the block returned, call by call.
    :param inside: By batch, what its sub-blocks returned; empty where no refiner asks for it.
    """

    outputs: Sequence[Hidden]
    inside: Sequence[Inside] = ()


@dataclass(frozen=True)
class DenseBlock:
    """Holds what of a block is gone once it is pruned.

    :param gave: What it returned, for each target that a refiner asks for.
    :param weights: By the layer's name, what it was before the first round, in the model's type; empty where no refiner
        asks for it.
    """

    gave: Mapping[Target, DenseOutputs]
    weights: Mapping[str, Float[Tensor, "out in"]] = field(default_factory=dict)

    def of(self, targets: Collection[Target]) -> "DenseBlock":
        """Give the same for some of the targets alone."""
        return replace(self, gave={target: self.gave[target] for target in targets})


def targets_of(refiners: Iterable[RefinerOptions]) -> frozenset[Target]:
    """Give the targets that refiners of blocks look at, by what they say of themselves."""
    return frozenset(target for one in refiners for target in (("dense", "own") if one.both_targets else (one.target,)))
