"""What a block was and gave before it was pruned, as its refiners ask for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from ecoflap.core.refining.subblocks import Hidden, Inside


@dataclass(frozen=True)
class DenseBlock:
    """Holds what of a block is gone once it is pruned.

    :param outputs: By batch, what it returned, call by call.
    :param inside: By batch, what its sub-blocks returned; empty where no refiner asks for it.
    :param weights: By the layer's name, what it was before the first round, in the model's type; empty where no refiner
        asks for it.
    """

    outputs: Sequence[Hidden]
    inside: Sequence[Inside] = ()
    weights: Mapping[str, Float[Tensor, "out in"]] = field(default_factory=dict)
