"""The allocator ``from_masks`` gives every layer as many weights as its mask of elsewhere keeps.

k_g = Σ of what the masks of the group's layers keep

It is what a recipe has by default whose pruner is ``from_masks``, which keeps those very weights.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ecoflap.core.budget.counts import Group
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Allocator
from ecoflap.core.errors import NAMED, EcoflapError, FormatError, first_of, nearest
from ecoflap.core.packed.masks_from import NamedMasks, masks_from

_WAY_OUT = "Name masks of this model, or add a mask of ones for each layer that is to stay whole"


@dataclass(frozen=True)
class FromMasks:
    """Let every group keep what the masks of its layers keep, so that a recipe needs no sparsity.

    :param path: A run's folder, a packed export, or safetensors files of masks by layer or parameter.
    :param zeros: Take the zeros of the weights there for the masks.
    """

    path: Path
    zeros: bool = False
    takes: ClassVar[None] = None

    def takes_over(self) -> Iterable[Path]:
        return [self.path]

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say where the recipe prunes in rounds."""
        if context.recipe.round_count > 1:
            yield "masks are pruned at once: remove rounds:"

    def keeps(self, layers: Sequence[str]) -> int | None:
        """Count what the masks of these layers keep in all; None where they cannot be read or one is missing."""
        try:
            masks = masks_from(self.path, zeros=self.zeros)
        except FormatError:
            return None
        counts = [masks.kept(layer) for layer in layers]
        return sum(count[0] for count in counts if count is not None) if None not in counts else None

    def __call__(self, groups: Sequence[Group], keep: int) -> list[int]:
        masks = masks_from(self.path, zeros=self.zeros)
        missing = [layer for group in groups for layer in group.layer_names if masks.name_of(layer) is None]
        problems = [*self._missing(missing, masks), *(one for group in groups for one in self._sizes(group, masks))]
        if problems:
            raise EcoflapError(*problems)
        counts = [sum(_kept(masks, layer)[0] for layer in group.layer_names) for group in groups]
        if sum(counts) != keep:
            size = sum(group.size for group in groups)
            raise EcoflapError(
                f"{self.path}: its masks keep {sum(counts)} of {size} weights of these layers, and the sparsity of "
                f"this recipe {keep}. Leave sparsity out: it is then what the masks come to, "
                f"{1 - sum(counts) / size:.6g}"
            )
        return counts

    def _missing(self, missing: Sequence[str], masks: NamedMasks) -> Iterator[str]:
        """Say which layers have no mask; of many, as there are with masks of another model, the first few."""
        if len(missing) > NAMED:
            yield (
                f"{self.path}: it has no mask of {len(missing)} layers ({first_of(missing)}), but masks of "
                f"others ({first_of([*masks.masks])}). {_WAY_OUT}"
            )
            return
        for layer in missing:
            yield f"{self.path}: it has no mask of {layer}.{nearest(layer, masks.masks)} {_WAY_OUT}"

    def _sizes(self, group: Group, masks: NamedMasks) -> Iterator[str]:
        """Say where the masks of a group are of another size."""
        there = [_kept(masks, layer) for layer in group.layer_names if masks.name_of(layer) is not None]
        size = sum(size for _, size in there)
        if len(there) == len(group.layer_names) and size != group.size:
            yield f"{self.path}: its masks of {group.name} are of {size} weights, and this model has {group.size}"


def _kept(masks: NamedMasks, layer: str) -> tuple[int, int]:
    counts = masks.kept(layer)
    assert counts is not None  # layers without a mask were refused
    return counts


@hookimpl
def ecoflap_register_allocators() -> Mapping[str, Callable[..., Allocator]]:
    return {"from_masks": FromMasks}
