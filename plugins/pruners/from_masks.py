"""The pruner ``from_masks`` keeps the weights that a mask of elsewhere keeps: another run's, or a published one.

    kept_ij where mask_ij is True

With ``refit`` or ``refine:`` it mends what another tool has pruned, for the weights are those of the model that the
recipe names, and the masks alone come from there.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from ecoflap.core.budget.counts import Budget
from ecoflap.core.budget.select import kept_only
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Pruner, Statistic
from ecoflap.core.contracts.records import LayerPlace, Pruned, Statistics
from ecoflap.core.errors import EcoflapError, ModelError, first_of, nearest
from ecoflap.core.model.anatomy import Layer
from ecoflap.core.packed.masks_from import NamedMasks, mask_files, masks_from

_FEW = 5
"""So many names a sentence has at most."""


@dataclass(frozen=True)
class FromMasks:
    """Keep what a mask keeps. No weight that is kept changes, and nothing is looked at but the masks.

    Masks are found by the layer's name, its parameter's, ``model.layers.0.mlp.up_proj.weight``, or its module's. They
    lie as the parameters do.

    :param path: A run's folder, or its ``masks.safetensors``; a packed export, or its folder; or a safetensors file, or
        a folder of some, whose tensors are masks: boolean, or zeros and ones in uint8, one for what is kept.
    :param zeros: Take the zeros of the weights there for the masks: ``path`` is a pruned checkpoint in safetensors.
    """

    path: Path
    zeros: bool = False
    needs: ClassVar[tuple[type[Statistic], ...]] = ()
    changes_weights: ClassVar[bool] = False

    @property
    def allocate(self) -> Mapping[str, Any]:
        """Give the allocator that keeps as many weights of each layer as the masks do."""
        return {"use": "from_masks", "path": str(self.path), "zeros": self.zeros}

    def takes_over(self) -> Iterable[Path]:
        return [self.path]

    def files(self) -> Iterable[Path]:
        return mask_files(self.path, zeros=self.zeros)

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say where masks cannot be read, are of another model, or are not what the recipe allocates by."""
        if context.recipe.round_count > 1:
            yield "masks are pruned at once: remove rounds:"
        allocator = context.recipe.allocate
        is_own = allocator.use == "from_masks" and allocator.plain() == {**allocator.plain(), **self.allocate}
        if not is_own and context.recipe.pattern is None:
            yield self._not_allocated(context)
        try:
            masks = masks_from(self.path, zeros=self.zeros)
        except EcoflapError as error:
            if not is_own:  # the allocator gives the reasons, too
                yield from error.problems
            return
        yield from self._strangers(masks, context)
        if not self.zeros:  # else what is not pruned may hold zeros, too
            yield from context.left_dense(self.path, lambda name: _prunes(masks.kept(name)))
        yield from self._misshapen(masks, [layer for _, layer in context.anatomy.layers()])

    def _not_allocated(self, context: PlanContext) -> str:
        """Say how to have the masks' own counts kept, where the recipe allocates otherwise."""
        head = f"it keeps as many weights as the masks do, and the recipe allocates by {context.recipe.allocate.use}"
        shared = [spec for _, spec in context.recipe.prune.with_inner("prune") if spec.kind == "pruner"]
        if any(spec.built == self for spec in shared):
            return f"{head}: leave allocate and sparsity out, or write a pattern that the masks keep"
        return (
            f"{head}, for the other towers are pruned by {context.recipe.prune.use}. Masks are for all towers or for "
            f"none: write them under prune:; or let the other towers keep as many weights as their masks do, by "
            f"allocate: {{use: from_masks, path: …}} without sparsity; or write a pattern that the masks keep"
        )

    def _strangers(self, masks: NamedMasks, context: PlanContext) -> Iterator[str]:
        """Say which masks are of nothing that this model has, or prune what is no layer of it."""
        layers = [layer for _, layer in context.anatomy.layers()]
        known = {name for layer in layers if (name := masks.name_of(layer.name)) is not None}
        parameters = {name for name, _ in context.model.named_parameters(remove_duplicate=False)}
        unknown = [name for name in masks.masks if name not in known and name not in parameters]
        if unknown:
            without = [layer.name for layer in layers if masks.name_of(layer.name) is None]
            yield (
                f"{self.path}: {len(unknown)} of its {len(masks.masks)} masks are of nothing that this model has, so "
                f"that they are another model's ({first_of(unknown, _FEW)}).{nearest(unknown[0], without)} Name masks "
                f"of this model, or take these out"
            )
        beside = () if self.zeros else context.beside_layers(masks.masks)
        pruned = [name for name in beside if not bool(masks.masks[name].all())]
        if pruned:
            yield (
                f"{self.path}: it prunes what is no layer here: {first_of(pruned, _FEW)}. Take these masks out, or "
                f"name under include: what may be pruned"
            )

    def _misshapen(self, masks: NamedMasks, layers: list[Layer]) -> Iterator[str]:
        for layer in layers:
            mask = masks.of(layer.name)
            wanted = tuple(layer.as_stored(layer.weight).shape)
            if mask is not None and tuple(mask.shape) != wanted:
                yield f"{self.path}: the mask of {layer.name} is {tuple(mask.shape)}, and the weight {wanted}"

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics, budget: Budget, layer: LayerPlace) -> Pruned:
        weight = weight.detach()
        mask = self._mask(layer).to(weight.device)
        if mask.shape != weight.shape:
            raise ModelError(f"{self.path}: the mask is {tuple(mask.shape)}, and the weight {tuple(weight.shape)}")
        return Pruned(mask, kept_only(weight, mask))

    def _mask(self, layer: LayerPlace) -> Bool[Tensor, "out in"]:
        mask = masks_from(self.path, zeros=self.zeros).of(layer.name)
        if mask is None:
            raise ModelError(f"{self.path}: it has no mask of this layer")
        return mask.T.contiguous() if layer.transposed else mask


def _prunes(kept: tuple[int, int] | None) -> bool:
    """Say whether a mask takes weights out, by how many of how many it keeps; there may be none."""
    return kept is not None and kept[0] < kept[1]


@hookimpl
def ecoflap_register_pruners() -> Mapping[str, Callable[..., Pruner]]:
    return {"from_masks": FromMasks}
