"""The pruner ``refit`` gives the weights that another pruner keeps the values that serve the layer's outputs best.

    X = argmin ‖(X − W)·inputs‖² + λ·Σ_j ‖inputs_j‖²·‖X_j − W_j‖²   over all X that are zero where the mask is False

It is least squares, row by row on each row's own kept inputs. ``conjugate_gradient`` is the finish of ALPS: Meng,
Behdin, Wang & Mazumder, ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models,
NeurIPS 2024, Algorithm 2: all rows at once, from the values that are there. ALPS adds .01 of the mean diagonal to that
of every input; here λ is relative to each input's own, as in Boža's ADMM, so that to normalize is to precondition.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ecoflap.core.budget.counts import Budget
from ecoflap.core.budget.select import kept_only
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Pruner
from ecoflap.core.contracts.records import LayerPlace, Pruned, Statistics
from ecoflap.core.errors import EcoflapError, refuse_below_one
from ecoflap.core.statistics.gram import Gram
from ecoflap.plugins.pruners.shared.conjugate_gradient import by_conjugate_gradient
from ecoflap.plugins.pruners.shared.inner import held_by, looks_at_dense, needs_with
from ecoflap.plugins.pruners.shared.mended import mended
from ecoflap.plugins.pruners.shared.normalized_gram import NormalizedGram
from ecoflap.plugins.pruners.wanda import Wanda

_AT_ONCE = 1 << 24  # elements of the rows' own matrices that are solved together: 64 MB


@dataclass(frozen=True)
class Refit:
    """Keep what the inner pruner keeps, and move its weights to the least squared output error.

    Where the error would not fall, and where there are fewer tokens than inputs, so that weights would fit them alone,
    the inner pruner's weights stay, and ``Pruned.notes`` says so.

    :param inner: Chooses the mask.
    :param solver: ``conjugate_gradient``, a few steps for all rows at once, or ``exact``, one factorisation a row.
    :param steps: How many steps ``conjugate_gradient`` takes.
    :param damping: λ, how much a weight is held to its dense value.
    """

    inner: Pruner = field(default_factory=Wanda)
    solver: Literal["conjugate_gradient", "exact"] = "conjugate_gradient"
    steps: int = 10
    damping: float = 0.1

    def __post_init__(self) -> None:
        refuse_below_one("steps", self.steps)
        if not 0 <= self.damping < float("inf"):
            raise EcoflapError(f"damping is {self.damping}; it is a share of each input's norm, 0 or more")

    @property
    def needs(self) -> tuple[type[Any], ...]:
        return needs_with(self.inner, Gram)

    @property
    def dense_weights(self) -> bool:
        return looks_at_dense(self.inner)

    def held_numbers(self, outputs: int, inputs: int) -> int:
        """Count a second Gram matrix and what is made of the weights, or what the inner pruner holds if it is more.

        To solve exactly takes four times the matrices of the rows that are solved together, half of the weights kept:
        these, what is taken of the Gram matrix for them, and two of the factorisation.
        """
        own = min(max(_AT_ONCE, inputs**2 // 4), outputs * inputs**2 // 4) if self.solver == "exact" else 0
        return max(inputs**2 + 10 * outputs * inputs + 4 * own, held_by(self.inner, outputs, inputs))

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics, budget: Budget, layer: LayerPlace) -> Pruned:
        return mended(self.inner, weight, seen, budget, layer, self._refit, "refit")

    def _refit(self, weight: Float[Tensor, "out in"], before: Pruned, gram: NormalizedGram) -> Pruned:
        dense, start, mask = gram.scaled(weight), gram.scaled(before.weight), before.mask
        if self.solver == "exact":
            found = exactly(gram.matrix, dense, mask, self.damping)
        else:
            found = by_conjugate_gradient(gram.matrix, dense, start, mask, self.damping, self.steps)
        return Pruned(mask, kept_only(gram.unscaled(found, weight), mask))


def exactly(
    matrix: Float32[Tensor, "in in"],
    dense: Float32[Tensor, "out in"],
    mask: Bool[Tensor, "out in"],
    damping: float,
) -> Float32[Tensor, "out in"]:
    """Solve for each row on its own kept inputs; NaN for a row whose matrix is singular."""
    target = (dense @ matrix).add_(dense, alpha=damping)
    found = torch.zeros_like(dense)
    counts = mask.sum(1)
    order = counts.argsort()  # rows of about one count are solved together: the shorter ones are filled up
    most = max(int(counts.max()), 1) if len(counts) else 1
    for rows in order.split(max(1, _AT_ONCE // most**2)):
        width = int(counts[rows].max())
        if width:
            inputs = mask[rows].byte().argsort(dim=1, descending=True, stable=True)[:, :width]
            real = torch.arange(width, device=mask.device) < counts[rows, None]
            own = matrix[inputs[:, :, None], inputs[:, None, :]] * (real[:, :, None] & real[:, None, :])
            own.diagonal(dim1=1, dim2=2).fill_(1 + damping)
            solved = _solved(own, target[rows].gather(1, inputs) * real)
            found[rows] = torch.zeros_like(found[rows]).scatter_(1, inputs, solved)
    return found


def _solved(
    matrices: Float32[Tensor, "rows kept kept"], targets: Float32[Tensor, "rows kept"]
) -> Float32[Tensor, "rows kept"]:
    lower, failed = torch.linalg.cholesky_ex(matrices)
    solved = torch.cholesky_solve(targets[:, :, None], lower)[:, :, 0]
    return solved.masked_fill((failed != 0)[:, None], float("nan"))


@hookimpl
def ecoflap_register_pruners() -> Mapping[str, Callable[..., Pruner]]:
    return {"refit": Refit}
