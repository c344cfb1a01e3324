"""Everything that can be known, and refused, before weights are read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from ecoflap.core.contracts.adapter_answers import loaded_by, max_length_of
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.errors import EcoflapError, ModelError, RecipeError
from ecoflap.core.model.anatomy import Anatomy, Source
from ecoflap.core.model.source import in_memory, is_on_hub, open_source, with_config
from ecoflap.core.packed.packing import refuse_packed
from ecoflap.core.preparing.checks import part_problems, recipe_problems
from ecoflap.core.preparing.held_model import named_otherwise, refuse_computed, refuse_unheld, require_given
from ecoflap.core.preparing.prepared import Prepared, pools_in
from ecoflap.core.preparing.trial import processor_read, token_problems, trial_problems
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.record.reuse import strangers
from ecoflap.core.registry.adapter_for import adapter_for
from ecoflap.core.registry.named_adapter import knows, refusing_misfit
from ecoflap.core.registry.registry import Registry

DATA = ("dataset", "evaluator")
"""Kinds of parts whose problems keep a recipe from being run, and not from being planned."""


class DataNotReady(RecipeError):
    """A recipe that could be run, were it not for the data that it calibrates and evaluates on.

    :param prepared: All that is known without them.
    """

    def __init__(self, prepared: Prepared, *problems: str) -> None:
        self.prepared = prepared
        super().__init__(*problems)


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
    if model is None:
        require_given(recipe)
    else:
        refuse_packed(model)
        refuse_unheld(model)
    source = in_memory(model) if model is not None else open_source(recipe.model.revised_source, Path.cwd(), config)
    adapter = recipe.model.named_adapter() or adapter_for(source, registry)
    if processor is not None:
        adapter.processor = processor
    weightless, anatomy = _taken_apart(recipe, source, adapter, model)
    prepared = Prepared(recipe, source, adapter, anatomy, tuple(pools_in(anatomy, recipe)), weightless)
    with processor_read(prepared) as unread:
        problems = [] if model is None else list(named_otherwise(recipe, source))
        problems += [*strangers(recipe, own), *unread, *recipe_problems(prepared, registry), *token_problems(prepared)]
        of_data = list(_data_problems(prepared, trying=not unread))
    shipped = recipe.model.config
    if shipped is not None and is_on_hub(source) and not planning:
        problems += _config_problems(prepared, shipped)
    if problems:
        raise RecipeError(*dict.fromkeys(map(recipe.placed, [*problems, *of_data])))
    if of_data:
        raise DataNotReady(prepared, *map(recipe.placed, of_data))
    return prepared


def _taken_apart(
    recipe: Recipe, source: Source, adapter: Adapter, model: nn.Module | None
) -> tuple[nn.Module, Anatomy]:
    """Load the model without its weights, unless there is one in memory, and have the adapter name what it is made of.

    :raises ModelError: Where the adapter does not fit it.
    """
    with (
        refusing_misfit(adapter, recipe.model.adapter_name, source),
        blaming(f"the adapter {type(adapter).__name__}, taking {source.name} apart,"),
    ):
        weightless = model if model is not None else loaded_by(adapter, source, None, "meta")
        anatomy = Anatomy.of(adapter.towers(weightless), adapter.layers, recipe.included)
        if model is not None:
            refuse_computed(anatomy)
        anatomy.refuse_unnamed(weightless)
        max_length_of(adapter, weightless)  # asked for again later: here it shows that an adapter does not fit
    return weightless, anatomy


def _data_problems(prepared: Prepared, *, trying: bool) -> Iterator[str]:
    """Say what is wrong with data, and what shows when they are tried.

    :param trying: Whether there is something to try them on.
    """
    wrong = list(part_problems(prepared, DATA))
    yield from (f"{where}: {problem}" for where, problem in wrong)
    if trying:
        yield from trial_problems(prepared, {where for where, _ in wrong})


def _config_problems(prepared: Prepared, config: Path) -> Iterator[str]:
    try:
        _check_config(prepared, config)
    except EcoflapError as error:
        yield from error.problems


def _check_config(prepared: Prepared, config: Path) -> None:
    """Refuse a configuration that the plan was made by and that is of another model than the hub has."""
    source, adapter = with_config(prepared.source.name, config), prepared.adapter
    if knows(adapter, prepared.source) and not knows(adapter, source):
        kinds = [one.config.get("model_type", "unknown") for one in (prepared.source, source)]
        raise ModelError(f"model.config: {prepared.source.name} is a {kinds[0]!r}, and {config} is of a {kinds[1]!r}.")
    with blaming(f"the adapter {type(adapter).__name__}, taking {config} apart,"):
        towers = adapter.towers(loaded_by(adapter, source, None, "meta"))
        planned = Anatomy.of(towers, adapter.layers, prepared.recipe.included)
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
