"""The metric ``magnitude`` is the size of a weight: |W_ij|.

Han, Pool, Tran & Dally, Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Metric
from ecoflap.core.contracts.records import Statistics


@dataclass(frozen=True)
class Magnitude:
    """Give |W_ij|. It looks at no data."""

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics) -> Float[Tensor, "out in"]:
        return weight.abs()


@hookimpl
def ecoflap_register_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"magnitude": Magnitude}
