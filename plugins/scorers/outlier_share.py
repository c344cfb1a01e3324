"""The scorer ``outlier_share`` tells which share of a block's Wanda metrics stands far above their mean.

    A_b = the metrics |W|·√Σx² of all matrices of block b;   D_b = 100 · #{a ∈ A_b : a > M·mean(A_b)} / #A_b

It is measured on the dense model, a block at a time. A block with more outliers keeps more.

Yin et al., Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity, ICML
2024, whose code calls M ``Hyper_m``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Aggregate
from ecoflap.core.errors import EcoflapError, refuse_below_one
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Anatomy, Layer
from ecoflap.core.statistics.column_norm import ColumnNorm
from ecoflap.plugins.scorers.shared.block_by_block import block_by_block


@dataclass(frozen=True)
class OutlierShare:
    """Score blocks by the share of outliers among their Wanda metrics, in percent. It is made for ``allocate: owl``.

    :param threshold: M, how many times the block's mean metric an outlier exceeds.
    :param samples: How many calibration samples it looks at.
    """

    threshold: float = 5.0
    samples: int = 128

    aggregate: ClassVar[Aggregate] = "mean"
    unit: ClassVar[Literal["block"]] = "block"
    shares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise EcoflapError(f"threshold is {self.threshold}; more than 0 is needed")
        refuse_below_one("samples", self.samples)

    def forwards(self, anatomy: Anatomy, batches: int) -> int:
        """Count two runs of every block for each batch: in one it is observed, in the other its output is recorded."""
        return 2 * batches

    def held_numbers(self, anatomy: Anatomy) -> int:
        """Count the metrics of a block, and what one layer's are computed in."""
        blocks = [[layer.size for layer in layers] for layers in anatomy.layers_of.values() if layers]
        return max(sum(sizes) + 2 * max(sizes) for sizes in blocks)

    def __call__(self, replay: Replay, layers: Sequence[Layer]) -> Iterator[tuple[str, float]]:
        for index, block, mine in block_by_block(replay, layers):
            seen = replay.run(index, (ColumnNorm,))
            # Without a token an expert has no inputs, and what stands in for them is of another scale.
            fed = [layer for layer in mine if seen[layer.name].is_fed]
            yield block.name, self._share([_metric(layer, seen[layer.name][ColumnNorm]) for layer in fed])

    def _share(self, metrics: Sequence[Float[Tensor, "_ _"]]) -> float:
        """Give D_b in percent.

        :param metrics: Those of each matrix of the block.
        """
        count = sum(metric.numel() for metric in metrics)
        if not count:
            return 0.0
        mean = sum(float(metric.sum()) for metric in metrics) / count
        return 100 * sum(int((metric > self.threshold * mean).sum()) for metric in metrics) / count


def _metric(layer: Layer, statistic: ColumnNorm) -> Float[Tensor, "out in"]:
    return layer.weight.data.float().abs() * statistic.squared.sqrt().to(layer.weight.device)


@hookimpl
def ecoflap_register_scorers() -> Mapping[str, type[OutlierShare]]:
    return {"outlier_share": OutlierShare}
