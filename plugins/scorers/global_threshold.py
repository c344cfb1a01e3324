"""The scorer ``global_threshold`` counts what each layer would keep by one threshold for all weights of the model.

    magnitude            keep where |W| is among the N·(1 − s) largest of all layers
    magnitude_gradient   the same of |W|·mean over batches of |g|, pruned and measured anew in steps of s^(I/i), i = 1…I

Its scores are whole numbers that sum to the budget, so that ``allocate: {use: ecoflap, max_sparsity: 1.0}`` with
``granularity: layer`` keeps just these. With ``prune: magnitude`` the first is global magnitude pruning, mask and all;
with the metric ``magnitude_gradient`` compared by layer, so is the second at I = 1, in each of the recipe's ``rounds``.

Both are baselines of Sung, Yoon & Bansal, ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language
Models, ICLR 2024, with I = 3 and a budget for each tower. Their code compares W and not |W|.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from ecoflap.core.budget.counts import Keep, exact, keep_count
from ecoflap.core.budget.select import kept_only, select
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.records import Aggregate, Statistics
from ecoflap.core.errors import EcoflapError, refuse_below_one
from ecoflap.core.forward.gradients import kept_gradients
from ecoflap.core.forward.placement import restored
from ecoflap.core.forward.replay import Replay
from ecoflap.core.forward.statistics import LossGradient
from ecoflap.core.model.anatomy import Anatomy, Block, Layer
from ecoflap.plugins.scorers.shared.threshold import counts_above

Measure = Literal["magnitude", "magnitude_gradient"]
"""What is compared of weights of different layers."""


@dataclass(frozen=True)
class GlobalThreshold:
    """Score layers by how many of their weights are above one threshold for all.

    :param sparsity: The recipe's: the threshold depends on it, and with it the scores.
    :param measure: What is compared. ``magnitude`` looks at no data.
    :param each: Whether there is one threshold for the whole ``model`` or one for each ``tower``.
    :param steps: I: in how many steps ``magnitude_gradient`` prunes, with gradients of what is left after each.
    :param samples: How many calibration samples ``magnitude_gradient`` looks at. It holds a number for each weight in
        memory, and with more than one step a copy of the weights.
    """

    sparsity: float
    measure: Measure = "magnitude"
    each: Literal["model", "tower"] = "model"
    steps: int = 3
    samples: int = 128

    aggregate: ClassVar[Aggregate] = "sum"
    together: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise EcoflapError(f"sparsity is {self.sparsity}; it is a share from 0 to below 1")
        for name in ("steps", "samples"):
            refuse_below_one(name, getattr(self, name))

    @property
    def data(self) -> bool:
        """Say whether it looks at data."""
        return self.measure != "magnitude"

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say where the recipe asks for another sparsity, or for budgets that one threshold cannot keep apart."""
        towers = {name: tower for name, tower in context.recipe.towers.items() if tower != "keep"}
        own = {name: tower.sparsity for name, tower in towers.items() if tower.sparsity is not None}
        if own and self.each == "model":
            yield f"{', '.join(own)} has a sparsity of its own, and one threshold is for all: set each: tower"
        for name, sparsity in own.items() if self.each == "tower" else ():
            if sparsity != self.sparsity:
                yield f"its sparsity is {self.sparsity} for all towers, and that of {name} is {sparsity}: set it alike"
        asked = context.recipe.sparsity
        if asked is not None and asked != self.sparsity:
            yield (
                f"its sparsity is {self.sparsity}, and the recipe's {asked}: a threshold is for one. Set both, as by "
                f"--set sparsity={asked} --set score.sparsity={asked}"
            )

    def forwards(self, anatomy: Anatomy, batches: int) -> int:
        """Count a forward, a recomputed one, and a backward, which costs two, for each batch and step."""
        return 4 * batches * self.steps if self.data else 0

    def __call__(self, replay: Replay, layers: Sequence[Layer]) -> Iterator[tuple[str, float]]:
        wanted = {layer.name for layer in layers}
        pairs = [pair for pair in replay.anatomy.layers() if pair[1].name in wanted]
        for name, count in self._counts(replay, pairs).items():
            yield name, float(count)

    def _counts(self, replay: Replay, pairs: Sequence[tuple[Block, Layer]]) -> dict[str, int]:
        if self.measure == "magnitude":
            return self._above(pairs, {}, exact(self.sparsity))
        with restored([layer for _, layer in pairs] if self.steps > 1 else []):
            for step in range(1, self.steps):
                share = self.sparsity ** (self.steps / step)
                _prune(_gradients(replay, pairs), self._groups(pairs), share)
            return self._above(pairs, _gradients(replay, pairs), exact(self.sparsity))

    def _above(
        self, pairs: Sequence[tuple[Block, Layer]], gradients: Mapping[str, Statistics], sparsity: Fraction
    ) -> dict[str, int]:
        counts: dict[str, int] = {}
        for group in self._groups(pairs):
            keep = keep_count(sum(layer.size for layer in group), sparsity)
            counts |= counts_above(group, lambda layer: _metric(layer, gradients.get(layer.name)), keep)
        return {layer.name: counts[layer.name] for _, layer in pairs}

    def _groups(self, pairs: Sequence[tuple[Block, Layer]]) -> list[list[Layer]]:
        """Give the layers that share a threshold."""
        groups: dict[str, list[Layer]] = {}
        for block, layer in pairs:
            groups.setdefault(block.tower if self.each == "tower" else "", []).append(layer)
        return list(groups.values())


def _metric(layer: Layer, gradient: Statistics | None) -> Float[Tensor, "out in"]:
    weight = layer.weight.data.float().abs()
    if gradient is None:
        return weight
    # Without a token an expert has no gradient, and what would stand in for it is of another scale than the others'.
    return weight.mul_(gradient[LossGradient].magnitude.to(weight.device)) if gradient.is_fed else weight.zero_()


def _gradients(replay: Replay, pairs: Sequence[tuple[Block, Layer]]) -> dict[str, Statistics]:
    """Take the mean over batches of |g| of each weight."""
    return kept_gradients(replay.gradients, [layer for _, layer in pairs], (LossGradient,), None, len(replay.batches))


def _prune(gradients: Mapping[str, Statistics], groups: Sequence[Sequence[Layer]], share: float) -> None:
    """Set to zero what is below the threshold, in place."""
    for group in groups:
        keep = keep_count(sum(layer.size for layer in group), share)
        counts = counts_above(group, lambda layer: _metric(layer, gradients[layer.name]), keep)
        for layer in group:
            metric = _metric(layer, gradients[layer.name])
            mask = select(metric, Keep(counts[layer.name]), "layer")
            layer.weight.data.copy_(kept_only(layer.weight.data, mask))


@hookimpl
def ecoflap_register_scorers() -> Mapping[str, type[GlobalThreshold]]:
    return {"global_threshold": GlobalThreshold}
