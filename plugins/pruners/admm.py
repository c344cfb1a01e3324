"""The pruner ``admm`` lets weights find their values again while their mask is grown, by ADMM.

    A = D⁻¹(Σ x xᵀ)D⁻¹ + λI,  d_j = ‖X_j‖₂,  Ŵ = W·D;   V = Ŵ, U = 0, and in each iteration
    Z = (V + U) ∘ M,   U ← U + V − Z,   V ← (ŴA + ρ(Z − U)) (A + ρI)⁻¹

M keeps the largest |V + U|. In iteration t of the first T it prunes the share s·(1 − (1 − t/T)³), the cubic schedule of
Zhu & Gupta (2017), and it stays as it is in those after. Boža, Fast and Effective Weight Update for Pruned Large
Language Models, TMLR 2024. Its code compares the weights of a whole layer, and there prunes all of s from the first
iteration on. Here the mask grows with both comparisons, as in the paper; how many have gone is rounded, where theirs is
cut to a whole number.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ecoflap.core.budget.counts import Budget, Keep, Pattern
from ecoflap.core.budget.select import Compare, check_fits, select, zeros_first
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Pruner, Statistic
from ecoflap.core.contracts.records import LayerPlace, Pruned, Statistics
from ecoflap.core.errors import EcoflapError, refuse_below_one
from ecoflap.core.statistics.gram import Gram
from ecoflap.plugins.pruners.shared.better import solved_or_dense
from ecoflap.plugins.pruners.shared.normalized_gram import NormalizedGram, normalized


class _Problem(NamedTuple):
    """Holds what is to be solved for one layer: the budget, the dense weight and what is derived from it.

    :param dense: Ŵ.
    :param target: ŴA.
    :param inverse: (A + ρI)⁻¹.
    """

    weight: Float[Tensor, "out in"]
    budget: Budget
    dense: Float32[Tensor, "out in"]
    target: Float32[Tensor, "out in"]
    inverse: Float32[Tensor, "in in"]


@dataclass(frozen=True)
class Admm:
    """Keep the largest |V + U|, fewer in each iteration, and move what is kept toward the layer's outputs.

    A pattern's mask is grown too: what the pattern would keep is safe, and of the rest the smallest go first. Where the
    result would be worse than the mask alone, the kept weights stay as they were, and ``Pruned.notes`` says so.

    :param iterations: Of ADMM in all.
    :param gradual: T, in how many of them the mask is grown; 0 takes the mask of the dense weights, which is Wanda's.
    :param damping: λ, relative to each input's own norm.
    :param rho: ρ, the penalty for V being away from Z.
    :param compare: Whom a weight competes with: those of its output ``row``, or all of its ``layer``.
    """

    iterations: int = 20
    gradual: int = 15
    damping: float = 0.1
    rho: float = 1.0
    compare: Compare = "row"
    needs: ClassVar[tuple[type[Statistic], ...]] = (Gram,)

    def __post_init__(self) -> None:
        refuse_below_one("iterations", self.iterations)
        if not 0 <= self.gradual <= self.iterations:
            raise EcoflapError(f"gradual is {self.gradual}; it is a number of iterations, 0 to {self.iterations}")
        if not 0 <= self.damping < float("inf"):
            raise EcoflapError(f"damping is {self.damping}; it is a share of each input's norm, 0 or more")
        if not 0 < self.rho < float("inf"):
            raise EcoflapError(f"rho is {self.rho}; it is a penalty, above 0")

    def held_numbers(self, outputs: int, inputs: int) -> int:
        """Count the inverse and what it is made of, and of the weights the variables and what steps make of them."""
        return 5 * inputs**2 + 11 * outputs * inputs

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics, budget: Budget, layer: LayerPlace) -> Pruned:
        weight = weight.detach()
        check_fits(budget, *weight.shape)
        gram = normalized(seen[Gram])
        dense = gram.scaled(weight)
        target = (dense @ gram.matrix).add_(dense, alpha=self.damping)
        mask, values = self._solve(_Problem(weight, budget, dense, target, self._inverse(seen[Gram], gram)))
        return solved_or_dense(weight, mask, gram.unscaled(values, weight), seen[Gram], "ADMM")

    def _inverse(self, statistic: Gram, gram: NormalizedGram) -> Float32[Tensor, "in in"]:
        found: Tensor = statistic.cached(
            ("admm", self.damping, self.rho), lambda: _inverted(gram.matrix, self.damping + self.rho)
        )
        return found

    def _solve(self, problem: _Problem) -> tuple[Bool[Tensor, "out in"], Float32[Tensor, "out in"]]:
        """Give the mask, and V + U of the last iteration, which are the weights where it is True."""
        found, dual = problem.dense.clone(), torch.zeros_like(problem.dense)
        mask = torch.ones_like(found, dtype=torch.bool)
        for step in range(1, self.iterations + 1):
            both = found + dual
            if step <= max(self.gradual, 1):
                mask = self._mask(both, problem, step)
            kept = both * mask
            dual = both.sub_(kept)
            found = kept.sub_(dual).mul_(self.rho).add_(problem.target) @ problem.inverse
        return mask, found + dual

    def _mask(self, values: Float32[Tensor, "out in"], problem: _Problem, step: int) -> Bool[Tensor, "out in"]:
        metric = zeros_first(values.abs(), problem.weight)
        if step >= self.gradual:
            return select(metric, problem.budget, self.compare)
        share = 1 - (1 - step / self.gradual) ** 3
        count = Keep(_grown(metric.numel(), problem.budget.keep_of(metric.numel()), share))
        if isinstance(problem.budget, Pattern):
            safe = select(metric, problem.budget)
            return select(metric.masked_fill(safe, torch.finfo(metric.dtype).max), count, "layer")
        return select(metric, count, self.compare)


def _grown(size: int, keep: int, share: float) -> int:
    """Give how many weights are kept when a share of those that are to go has gone."""
    return size - round((size - keep) * share)


def _inverted(matrix: Float32[Tensor, "in in"], added: float) -> Float32[Tensor, "in in"]:
    """Invert A with something added to its diagonal."""
    raised = matrix.clone()
    raised.diagonal().add_(added)
    lower, failed = torch.linalg.cholesky_ex(raised)
    if failed or not bool(lower.isfinite().all()):
        raise EcoflapError(
            "ADMM cannot invert the Gram matrix of this layer's inputs. See whether the calibration data make the "
            "inputs infinite or NaN, or raise damping or rho"
        )
    return torch.cholesky_inverse(lower)


@hookimpl
def ecoflap_register_pruners() -> Mapping[str, Callable[..., Pruner]]:
    return {"admm": Admm}
