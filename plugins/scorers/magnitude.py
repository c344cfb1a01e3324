"""The scorer ``magnitude`` sums a layer's absolute weights, which is what can be said without data.

S_l = Σ |W_l|
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Aggregate
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Layer


@dataclass(frozen=True)
class MagnitudeScore:
    """Score layers by Σ|W|, so that those with larger weights keep more of them. It needs no calibration data."""

    aggregate: ClassVar[Aggregate] = "sum"
    data: ClassVar[bool] = False

    def __call__(self, replay: Replay, layers: Sequence[Layer]) -> Iterator[tuple[str, float]]:
        for layer in layers:
            yield layer.name, float(torch.linalg.vector_norm(layer.weight.data, ord=1, dtype=torch.float64))


@hookimpl
def ecoflap_register_scorers() -> Mapping[str, type[MagnitudeScore]]:
    return {"magnitude": MagnitudeScore}
