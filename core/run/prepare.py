"""Everything that can be known, and refused, before weights are read."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.contracts.protocols import Adapter, Pruner
from ecoflap.core.errors import EcoflapError, ModelError, RecipeError, nearest
from ecoflap.core.model.anatomy import Anatomy, Source
from ecoflap.core.model.never_pruned import not_included, tied_to
from ecoflap.core.model.source import check_weights, in_memory, is_on_hub, open_source, with_config
from ecoflap.core.pruning.plan import Pool, make_plan, pools_of
from ecoflap.core.recipe.part_spec import Part
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.record.reuse import strangers
from ecoflap.core.registry.adapter_for import adapter_for
from ecoflap.core.registry.parameters import KINDS
from ecoflap.core.registry.registry import Registry
from ecoflap.core.run.ability_checks import ability_problems

DATA = frozenset({"dataset", "evaluator"})
"""Kinds of parts whose problems keep a recipe from being run, and not from being planned."""


class DataNotReady(RecipeError):
    """A recipe that could be run, were it not for the data that it calibrates and evaluates on.

    :param prepared: All that is known without them.
    """

    def __init__(self, prepared: "Prepared", *problems: str) -> None:
        self.prepared = prepared
        super().__init__(*problems)


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

    @property
    def looks_at_scores(self) -> bool:
        """Whether layers have to be scored: patterns and some allocators ask for none."""
        patterned = all(isinstance(pool.sparsity, Pattern) for pool in self.pools)
        takes = self.recipe.allocate.trait("takes", "score") is not None
        return self.recipe.score is not None and takes and not patterned

    @property
    def also_changed(self) -> list[str]:
        """What pruning changes besides, because it is tied to a matrix that the recipe includes: a sentence each."""
        tied = {
            layer.name: tied_to(self.model, layer.name)
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

    def pools_in(self, anatomy: Anatomy) -> list[Pool]:
        """The pools again, of the same model with its weights."""
        return pools_of(anatomy, *_choices(self.recipe))

    @property
    def pruners(self) -> Mapping[str, Pruner]:
        """By tower."""
        recipe, shared = self.recipe, self.recipe.prune.build()
        chosen = {name: own.prune for name, own in recipe.towers.items() if own != "keep"}
        towers = {tower.name: chosen.get(tower.name) for tower in self.anatomy.towers}
        return {name: part.build() if part else shared for name, part in towers.items()}


def prepare(
    recipe: Recipe,
    registry: Registry,
    model: nn.Module | None = None,
    processor: Any = None,
    *,
    own: Path | None = None,
    planning: bool = False,
) -> Prepared:
    """Find the model and its adapter, take it apart without weights, and collect every problem the recipe has with it.

    :param model: One in memory, to prune instead of the recipe's source.
    :param processor: Its tokenizer or processor.
    :param own: The folder of the run this is for.
    :param planning: Take ``model.config`` in place of the hub's. Otherwise it is held to what the hub has.
    :raises DataNotReady: Where nothing is wrong but with data.
    :raises RecipeError: With every problem there is.
    """
    config = recipe.model.config if planning else None
    source = in_memory(model) if model is not None else open_source(recipe.model.source, Path.cwd(), config)
    adapter = recipe.model.named_adapter() or adapter_for(source, registry)
    if processor is not None:
        adapter.processor = processor
    weightless = model if model is not None else adapter.load(source, None, "meta")
    anatomy = Anatomy.of(adapter.towers(weightless), adapter.layers, recipe.included)
    pools = tuple(pools_of(anatomy, *_choices(recipe)))
    prepared = Prepared(recipe, source, adapter, anatomy, pools, weightless)
    problems = [*strangers(recipe, own), *_problems(prepared, registry)]
    shipped = recipe.model.config
    if shipped is not None and is_on_hub(source) and not planning:
        problems += _said_by(partial(_check_config, prepared, shipped))
    of_data = list(_part_problems(prepared, DATA))
    if problems:
        raise RecipeError(*dict.fromkeys([*problems, *of_data]))
    if of_data:
        raise DataNotReady(prepared, *of_data)
    return prepared


def _choices(recipe: Recipe) -> tuple[Fraction | Pattern, dict[str, Fraction | Pattern | None], list[str]]:
    own = {name: tower for name, tower in recipe.towers.items() if tower != "keep"}
    budgets: dict[str, Fraction | Pattern | None] = dict.fromkeys(recipe.included)
    budgets |= {name: tower.pattern or tower.sparsity_fraction for name, tower in own.items()}
    kept = [name for name, tower in recipe.towers.items() if tower == "keep"]
    return recipe.pattern or recipe.sparsity_fraction, budgets, kept


def _problems(prepared: Prepared, registry: Registry) -> Iterator[str]:
    recipe = prepared.recipe
    towers = [tower.name for tower in prepared.anatomy.towers]
    for name in recipe.towers:
        if name not in towers:
            yield f"towers.{name}: this model has no such tower.{nearest(name, towers)} Known: {', '.join(towers)}."
    yield from _include_problems(prepared)
    if not prepared.pools:
        yield f"towers: every tower of this model is kept, so there is nothing to prune. It has {', '.join(towers)}."
    yield from _device_problems(prepared)
    yield from _pattern_problems(prepared.pools)
    yield from _score_problems(recipe)
    if prepared.source.model is None:
        yield from _said_by(lambda: check_weights(prepared.source))
    yield from _adapter_problems(prepared)
    yield from _part_problems(prepared, set(KINDS) - DATA)
    yield from _length_problems(prepared)
    yield from _ability_problems(prepared, registry)
    if prepared.pools and recipe.allocate.trait("takes", "score") is None:
        # Nothing else decides about it, so the whole plan can be tried.
        allocator = recipe.allocate.build()
        yield from (
            f"allocate: {told}" for told in _said_by(lambda: make_plan(prepared.pools, allocator, "layer", None))
        )


def _include_problems(prepared: Prepared) -> Iterator[str]:
    towers = prepared.adapter.towers(prepared.model)
    for name in prepared.recipe.include:
        meant = name.removesuffix(".weight")
        if meant not in [tower.name for tower in prepared.anatomy.towers]:
            yield f"include: {not_included(name, prepared.model, prepared.anatomy, towers)}"
        elif prepared.recipe.towers.get(meant) == "keep":
            yield f"include: {name} is to be pruned here and kept under towers. Remove one."


def _device_problems(prepared: Prepared) -> Iterator[str]:
    asked = prepared.recipe.model
    number = int(asked.device.partition(":")[2] or 0)
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked.device.startswith("cuda") and number >= there:
        yield f"model.device: {asked.device} is not there: torch sees {there} CUDA devices. Use auto or cpu."
    if prepared.source.model is not None and asked.dtype != "auto":
        yield "model.dtype: a model in memory keeps the type it has. Leave dtype out, or convert the model."


def _adapter_problems(prepared: Prepared) -> Iterator[str]:
    named = "model.adapter: " if prepared.recipe.model.adapter else ""
    yield from (f"{named}{problem}" for problem in _asked(prepared.adapter, prepared))


def _part_problems(prepared: Prepared, kinds: Container[str]) -> Iterator[str]:
    for where, part in _parts(prepared.recipe):
        if part.kind in kinds:
            yield from (f"{where}: {problem}" for problem in _asked(part.build(), prepared))


def _length_problems(prepared: Prepared) -> Iterator[str]:
    longest = prepared.adapter.max_length(prepared.model)
    for where, part in _parts(prepared.recipe):
        built = part.build()
        if hasattr(built, "tokens_per_sample"):
            yield from (f"{where}: {told}" for told in _said_by(partial(built.tokens_per_sample, longest)))


def _check_config(prepared: Prepared, config: Path) -> None:
    """Refuse a configuration that the plan was made by and that is of another model than the hub has."""
    source, adapter = with_config(prepared.source.name, config), prepared.adapter
    if adapter.matches(prepared.source) and not adapter.matches(source):
        kinds = [one.config.get("model_type", "unknown") for one in (prepared.source, source)]
        raise ModelError(f"model.config: {prepared.source.name} is a {kinds[0]!r}, and {config} is of a {kinds[1]!r}.")
    planned = Anatomy.of(adapter.towers(adapter.load(source, None, "meta")), adapter.layers, prepared.recipe.included)
    adapter.towers(prepared.model)  # an adapter may remember which model it was shown last
    there, here = ({layer.name: layer.shape for _, layer in one.layers()} for one in (prepared.anatomy, planned))
    differing = [name for name in dict.fromkeys([*there, *here]) if there.get(name) != here.get(name)]
    if differing:
        name = differing[0]
        shapes = ["×".join(map(str, layers[name])) if name in layers else "missing" for layers in (there, here)]
        raise ModelError(
            f"model.config: {config} is of another model than {prepared.source.name} has on the hub: {len(differing)} "
            f"layers differ, of which {name} is {shapes[0]} there and {shapes[1]} here. What was planned by it is not "
            f"what would be run. Correct it, or remove it with --set model.config=null."
        )


def _ability_problems(prepared: Prepared, registry: Registry) -> Iterator[str]:
    for index, part in enumerate(prepared.recipe.evaluate):
        wants = part.trait("wants", None)
        for problem in ability_problems(part.use, wants, prepared.adapter, prepared.model, registry):
            yield f"evaluate.{index}: {problem}"


def _asked(built: Any, prepared: Prepared) -> Iterable[str]:
    ask = getattr(built, "problems", None)
    try:
        return list(ask(prepared.anatomy, prepared.recipe)) if ask else []
    except EcoflapError as error:
        return error.problems


def _said_by(check: Callable[[], Any]) -> Iterator[str]:
    try:
        check()
    except EcoflapError as error:
        yield from error.problems


def _pattern_problems(pools: Iterable[Pool]) -> Iterator[str]:
    for pool in pools:
        if isinstance(pool.sparsity, Pattern):
            m = pool.sparsity.m
            uneven = [layer.name for _, layer in pool.layers if layer.shape[1] % m]
            if uneven:
                yield (
                    f"pattern {pool.sparsity.n}:{m}: the inputs of {len(uneven)} layers cannot be divided into runs of "
                    f"{m}: {', '.join(uneven[:5])}{' …' if len(uneven) > 5 else ''}"
                )


def _score_problems(recipe: Recipe) -> Iterator[str]:
    score = recipe.score
    if score is None or score.granularity != "layer" or recipe.allocate.trait("takes", "score") is None:
        return
    try:
        unit = score.part.trait("unit", "layer")
    except EcoflapError:
        return  # the part itself will say what is wrong
    if unit == "block":
        yield (
            f"score.granularity: {score.part.use} scores whole blocks here, so budgets cannot be by layer. "
            f"Use block, tower or model."
        )


def _parts(recipe: Recipe) -> Iterator[tuple[str, Part]]:
    """Every part that will be used, with those inside it, and where the recipe has it."""
    named: list[tuple[str, Part | None]] = [
        ("calibration", recipe.calibration.data if recipe.calibration else None),
        ("score", recipe.score.part if recipe.score else None),
        ("score.calibration", recipe.score.calibration.data if recipe.score and recipe.score.calibration else None),
        ("allocate", recipe.allocate),
        ("prune", recipe.prune),
        *((f"towers.{name}.prune", own.prune) for name, own in recipe.towers.items() if own != "keep"),
        *((f"evaluate.{index}", part) for index, part in enumerate(recipe.evaluate)),
        *((f"export.{index}", part) for index, part in enumerate(recipe.export)),
    ]
    for where, part in named:
        if part is not None:
            yield from _with_inner(where, part)


def _with_inner(where: str, part: Part) -> Iterator[tuple[str, Part]]:
    yield where, part
    for name, value in part.parameters.items():
        for inner in value if isinstance(value, list | tuple) else (value,):
            if isinstance(inner, Part):
                yield from _with_inner(f"{where}.{name}", inner)
