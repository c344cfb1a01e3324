"""The pruner ``alps`` finds a layer's mask and weights together by ADMM, then solves for the weights on the mask.

    minimise ‖XŴ − XW‖² with at most k weights of W other than zero;   A = XᵀX + λ·mean(diag)·I, diagonal made one
    W ← (A + ρI)⁻¹(AŴ − V + ρD),   D ← the k largest of W + V/ρ,   V ← V + ρ(W − D)

Every three iterations ρ is raised by how many weights came into D's support or left it since: 1.3-fold above 0.1·k,
1.2-fold above 0.005·k, 1.1-fold where any did. Where none did, the support is the mask, and ten steps of conjugate
gradients on it are the end. Meng, Behdin, Wang & Mazumder, ALPS: Improved Optimization for Highly Sparse One-Shot
Pruning for Large Language Models, NeurIPS 2024, Algorithms 1 and 2. Three rules are their code's: a support that hardly
moves at first is sought anew with a fifth of ρ; after 30 iterations a change below 0.0003·k is none; and ρ ends at 10⁶.
Here ρ is lowered eight times at most, an input that was always zero gets no λ, so that its weights go first, and the
mask is D's support, where their code takes the largest of W, which is the same once the support has settled.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ecoflap.core.budget.counts import Budget
from ecoflap.core.budget.select import Compare, check_fits, is_finite, select, zeros_first
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Pruner, Statistic
from ecoflap.core.contracts.records import LayerPlace, Pruned, Statistics
from ecoflap.core.errors import EcoflapError, refuse_below_one
from ecoflap.core.statistics.gram import Gram
from ecoflap.plugins.pruners.shared.better import solved_or_dense
from ecoflap.plugins.pruners.shared.conjugate_gradient import by_conjugate_gradient
from ecoflap.plugins.pruners.shared.normalized_gram import normalized

_EVERY = 3
"""Iterations after which the support is compared with the one before, and ρ is raised."""
_RAISES = ((0.1, 1.3), (0.005, 1.2))
"""Pairs of a share and a factor: where more than that share of k weights came or went, ρ is raised by that factor."""
_RAISE = 1.1
"""The factor where fewer did."""
_LOWER = 5
"""What ρ is divided by where the support hardly moves at first."""
_LOWERED = 8
"""How often that happens at most."""
_SETTLES, _SETTLED = 30, 0.0003
"""After this many iterations, a change of less than this share of k weights ends the search."""
_MOST = 1e6
"""The largest ρ."""


class _Eigen(NamedTuple):
    """Holds A = QLQᵀ, by which A + ρI is inverted for any ρ."""

    values: Float32[Tensor, " in"]
    vectors: Float32[Tensor, "in in"]

    def inverse(self, rho: float) -> Float32[Tensor, "in in"]:
        """Give (A + ρI)⁻¹."""
        return (self.vectors / (self.values + rho)) @ self.vectors.T


class _Problem(NamedTuple):
    """Holds what is to be solved for one layer: the dense weight, Ŵ and ŴA, and the budget, which keeps k."""

    weight: Float[Tensor, "out in"]
    dense: Float32[Tensor, "out in"]
    target: Float32[Tensor, "out in"]
    budget: Budget
    keep: int


@dataclass(frozen=True)
class Alps:
    """Keep the k weights that ADMM settles on, with the values that serve the layer's outputs best.

    A pattern keeps n of the m largest of each run in every iteration. Where the result would be worse than the mask
    alone, the kept weights stay as they were, and ``Pruned.notes`` says so.

    :param rho: ρ of the first iterations, the penalty for W being away from D.
    :param iterations: The most iterations of ADMM; it ends before, once the support has settled.
    :param steps: How many steps of conjugate gradients follow.
    :param damping: λ, the share of the mean diagonal that is added to the diagonal.
    :param compare: Whom a weight competes with: all of its ``layer``, as in the paper, or those of its output ``row``.
    """

    rho: float = 0.1
    iterations: int = 300
    steps: int = 10
    damping: float = 0.01
    compare: Compare = "layer"
    needs: ClassVar[tuple[type[Statistic], ...]] = (Gram,)

    def __post_init__(self) -> None:
        for name in ("iterations", "steps"):
            refuse_below_one(name, getattr(self, name))
        if not 0 < self.rho < float("inf"):
            raise EcoflapError(f"rho is {self.rho}; it is a penalty, above 0")
        if not 0 <= self.damping < float("inf"):
            raise EcoflapError(f"damping is {self.damping}; it is a share of the mean diagonal, 0 or more")

    def held_numbers(self, outputs: int, inputs: int) -> int:
        """Count the eigenvectors and what they are made of, and of the weights the variables and what steps make."""
        return 9 * inputs**2 + 12 * outputs * inputs

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics, budget: Budget, layer: LayerPlace) -> Pruned:
        weight = weight.detach()
        check_fits(budget, *weight.shape)
        gram = normalized(seen[Gram], self.damping)
        dense = gram.scaled(weight)
        problem = _Problem(weight, dense, dense @ gram.matrix, budget, budget.keep_of(weight.numel()))
        eigen: _Eigen = seen[Gram].cached(("alps", self.damping), lambda: _decomposed(gram.matrix))
        mask, kept = self._search(problem, eigen)
        found = by_conjugate_gradient(gram.matrix, dense, kept, mask, 0.0, self.steps)
        return solved_or_dense(weight, mask, gram.unscaled(found, weight), seen[Gram], "ALPS")

    def _search(self, problem: _Problem, eigen: _Eigen) -> tuple[Bool[Tensor, "out in"], Float32[Tensor, "out in"]]:
        """Give D's support, and D."""
        first = self._support(problem.dense, problem)
        mask, kept, dual = first, problem.dense * first, torch.zeros_like(problem.dense)
        if problem.keep in (0, mask.numel()):
            return mask, kept
        penalty = _Penalty(self.rho, problem.keep, first)
        inverse = eigen.inverse(penalty.rho)
        for step in range(1, self.iterations + 1):
            found = (problem.target - dual).add_(kept, alpha=penalty.rho) @ inverse
            both = found.add(dual, alpha=1 / penalty.rho)
            mask = self._support(both, problem)
            kept = both * mask
            dual.add_(found.sub_(kept), alpha=penalty.rho)
            if step % _EVERY == 0:
                if penalty.settles(mask, step):
                    break
                if penalty.begins_anew:
                    mask, kept, dual = first, problem.dense * first, torch.zeros_like(dual)
                inverse = eigen.inverse(penalty.rho)
        return mask, kept

    def _support(self, values: Float32[Tensor, "out in"], problem: _Problem) -> Bool[Tensor, "out in"]:
        return select(zeros_first(values.abs(), problem.weight), problem.budget, self.compare)


class _Penalty:
    """Holds ρ, and changes it by how the support moves.

    :ivar begins_anew: Whether ADMM has to begin anew, since ρ was lowered.
    """

    def __init__(self, rho: float, keep: int, first: Bool[Tensor, "out in"]) -> None:
        self.rho = rho
        self.begins_anew = False
        self._keep, self._first, self._before = keep, first, first
        self._lowered = 0
        self._has_moved = False

    def settles(self, mask: Bool[Tensor, "out in"], step: int) -> bool:
        """Look at the support anew; say whether it has settled, and set ρ where it has not."""
        changed = int((mask ^ self._before).count_nonzero())
        share = changed / self._keep
        self._before = mask
        self._has_moved |= share > _RAISES[-1][0] or self._lowered == _LOWERED
        if self._has_moved and (not changed or (step > _SETTLES and share < _SETTLED)):
            return True
        self.begins_anew = not self._has_moved
        if self.begins_anew:
            self.rho, self._before = self.rho / _LOWER, self._first
            self._lowered += 1
        else:
            raised = next((factor for least, factor in _RAISES if share > least), _RAISE)
            self.rho = min(self.rho * raised, _MOST)
        return False


def _decomposed(matrix: Float32[Tensor, "in in"]) -> _Eigen:
    """Decompose A in float64; its smallest eigenvalues are zero but for rounding where inputs are few."""
    if not is_finite(matrix):
        raise EcoflapError(
            "ALPS cannot decompose the Gram matrix of this layer's inputs. See whether the calibration data make the "
            "inputs infinite or NaN"
        )
    values, vectors = torch.linalg.eigh(matrix.double())
    return _Eigen(values.clamp_min(0).float(), vectors.float())


@hookimpl
def ecoflap_register_pruners() -> Mapping[str, Callable[..., Pruner]]:
    return {"alps": Alps}
