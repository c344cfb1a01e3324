"""The scorer ``hill`` tells how heavy the tails of the spectra of a block's matrices are.

    α_l = 1 + k / Σ_{i ≤ k} ln(λ_i / λ_min),   S_b = 1 / mean over the matrices of block b of α_l

λ are the eigenvalues of WᵀW, of which the k that are at least λ_min count: Hill's estimate of the exponent of a power
law. By the theory of heavy-tailed self-regularization a matrix with a heavier tail, of a smaller α, is better trained
and loses more by pruning, so that the score, which keeps more where it is larger, is the reciprocal. It looks at no
data, and is made for ``allocate: alpha``.

Lu, Zhou, Liu, Wang, Mahoney & Yang, AlphaPruning: Using Heavy-Tailed Self Regularization Theory for Improved Layer-wise
Pruning of Large Language Models, NeurIPS 2024, whose metric is called PL_Alpha_Hill.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Aggregate
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Anatomy, Layer

Tail = Literal["peak", "half"]
"""Where the tail of a spectrum begins."""

_BINS = 100
"""Of the histogram that shows the peak, as in the paper's code."""


@dataclass(frozen=True)
class Hill:
    """Score blocks by the reciprocal of their mean Hill exponent. It needs no calibration data.

    :param tail: Which eigenvalues λ the exponent is fitted to: with ``peak`` those above the peak of the histogram of
        ln λ, which the paper calls Fix-finger; with ``half`` the larger half of them. The paper's code tries every
        λ_min from 0.95 to 1.5 times the peak, in decimal logarithms, and takes the best fit; this takes the peak, as
        the paper's text does.
    """

    tail: Tail = "peak"

    aggregate: ClassVar[Aggregate] = "mean"
    unit: ClassVar[Literal["block"]] = "block"
    data: ClassVar[bool] = False

    def held_numbers(self, anatomy: Anatomy) -> int:
        """Count a layer's weights in float32, and the copy that their singular values are computed in."""
        return 2 * max(layer.size for _, layer in anatomy.layers())

    def __call__(self, replay: Replay, layers: Sequence[Layer]) -> Iterator[tuple[str, float]]:
        wanted = {layer.name for layer in layers}
        for block in replay.blocks:
            mine = [layer for layer in replay.anatomy.layers_of[block.name] if layer.name in wanted]
            if mine:
                yield block.name, len(mine) / sum(self._alpha(layer) for layer in mine)

    def _alpha(self, layer: Layer) -> float:
        spectrum = eigenvalues(layer.weight.data.float())
        found = exponent(spectrum, self.tail)
        if not len(spectrum):
            raise ModelError(f"{layer.name}: all its weights are 0, so it has no spectrum. Keep its tower whole")
        if found is None:
            raise ModelError(
                f"{layer.name}: its spectrum has no tail, because those of its {len(spectrum)} eigenvalues above "
                f"0 that would be in it are all equal. Keep its tower whole, or score otherwise"
            )
        return found


def eigenvalues(weight: Float[Tensor, "out in"]) -> Float[Tensor, " rank"]:
    """Give the eigenvalues of WᵀW that are above 0 but for rounding, in rising order."""
    values: Tensor = torch.linalg.svdvals(weight)
    rounding = float(values.max()) * max(weight.shape) * torch.finfo(values.dtype).eps
    return values[values > rounding].square().flip(0)


def exponent(spectrum: Float[Tensor, " rank"], tail: Tail) -> float | None:
    """Estimate α by Hill; None where the tail has one value only.

    :param spectrum: In rising order, above 0.
    """
    logs = spectrum.double().log()
    begin = len(logs) // 2 if tail == "half" else _peak(logs)
    above = (logs[begin:] - logs[begin]).sum() if len(logs) else logs.new_zeros(())
    return 1 + (len(logs) - begin) / float(above) if above > 0 else None


def _peak(logs: Float[Tensor, " rank"]) -> int:
    """Find the first eigenvalue in the fullest bin of the histogram."""
    if not len(logs) or logs[0] == logs[-1]:
        return 0
    counts, edges = torch.histogram(logs.cpu(), _BINS)
    return int(torch.searchsorted(logs.cpu(), edges[counts.argmax()]).clamp(max=len(logs) - 1))


@hookimpl
def ecoflap_register_scorers() -> Mapping[str, type[Hill]]:
    return {"hill": Hill}
