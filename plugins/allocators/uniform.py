"""The allocator ``uniform`` gives every group the same sparsity.

    k_g = n_g · K / N

n_g is a group's size, N the size of all groups and K how many weights they keep together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ecoflap.core.budget.counts import Group
from ecoflap.core.budget.water_fill import fill_groups
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Allocator


@dataclass(frozen=True)
class Uniform:
    """Keep the same share of every group.

    A count beyond a group's floor or cap is cut to it, and all other groups make up for that alike.
    """

    takes: ClassVar[None] = None

    def __call__(self, groups: Sequence[Group], keep: int) -> list[int]:
        return fill_groups(groups, [0] * len(groups), [group.size for group in groups], keep)


@hookimpl
def ecoflap_register_allocators() -> Mapping[str, Callable[..., Allocator]]:
    return {"uniform": Uniform}
