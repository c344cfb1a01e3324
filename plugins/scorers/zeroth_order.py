"""ECoFLaP's score: how much the loss moves along random directions of one layer's weights, by forward passes alone.

    S_l = mean over batches and noises of |L(W_l + εz) − L(W_l − εz)| / 2ε,   z ~ N(0, I)

(L₊ − L₋)/2ε = ⟨∇_l L, z⟩ + O(ε²), so E S_l = √(2/π)·‖∇_l L‖ per batch. It is not an estimate of the first-order score
Σ|W|·|∇L|, which weighs the gradient by magnitude. From B evaluations its relative standard error is about 0.76/√B
besides that of the data.

Sung, Yoon, Bansal: ECoFLaP, ICLR 2024, section 3; their settings are the defaults.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from ecoflap import hookimpl
from ecoflap.core.contracts.records import Aggregate, Estimate
from ecoflap.core.forward.noise import gaussian
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Anatomy, Layer


@dataclass(frozen=True)
class ZerothOrder:
    """Zeroth-order (forward-forward) sensitivity of the whole model's loss, taken in float32 whatever the model is in.

    :param samples: Calibration samples it looks at.
    :param noises: Directions a batch. They cost forwards, and take nothing from ``samples``.
    :param eps: How far along a direction.
    :param joint: False moves one matrix at a time, as the paper does. True moves all matrices of a block at once, which
        costs as many times fewer forwards as a block has matrices and gives one score for the block, an estimate of
        √(2/π)·‖∇_block L‖: the root of the sum of squares of its matrices' gradients instead of the sum of their norms.
    """

    samples: int = 32
    noises: int = 1
    eps: float = 1e-3
    joint: bool = False

    aggregate: ClassVar[Aggregate] = "sum"

    def __post_init__(self) -> None:
        for name in ("samples", "noises", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0, got {getattr(self, name)}")

    @property
    def unit(self) -> Literal["layer", "block"]:
        return "block" if self.joint else "layer"

    def forwards(self, anatomy: Anatomy, batches: int) -> int:
        """How many forwards of the rest of the model it takes, from the perturbed block on."""
        units = len(anatomy.blocks) if self.joint else sum(1 for _ in anatomy.layers())
        return 2 * units * batches * self.noises

    def __call__(self, replay: Replay, layers: Sequence[Layer]) -> Iterator[tuple[str, Estimate]]:
        wanted = {layer.name for layer in layers}
        for index, block in enumerate(replay.blocks):
            mine = [layer for layer in replay.anatomy.layers_of[block.name] if layer.name in wanted]
            for name, moved in _units(block.name, mine, self.joint):
                yield name, self._estimate(replay, index, moved)
            wanted.difference_update(layer.name for layer in mine)
            if not wanted:
                return
            replay.advance(index)

    def _estimate(self, replay: Replay, index: int, moved: Sequence[Layer]) -> Estimate:
        """One term a batch: the mean over its noises."""
        batches = range(len(replay.batches))
        return Estimate(
            sum(self._slope(replay, index, moved, batch, noise) for noise in range(self.noises)) / self.noises
            for batch in batches
        )

    def _slope(self, replay: Replay, index: int, moved: Sequence[Layer], batch: int, noise: int) -> float:
        directions = {
            layer: gaussian(layer.shape, replay.seed, layer.name, batch, noise).to(layer.weight.device)
            for layer in moved
        }
        losses = [self._loss(replay, index, directions, batch, step) for step in (self.eps, -self.eps)]
        return abs(losses[0] - losses[1]) / (2 * self.eps)

    def _loss(self, replay: Replay, index: int, directions: Mapping[Layer, Tensor], batch: int, step: float) -> float:
        with _moved(replay, directions, step):
            return float(replay.loss(index, [batch])[0])


@contextmanager
def _moved(replay: Replay, directions: Mapping[Layer, Float[Tensor, "out in"]], step: float) -> Iterator[None]:
    with ExitStack() as stack:
        for layer, direction in directions.items():
            stack.enter_context(replay.perturbed(layer, step * direction))
        yield


def _units(block: str, layers: Sequence[Layer], joint: bool) -> Iterator[tuple[str, list[Layer]]]:
    """What is moved at once, and the name its score goes by."""
    if joint and layers:
        yield block, list(layers)
    elif not joint:
        for layer in layers:
            yield layer.name, [layer]


@hookimpl
def ecoflap_register_scorers() -> Mapping[str, type[ZerothOrder]]:
    return {"zeroth_order": ZerothOrder}
