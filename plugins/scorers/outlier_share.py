"""OWL's layer outlier distribution: which share of a block's Wanda metrics stands far above their mean.

    A_b = the metrics |W|·√Σx² of all matrices of block b;   D_b = 100 · #{A_b > M·mean(A_b)} / #A_b

Measured on the dense model, a block at a time. More outliers, more kept.

Yin et al.: Outlier Weighed Layerwise Sparsity (OWL), ICML 2024; M is their ``Hyper_m``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from ecoflap import hookimpl
from ecoflap.core.contracts.records import Aggregate
from ecoflap.core.forward.replay import Replay
from ecoflap.core.forward.statistics import ColumnNorm
from ecoflap.core.model.anatomy import Anatomy, Layer


@dataclass(frozen=True)
class OutlierShare:
    """Share of outliers among a block's Wanda metrics, in percent. Made for ``allocate: owl``.

    :param threshold: M: how many times the block's mean metric an outlier exceeds.
    :param samples: Calibration samples it looks at.
    """

    threshold: float = 5.0
    samples: int = 128

    aggregate: ClassVar[Aggregate] = "mean"
    unit: ClassVar[Literal["block"]] = "block"

    def __post_init__(self) -> None:
        if not self.threshold > 0 or self.samples < 1:
            raise ValueError("threshold must be greater than 0 and samples at least 1")

    def forwards(self, anatomy: Anatomy, batches: int) -> int:
        """Each block runs twice a batch: once observed, once recorded."""
        return 2 * batches

    def __call__(self, replay: Replay, layers: Sequence[Layer]) -> Iterator[tuple[str, float]]:
        wanted = {layer.name for layer in layers}
        for index, block in enumerate(replay.blocks):
            mine = [layer for layer in replay.anatomy.layers_of[block.name] if layer.name in wanted]
            if mine:
                seen = replay.run(index, (ColumnNorm,))
                yield block.name, self._share([_metric(layer, seen[layer.name]) for layer in mine])
            wanted.difference_update(layer.name for layer in mine)
            if not wanted:
                return
            replay.advance(index)

    def _share(self, metrics: Sequence[Float[Tensor, "_ _"]]) -> float:
        count = sum(metric.numel() for metric in metrics)
        mean = sum(float(metric.sum()) for metric in metrics) / count
        return 100 * sum(int((metric > self.threshold * mean).sum()) for metric in metrics) / count


def _metric(layer: Layer, statistic: ColumnNorm) -> Float[Tensor, "out in"]:
    return layer.weight.data.float().abs() * statistic.squared.sqrt()


@hookimpl
def ecoflap_register_scorers() -> Mapping[str, type[OutlierShare]]:
    return {"outlier_share": OutlierShare}
