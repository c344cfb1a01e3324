"""The scorer ``local_metric`` takes the mean of Wanda's metric over a layer for its score.

    S_l = mean_ij |W_ij|·‖X_j‖₂,   ‖X_j‖₂ = √(Σ x_j²) over all tokens

It looks at no loss. Sung, Yoon & Bansal, ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language
Models, ICLR 2024, divide a budget by it for comparison, and find that worse than no division. Their code takes the
metric from a run that prunes uniformly, where blocks see pruned ones before them; here all are dense.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Aggregate
from ecoflap.core.errors import refuse_below_one
from ecoflap.core.forward.replay import Replay
from ecoflap.core.forward.statistics import ColumnNorm
from ecoflap.core.model.anatomy import Anatomy, Layer
from ecoflap.plugins.scorers.shared.block_by_block import block_by_block


@dataclass(frozen=True)
class LocalMetric:
    """Score layers by the mean of |W_ij|·‖X_j‖₂, which says nothing of the whole model. It is a baseline.

    :param samples: How many calibration samples it looks at.
    """

    samples: int = 128

    aggregate: ClassVar[Aggregate] = "sum"
    shares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse_below_one("samples", self.samples)

    def forwards(self, anatomy: Anatomy, batches: int) -> int:
        """Count two runs of every block for each batch: in one it is observed, in the other its output is recorded."""
        return 2 * batches

    def __call__(self, replay: Replay, layers: Sequence[Layer]) -> Iterator[tuple[str, float]]:
        for index, _, mine in block_by_block(replay, layers):
            seen = replay.run(index, (ColumnNorm,))
            for layer in mine:
                norms = seen[layer.name][ColumnNorm].squared.sqrt()
                columns = layer.weight.data.float().abs().mean(0).to(norms.device)
                # Without a token an expert has no inputs, and what stands in for them is of another scale.
                yield layer.name, float((columns * norms).mean()) if seen[layer.name].is_fed else 0.0


@hookimpl
def ecoflap_register_scorers() -> Mapping[str, type[LocalMetric]]:
    return {"local_metric": LocalMetric}
