"""The allocator ``threshold`` keeps what is above one threshold for all weights of the model, or of some towers each.

    k_g = |{(i, j) ∈ g : S_ij > t}| and a share of those that equal t,   with the t at which Σ k_g = K

S_ij is the score of a single weight, which the scorer gives, and K the whole budget: the K largest numbers stay. A
group that is at its floor or cap keeps that, and t is the threshold of all others. Of weights that equal t each group
keeps a share in proportion to how many it has, remainders by name.

With |W_ij| and with |W_ij|·|g_ij| these are the two global baselines of Sung, Yoon & Bansal, ECoFLaP: Efficient
Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models, ICLR 2024, whose code compares W and not |W|. With |W_ij|
in each tower they are the budgets of Farina, Mancini, Cunegatti, Liu, Iacca & Ricci, MULTIFLOW: Shifting Towards
Task-Agnostic Vision-Language Pruning, CVPR 2024, Eq. 7.

Floats that are not negative are in the order of their 31 bits. A first pass over the numbers counts them by the upper
15, which shows in which of these bins t lies; a second counts those in it by the lower 16, and a third what is above t.
One layer's numbers are in memory at a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from ecoflap.core.budget.counts import Group
from ecoflap.core.budget.water_fill import split, water_fill
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Allocator
from ecoflap.core.errors import EcoflapError, first_of, unknown

_UPPER, _LOWER = 1 << 15, 1 << 16
"""How many values the upper 15 and the lower 16 of the 31 bits have."""


@dataclass(frozen=True)
class Threshold:
    """Give groups what they have of the largest numbers, so that layers of larger ones keep more.

    :param each: Whether there is one threshold for the whole ``model`` or one for each ``tower``; or lists of towers
        that share one, such as ``[[vision], [encoder, decoder]]``, a tower in none of them having its own. All have the
        recipe's sparsity. A tower with a sparsity of its own has a threshold of its own in any case.
    """

    each: Literal["model", "tower"] | tuple[tuple[str, ...], ...] = "model"
    takes: ClassVar[Literal["weights"]] = "weights"

    def __post_init__(self) -> None:
        named = [tower for towers in self._together for tower in towers]
        twice = [tower for tower in dict.fromkeys(named) if named.count(tower) > 1]
        if twice:
            raise EcoflapError(f"each names {', '.join(twice)} twice; a tower has one threshold")

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say where the recipe's groups are of several towers, and which towers this model lacks."""
        score = context.recipe.score
        if self.each != "model" and score is not None and score.granularity == "model":
            yield "each tower has a threshold, and with score.granularity: model all towers are one group. Use layer"
        towers = [tower.name for tower in context.anatomy.towers]
        for name in (name for names in self._together for name in names if name not in towers):
            yield f"each: {unknown('tower', name, towers)}"

    def __call__(self, groups: Sequence[Group], keep: int) -> list[int]:
        missing = [group.name for group in groups if len(group.weight_scores) != len(group.layer_names)]
        if missing:
            raise EcoflapError(f"threshold needs a number of each weight, and has none of {first_of(missing, 5)}")
        kept: dict[str, int] = {}
        for inside, share in self._budgets(groups, keep):
            kept |= {group.name: count for group, count in zip(inside, _largest(inside, share), strict=True)}
        return [kept[group.name] for group in groups]

    def _budgets(self, groups: Sequence[Group], keep: int) -> list[tuple[list[Group], int]]:
        """Give the groups that share a threshold, and how many weights they keep: towers the same share of theirs."""
        towers: dict[str, list[Group]] = {}
        for group in groups:
            towers.setdefault(self._shares_with(group.tower), []).append(group)
        sizes, floors, caps = (
            [sum(of(group) for group in inside) for inside in towers.values()]
            for of in (lambda group: group.size, lambda group: group.floor, lambda group: group.most)
        )
        shares = water_fill([0] * len(sizes), sizes, floors, caps, keep, list(towers))
        return list(zip(towers.values(), shares, strict=True))

    def _shares_with(self, tower: str) -> str:
        """Name by one of them the towers that have a threshold together with this one."""
        return "" if self.each == "model" else next((names[0] for names in self._together if tower in names), tower)

    @property
    def _together(self) -> tuple[tuple[str, ...], ...]:
        return () if isinstance(self.each, str) else self.each


def _largest(groups: Sequence[Group], keep: int) -> list[int]:
    """Count what each group keeps where the largest ``keep`` numbers of all of them are kept."""
    upper = _last_bin(_kept_from(groups, _UPPER, _by_upper), keep)
    lower = _last_bin(_kept_from(groups, _LOWER, lambda bits: _by_lower(bits, upper)), keep)
    at = upper * _LOWER + lower
    above, ties = [], []
    for group in groups:
        found = [_above(bits, at) for bits in _bits(group)]
        more, equal = (sum(counts) for counts in zip(*found, strict=True))
        above.append(group.clamp(more))
        ties.append(group.clamp(more + equal) - above[-1])
    shares = split(keep - sum(above), ties, [group.name for group in groups])
    return [count + share for count, share in zip(above, shares, strict=True)]


def _kept_from(
    groups: Sequence[Group], bins: int, count: Callable[[Tensor], tuple[int, Tensor]]
) -> Int64[Tensor, " bins"]:
    """Give for each bin how many weights all groups keep, within their bounds, if all from it on are kept.

    :param count: Counts, by the bits of a layer's numbers, those above all bins and those in each of them.
    """
    total = torch.zeros(bins, dtype=torch.int64)
    for group in groups:
        above, inside = 0, torch.zeros(bins, dtype=torch.int64)
        for bits in _bits(group):
            more, counts = count(bits)
            above += more
            inside += counts
        total += (above + inside.flip(0).cumsum(0).flip(0)).clamp(group.floor, group.most)
    return total


def _bits(group: Group) -> Iterator[Int32[Tensor, " weights"]]:
    for scores in group.weight_scores:
        yield (scores.numbers().flatten() + 0.0).view(torch.int32)  # + 0.0 makes -0.0 a 0.0, whose bits are all 0


def _by_upper(bits: Int32[Tensor, " weights"]) -> tuple[int, Int64[Tensor, " bins"]]:
    return 0, torch.bincount(bits >> 16, minlength=_UPPER)


def _by_lower(bits: Int32[Tensor, " weights"], upper: int) -> tuple[int, Int64[Tensor, " bins"]]:
    high = bits >> 16
    return int((high > upper).count_nonzero()), torch.bincount(bits[high == upper] & (_LOWER - 1), minlength=_LOWER)


def _above(bits: Int32[Tensor, " weights"], at: int) -> tuple[int, int]:
    return int((bits > at).count_nonzero()), int((bits == at).count_nonzero())


def _last_bin(kept_from: Int64[Tensor, " bins"], keep: int) -> int:
    """Find the highest bin from which on at least ``keep`` weights are kept; the lowest, where no bin has as many."""
    return max(int((kept_from >= keep).count_nonzero()) - 1, 0)  # what is kept falls from bin to bin


@hookimpl
def ecoflap_register_allocators() -> Mapping[str, Callable[..., Allocator]]:
    return {"threshold": Threshold}
