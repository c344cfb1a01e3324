"""All that is known before weights are read, for a part that looks for problems."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.model.anatomy import Anatomy


@dataclass(frozen=True)
class PlanContext:
    """A recipe beside the model it is to be run on.

    :param recipe: The checked recipe, an ``ecoflap.core.recipe.schema.Recipe``. Typed loosely, because a recipe is made
        of parts and a part's contract is read before there is one.
    :param anatomy: Towers, blocks and layers, with the matrices outside the blocks that the recipe includes.
    :param adapter: The model's.
    :param model: The model without weights (on the ``meta`` device), or the one in memory.
    :param list_views: Gives the names of :attr:`views`; asked at most once.
    :param list_refused: Gives by an exporter's name what :meth:`views_refused` does.
    :param knows_processor: Whether the adapter's ``processor`` is the one that a run would have, or None as there.
    :param list_scored: Gives :attr:`scored`; None where all towers are.
    """

    recipe: Any
    anatomy: Anatomy
    adapter: Adapter
    model: nn.Module
    list_views: Callable[[], tuple[str, ...]] = field(default=tuple, repr=False, compare=False)
    list_refused: Callable[[str], Mapping[str, str]] = field(default=lambda exporter: {}, repr=False, compare=False)
    knows_processor: bool = False
    list_scored: Callable[[], Anatomy] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def views(self) -> tuple[str, ...]:
        """Names of the views that the adapter can export of this model; empty where it exports none."""
        return self.list_views()

    @cached_property
    def scored(self) -> Anatomy:
        """Give the anatomy of what scores are asked of: of each tower that is pruned, and by no pattern."""
        return self.anatomy if self.list_scored is None else self.list_scored()

    def views_refused(self, exporter: str) -> Mapping[str, str]:
        """Say by name which views an exporter cannot write of this model, and why, as the adapter has it."""
        return self.list_refused(exporter)

    def left_dense(self, file: Path, is_pruned: Callable[[str], bool]) -> Iterator[str]:
        """Say which towers a file prunes that are kept by default, where the recipe does not say what it wants.

        :param is_pruned: Says by a layer's name whether the file prunes it.
        """
        said = {*self.recipe.included, *self.recipe.towers}
        for tower in self.anatomy.towers:
            if not tower.prunable and tower.name not in said:
                pruned = sum(is_pruned(layer.name) for _, layer in self.anatomy.layers(tower.blocks))
                if pruned:
                    yield (
                        f"{file}: it prunes {pruned} layers of the tower {tower.name}, which is kept whole by default. "
                        f"Prune it here too, by include: [{tower.name}], or have it stay whole, by towers: "
                        f"{{{tower.name}: keep}}"
                    )

    def beside_layers(self, names: Iterable[str]) -> list[str]:
        """Give those of some names that are of parameters of the model which are no layers here, nor tied to one."""
        tied = {id(layer.parameter) for _, layer in self.anatomy.layers()}
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        return [name for name in names if name in parameters and id(parameters[name]) not in tied]
