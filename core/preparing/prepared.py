"""A recipe with its model found and taken apart, still without weights."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, cached_property

import torch
from torch import nn

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, is_of_inputs
from ecoflap.core.contracts.records import Target, TokenChoice, View
from ecoflap.core.disk.stored_type import stored_type
from ecoflap.core.dtypes import dtype_called
from ecoflap.core.machine.arithmetic import is_slow, slow_types
from ecoflap.core.model.anatomy import Anatomy, Source
from ecoflap.core.model.kept_whole import KeptWhole, kept_whole
from ecoflap.core.model.never_pruned import tied_names
from ecoflap.core.model.source import files_read
from ecoflap.core.planning.plan import SHARED, Pool, pools_of, scored_in
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.refining.dense_block import targets_of
from ecoflap.core.refining.subblocks import SubBlock, subblocks_of


@dataclass(frozen=True)
class Prepared:
    """A recipe with its model found and taken apart, still without weights.

    :param anatomy: Of the weightless model, or of the one in memory.
    :param pools: Which layers share which budget.
    :param model: The model the anatomy is of.
    """

    recipe: Recipe
    source: Source
    adapter: Adapter
    anatomy: Anatomy
    pools: tuple[Pool, ...]
    model: nn.Module

    @property
    def size(self) -> int:
        """Prunable weights in all."""
        return sum(pool.size for pool in self.pools)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Give the model's type: that of most of one in memory, or what the recipe asks for or it is stored in."""
        if self.source.model is not None:
            return self.anatomy.dtype
        asked = self.recipe.model.dtype
        return self.dtype_of_files if asked == "auto" else dtype_called(asked) or torch.float32

    @property
    def dtype_of_files(self) -> torch.dtype:
        """Give the type that the model is stored in: float32 where nothing tells."""
        return self._stored or torch.float32

    @cached_property
    def _stored(self) -> torch.dtype | None:
        """Give the type that the configuration names, or that the first file is in; None where neither tells."""
        named = self.source.config.get("dtype") or self.source.config.get("torch_dtype")
        if named:
            return dtype_called(named) or torch.float32
        files = [file for file in files_read(self.source) if file.suffix == ".safetensors" and file.is_file()]
        return stored_type(files[0]) if files else None

    @cached_property
    def _types(self) -> frozenset[torch.dtype]:
        """Give the types of all weights, of which one in memory may have several; none where nothing tells."""
        if self.source.model is not None:
            return frozenset(one.dtype for one in self.source.model.parameters() if one.is_floating_point())
        is_told = self.recipe.model.dtype != "auto" or self._stored is not None
        return frozenset({self.dtype} if is_told else ())

    @property
    def may_be_narrow(self) -> bool:
        """Say whether weights may be narrower than float32: any of them is, or it shows only when they are read."""
        return not self._types or any(one.itemsize < torch.float32.itemsize for one in self._types)

    @property
    def is_on_cpu(self) -> bool:
        """Say whether the model's blocks will run on the CPU; of a model that is in memory already that shows."""
        device, model = self.recipe.model.device, self.source.model
        if device == "auto" and model is not None:
            device = next(model.parameters()).device.type
        return device == "cpu" or (device == "auto" and not torch.cuda.is_available())

    @cached_property
    def held_in(self) -> torch.dtype | None:
        """Give the type that weights are held in while they are used, so that products are computed in it.

        None stands for the model's own type. Float32 is for a model that is narrower, where the recipe asks for it, or
        leaves it open and the CPU is slow in the model's type.
        """
        if not self.may_be_narrow:
            return None
        asked = self.recipe.model.compute
        lacks = any(map(is_slow, self._types)) if self._types else bool(slow_types())
        is_better = asked == "auto" and self.is_on_cpu and lacks
        return torch.float32 if is_better or asked == "float32" else None

    @property
    def pruned_towers(self) -> list[str]:
        """Name the towers that are pruned, in the order they run."""
        pruned = {block.tower for pool in self.pools for block, _ in pool.layers}
        return [tower.name for tower in self.anatomy.towers if tower.name in pruned]

    @property
    def prunes_in_turn(self) -> bool:
        """Say whether layers wait for those before them in their block, which change what a pruner looks at."""
        needs = (need for tower in self.pruned_towers for need in self.pruners[tower].options.needs)
        return self.recipe.sequential and any(map(is_of_inputs, needs))

    @cached_property
    def context(self) -> PlanContext:
        """Give what a part is given that looks for problems."""
        refused = cache(self._refused)
        known = self.knows_processor
        return PlanContext(
            self.recipe, self.anatomy, self.adapter, self.model, self._views, refused, known, lambda: self.scored
        )

    @cached_property
    def scored(self) -> Anatomy:
        """Give the anatomy of what is scored."""
        return scored_in(self.anatomy, self.pools)

    @cached_property
    def adapter_options(self) -> AdapterOptions:
        """Give the adapter's optional members."""
        return options_of(AdapterOptions, self.adapter)

    @property
    def knows_processor(self) -> bool:
        """Say whether the processor that a run would have is known before weights are read.

        Of a model in memory it is the one that was given, or none; one that lies here is read by its adapter.
        """
        reads = self.adapter_options.read_processor is not None and self.source.path is not None
        return self.source.model is not None or self.adapter.processor is not None or reads

    @cached_property
    def views(self) -> Mapping[str, View]:
        """Give the views that the adapter has of the model, by name; their modules hold the model's own parameters."""
        with blaming(f"the adapter {type(self.adapter).__name__}, asked for its views,"):
            return {view.name: view for view in self.adapter_options.export_views(self.model)}

    def _views(self) -> tuple[str, ...]:
        return tuple(self.views)

    def _refused(self, exporter: str) -> Mapping[str, str]:
        with blaming(f"the adapter {type(self.adapter).__name__}, asked which views cannot be exported,"):
            return self.adapter_options.views_refused(self.model, exporter)

    @property
    def looks_at_scores(self) -> bool:
        """Say whether layers have to be scored: patterns and some allocators ask for none."""
        patterned = all(isinstance(pool.sparsity, Pattern) for pool in self.pools)
        return self.recipe.score is not None and self.recipe.takes_scores and not patterned

    @property
    def why_unscored(self) -> str:
        """Say why nothing has to be scored; of no use where something has."""
        taken = self.recipe.takes_scores
        return "a pattern leaves no budget to divide" if taken else f"{self.recipe.allocate.use} looks at no score"

    @property
    def scores_in_float32(self) -> bool:
        """Say whether the model is run in float32 to be scored, whatever type it is in."""
        score = self.recipe.score
        return score is not None and self.looks_at_scores and score.scorer.options.dtype == "float32"

    @property
    def also_changed(self) -> list[str]:
        """Say what pruning changes besides, because it is tied to a matrix that the recipe includes."""
        tied = {
            layer.name: tied_names(self.model, layer.name)
            for pool in self.pools
            for block, layer in pool.layers
            if block.tower in self.recipe.included
        }
        return [
            f"{name} is the same weight as {' and '.join(others)}, which is pruned with it; scores and statistics look "
            f"at {name} alone"
            for name, others in tied.items()
            if others
        ]

    @cached_property
    def kept_whole(self) -> list[KeptWhole]:
        """Sum up by reason what of the model no budget is about."""
        with blaming(f"the adapter {type(self.adapter).__name__}, asked for what it leaves out,"):
            left_out, towers = self.adapter_options.left_out(self.model), self.adapter.towers(self.model)
        pruned = {layer.name for pool in self.pools for _, layer in pool.layers}
        return kept_whole(self.model, self.anatomy, towers, pruned, left_out)

    @property
    def pruners(self) -> Mapping[str, PartSpec]:
        """Give the pruner of each tower, its own or the one that all others share."""
        own = {name: tower.prune for name, tower in self.recipe.towers.items() if tower != "keep"}
        return {tower.name: own.get(tower.name) or self.recipe.prune for tower in self.anatomy.towers}

    def tokens(self, taken: TokenChoice | None = None) -> Mapping[str, TokenChoice]:
        """Give which tokens count in the statistics of each tower, its own choice or the one that all others share.

        :param taken: That one, where several are tried; None for the recipe's.
        """
        own = {name: tower.tokens for name, tower in self.recipe.towers.items() if tower != "keep"}
        return {tower.name: own.get(tower.name) or taken or self.recipe.tokens for tower in self.anatomy.towers}

    @property
    def tokens_tried(self) -> tuple[TokenChoice, ...]:
        """Give the choices of tokens that each candidate is tried by; none where the recipe says which count."""
        options = self.recipe.allocate.options
        return options.tokens if options.candidates else ()

    @property
    def token_choices(self) -> Sequence[tuple[str, tuple[TokenChoice, ...], tuple[str, ...]]]:
        """Give each key that chooses tokens, its choices, several where they are tried, and its pruned towers."""
        own = {name: tower.tokens for name, tower in self.recipe.towers.items() if tower != "keep"}
        of_towers = [
            (f"towers.{name}.tokens", (choice,), (name,)) for name in self.pruned_towers if (choice := own.get(name))
        ]
        shared, tried = tuple(name for name in self.pruned_towers if not own.get(name)), self.tokens_tried
        key = f"{self.recipe.allocated_at}.tokens" if tried else "tokens"
        of_all = [(key, tried or (self.recipe.tokens,), shared)] if shared else []
        return [*of_towers, *of_all]

    @property
    def block_refiners(self) -> Mapping[str, tuple[PartSpec, ...]]:
        """Give the refiners of each tower's blocks, its own or those that all others share."""
        return {tower.name: self.recipe.block_refiners_of(tower.name) for tower in self.anatomy.towers}

    @property
    def subblocks_asked(self) -> Mapping[str, Mapping[str, Sequence[SubBlock]]]:
        """Give the sub-blocks of each tower's blocks, by their names, where a refiner asks: as far as modules tell."""
        pruned = {layer.name for pool in self.pools for _, layer in pool.layers}
        found = {}
        for tower in self.anatomy.towers:
            options = [one.options for one in self.block_refiners[tower.name]]
            if not tower.outside and any(one.inside or one.each == "subblock" for one in options):
                of_blocks = ((block, self.anatomy.layers_of[block.name]) for block in tower.blocks)
                planned = [(block, [layer for layer in of if layer.name in pruned]) for block, of in of_blocks]
                found[tower.name] = {block.name: subblocks_of(block, layers) for block, layers in planned if layers}
        return {tower: of_blocks for tower, of_blocks in found.items() if of_blocks}

    @property
    def model_refiners(self) -> tuple[PartSpec, ...]:
        """Give the refiners of the whole model."""
        return tuple(one for one in self.recipe.refine if one.options.scope == "model")

    @property
    def targets_asked(self) -> Collection[Target]:
        """Give what refiners hold the pruned model or its blocks against."""
        of_blocks = targets_of(one.options for refiners in self.block_refiners.values() for one in refiners)
        return of_blocks | {"dense"} if self.model_refiners else of_blocks

    @property
    def holds_dense_weights(self) -> bool:
        """Say whether somebody looks at the dense weights behind the round, or the block, that changes them."""
        later = self.recipe.round_count > 1 and (
            bool(self.targets_asked) or any(pruner.options.dense_weights for pruner in self.pruners.values())
        )
        return later or any(refiner.options.dense_weights for refiner in self.model_refiners)

    @property
    def looks_at_dense(self) -> bool:
        """Say whether a refiner asks what the dense model gave."""
        return "dense" in self.targets_asked


def pools_in(anatomy: Anatomy, recipe: Recipe) -> list[Pool]:
    """Give the layers of a model that share a budget, as a recipe has it."""
    pools = pools_of(anatomy, *_choices(recipe))
    if recipe.sparsity_fraction is not None:
        return pools
    return [replace(pool, sparsity=_own_share(pool, recipe)) if pool.name == SHARED else pool for pool in pools]


def _own_share(pool: Pool, recipe: Recipe) -> Fraction:
    """Give the share that goes where the allocator says how many weights stay; 0 where it cannot tell.

    Why it cannot is told by its call, which is held to this.
    """
    who = f"the allocator {recipe.allocate.use}, asked how many weights it keeps,"
    with blaming(who):
        kept: int | None = recipe.allocate.options.keeps([layer.name for _, layer in pool.layers])
    return Fraction(0) if kept is None else max(1 - Fraction(kept, pool.size), Fraction(0))


def _choices(recipe: Recipe) -> tuple[Fraction | Pattern, dict[str, Fraction | Pattern | None], list[str]]:
    own = {name: tower for name, tower in recipe.towers.items() if tower != "keep"}
    budgets: dict[str, Fraction | Pattern | None] = dict.fromkeys(recipe.included)
    budgets |= {name: tower.pattern or tower.sparsity_fraction for name, tower in own.items() if tower.is_pruned}
    kept = [name for name, tower in recipe.towers.items() if tower == "keep"]
    return recipe.pattern or recipe.sparsity_fraction or Fraction(0), budgets, kept
