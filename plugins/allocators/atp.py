"""The allocator ``atp`` lets the sparsity rise from block to block by one step.

    s_i = s + β·(i − mean(i)),   i the block's number in its tower, from 0

s is the sparsity, and mean(i) is weighted by the blocks' sizes, so that the budget is met. Errors of early blocks grow
on their way through the later ones, so that early blocks keep more. Huang, Zhang, Zheng, Chao & Ji, Determining
Layer-wise Sparsity for Large Language Models Through a Theoretical Perspective (ATP), ICML 2025.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import ClassVar

from ecoflap.core.budget.counts import Group, exact
from ecoflap.core.budget.water_fill import fill_groups
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Allocator
from ecoflap.core.errors import EcoflapError

_DIGITS = 6
"""Of the largest β that is advised, behind the point: models have some dozens of blocks, and by the hundredth of a
thousandth of a sparsity nobody tells two plans apart."""


@dataclass(frozen=True)
class Atp:
    """Give the blocks of each tower an arithmetic progression of sparsities, all towers the same mean.

    The paper's models are one tower of equal blocks.

    :param beta: The paper's β, by how much a block's sparsity is above that of the block before it. The paper searches
        it for each model and sparsity, from 0.002 in steps of 0.002; ``ecoflap sweep`` does that.
    """

    beta: float
    takes: ClassVar[None] = None

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise EcoflapError(f"beta is {self.beta}; it is a difference of sparsities, from 0 to 1")

    def __call__(self, groups: Sequence[Group], keep: int) -> list[int]:
        sparsity = 1 - Fraction(keep, sum(group.size for group in groups) or 1)
        offsets = _offsets(groups)
        shares = [sparsity + exact(self.beta) * offset for offset in offsets]
        self._check(sparsity, offsets, shares)
        base = [group.size * (1 - share) for group, share in zip(groups, shares, strict=True)]
        return fill_groups(groups, base, [group.size for group in groups], keep)

    def _check(self, sparsity: Fraction, offsets: Sequence[Fraction], shares: Sequence[Fraction]) -> None:
        """Refuse a step by which a block would lose more than all of it, or less than nothing."""
        if any(not 0 <= share <= 1 for share in shares):
            largest = min((1 - sparsity if by > 0 else sparsity) / abs(by) for by in offsets if by)
            allowed = floor(largest * 10**_DIGITS) / 10**_DIGITS  # rounded up it would be refused again
            raise EcoflapError(
                f"beta is {self.beta}, by which sparsities would run from {float(min(shares)):.4g} to "
                f"{float(max(shares)):.4g}; at a sparsity of {float(sparsity):.4g} take at most {allowed:g} here"
            )


def _offsets(groups: Sequence[Group]) -> list[Fraction]:
    """Give each group's i − mean(i): how many blocks it lies behind the middle of its tower."""
    places: dict[str, dict[str, int]] = {}
    for group in groups:
        blocks = places.setdefault(group.tower, {})
        blocks.setdefault(_block(group), len(blocks))
    depths = [places[group.tower][_block(group)] for group in groups]
    means = {tower: _mean(groups, depths, tower) for tower in places}
    return [depth - means[group.tower] for group, depth in zip(groups, depths, strict=True)]


def _block(group: Group) -> str:
    """Name the block that a group lies in; a group of several blocks stands for one."""
    return group.block or group.name


def _mean(groups: Sequence[Group], depths: Sequence[int], tower: str) -> Fraction:
    own = [(group.size, depth) for group, depth in zip(groups, depths, strict=True) if group.tower == tower]
    return Fraction(sum(size * depth for size, depth in own), sum(size for size, _ in own) or 1)


@hookimpl
def ecoflap_register_allocators() -> Mapping[str, Callable[..., Allocator]]:
    return {"atp": Atp}
