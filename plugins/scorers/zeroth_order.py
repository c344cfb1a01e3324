"""The scorer ``zeroth_order`` moves a layer's weights along random directions and sees how much the loss moves.

    S_l = mean over batches and noises of |L(W_l + εz) − L(W_l − εz)| / 2ε,   z ~ N(0, I)

(L₊ − L₋)/2ε = ⟨∇_l L, z⟩ + O(ε²), so that E S_l = √(2/π)·‖∇_l L‖ for a batch, by forwards alone. It is no estimate of
the first-order score Σ|W|·|∇L|, which weighs the gradient by magnitude. From B evaluations its relative standard error
is about 0.76/√B, to which that of the data is added.

Sung, Yoon & Bansal, ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models, ICLR 2024, section
3. The defaults are their settings.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Aggregate, Estimate
from ecoflap.core.errors import EcoflapError, NotFiniteError
from ecoflap.core.forward.noise import gaussian
from ecoflap.core.forward.placement import restored
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Anatomy, Layer
from ecoflap.plugins.scorers.shared.block_by_block import block_by_block


@dataclass(frozen=True)
class ZerothOrder:
    """Score layers by forwards alone. Losses are taken in float32, whatever type the model is in.

    :param samples: How many calibration samples it looks at.
    :param noises: How many directions it tries for each batch. More cost forwards, and no samples.
    :param eps: ε, how far the weights are moved along a direction.
    :param joint: False moves one matrix at a time, as the paper does. True moves all matrices of a block at once. That
        takes as many times fewer forwards as a block has matrices, and gives one score for the block, an estimate of
        √(2/π)·‖∇_block L‖: the root of the summed squares of its matrices' gradients, and not the sum of their norms.
    """

    samples: int = 32
    noises: int = 1
    eps: float = 1e-3
    joint: bool = False

    aggregate: ClassVar[Aggregate] = "sum"
    only_reads: ClassVar[bool] = True
    shares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("samples", "noises", "eps"):
            if not getattr(self, name) > 0:
                raise EcoflapError(f"{name} is {getattr(self, name)}; more than 0 is needed")
        if self.eps > (largest := torch.finfo(torch.float32).max):
            raise EcoflapError(f"eps is {self.eps}, and weights are moved in float32, which ends at {largest:.2g}")

    @property
    def unit(self) -> Literal["layer", "block"]:
        """Say what the yielded names stand for: a block where all of its matrices are moved together."""
        return "block" if self.joint else "layer"

    def forwards(self, anatomy: Anatomy, batches: int) -> int:
        """Count the forwards, each of which runs from the moved block on."""
        units = len(anatomy.blocks) if self.joint else sum(1 for _ in anatomy.layers())
        return 2 * units * batches * self.noises

    def held_numbers(self, anatomy: Anatomy) -> int:
        """Count the directions of what is moved at once, and the step along one of them.

        Parts of a parameter in float32 are put back from copies, a block's at a time.
        """
        blocks = [[layer.size for layer in layers] for layers in anatomy.layers_of.values() if layers]
        parts = [sum(layer.size for layer in layers if layer.part is not None) for layers in anatomy.layers_of.values()]
        # A narrower one is widened first, and that is a copy.
        copies = max(parts) if any(parts) and anatomy.dtype == torch.float32 else 0
        at_once = sum if self.joint else max
        return max(map(max, blocks), default=0) + max(map(at_once, blocks), default=0) + copies

    def __call__(self, replay: Replay, layers: Sequence[Layer]) -> Iterator[tuple[str, Estimate]]:
        for index, block, mine in block_by_block(replay, layers):
            units = {block.name: mine} if self.joint else {layer.name: [layer] for layer in mine}
            # What is written in place of weights that stay in files would stay in memory, block by block.
            with restored([layer for layer in mine if _is_moved_in_place(layer, replay)]):
                for name, moved in units.items():
                    yield name, self._estimate(replay, index, moved)

    def _estimate(self, replay: Replay, index: int, moved: Sequence[Layer]) -> Estimate:
        """Estimate the score of what is moved. Each batch gives one term, which is the mean over its noises."""

        def term(batch: int) -> float:
            slopes = (self._slope(replay, index, moved, batch, noise) for noise in range(self.noises))
            return sum(slopes) / self.noises

        return Estimate(replay.each(term))

    def _slope(self, replay: Replay, index: int, moved: Sequence[Layer], batch: int, noise: int) -> float:
        """Compute |L₊ − L₋| / 2ε of one batch along one direction."""
        directions = {
            layer: gaussian(layer.shape, replay.seed, layer.name, batch, noise).to(layer.weight.device)
            for layer in moved
        }
        losses = [self._loss(replay, index, directions, batch, step) for step in (self.eps, -self.eps)]
        return abs(losses[0] - losses[1]) / (2 * self.eps)

    def _loss(self, replay: Replay, index: int, directions: Mapping[Layer, Tensor], batch: int, step: float) -> float:
        try:
            with _moved(replay, directions, step):
                return float(replay.loss(index, [batch])[0])
        except NotFiniteError as error:
            raise NotFiniteError(f"{error}. A smaller eps than {self.eps:g} moves them less") from error


def _is_moved_in_place(layer: Layer, replay: Replay) -> bool:
    """Say whether it is a part of a parameter that is not widened first."""
    return layer.part is not None and not replay.placement.widened_bytes([layer.parameter])


@contextmanager
def _moved(replay: Replay, directions: Mapping[Layer, Float[Tensor, "out in"]], step: float) -> Iterator[None]:
    """Hold the layers' weights moved by ``step`` times their directions."""
    with ExitStack() as stack:
        for layer, direction in directions.items():
            stack.enter_context(replay.perturbed(layer, step * direction))
        yield


@hookimpl
def ecoflap_register_scorers() -> Mapping[str, type[ZerothOrder]]:
    return {"zeroth_order": ZerothOrder}
