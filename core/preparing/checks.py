"""What a recipe's own keys have against the model: towers, matrices, device, pattern, granularity, abilities, views."""

from collections.abc import Callable, Container, Iterable, Iterator
from functools import partial
from math import gcd
from typing import Any

import torch
from torch import nn

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.contracts.abilities import offers
from ecoflap.core.contracts.adapter_answers import max_length_of
from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.options import EvaluatorOptions
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import is_of_inputs
from ecoflap.core.dtypes import dtype_name
from ecoflap.core.errors import EcoflapError, first_of, nearest
from ecoflap.core.kernel.route import route
from ecoflap.core.model.never_pruned import why_not_included
from ecoflap.core.model.source import check_weights
from ecoflap.core.planning.emptied import emptying_shares, weightless
from ecoflap.core.planning.plan import Pool, make_plan
from ecoflap.core.preparing.offload_problems import offload_problems
from ecoflap.core.preparing.prepared import Prepared
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.registry.registry import Registry

_USUAL = (2, 4, 8, 16)
"""Lengths of runs that patterns are written for."""


def recipe_problems(prepared: Prepared, registry: Registry) -> Iterator[str]:
    """Say everything that keeps a recipe from being run on its model, data aside."""
    yield from _tower_problems(prepared)
    yield from _include_problems(prepared)
    yield from _token_problems(prepared)
    yield from _statistic_problems(prepared)
    yield from _device_problems(prepared)
    yield from _said_by(route)  # a pruner that sums Gram matrices asks for it hours later
    yield from offload_problems(prepared)
    yield from _integer_problems(prepared)
    yield from _pattern_problems(prepared.pools)
    yield from _granularity_problems(prepared.recipe)
    if prepared.source.model is None:
        yield from _said_by(lambda: check_weights(prepared.source))
    yield from _adapter_problems(prepared)
    for where, problem in part_problems(prepared, ("scorer", "allocator", "pruner", "refiner", "exporter")):
        yield f"{where}: {problem}"
    yield from _length_problems(prepared)
    yield from _ability_problems(prepared, registry)
    yield from _logit_problems(prepared, registry)
    yield from _head_problems(prepared)
    yield from _subblock_problems(prepared)
    yield from _plan_problems(prepared)


def part_problems(prepared: Prepared, kinds: Container[str]) -> Iterator[tuple[str, str]]:
    """Yield what the recipe's parts of these kinds have against this use, each behind its place in the recipe."""
    for where, spec in prepared.recipe.specs():
        if spec.kind in kinds:
            asked = _asked(f"the {spec.kind} {spec.use}", spec.options.problems, prepared.context)
            place = prepared.recipe.allocated_at if where == "allocate" else where
            yield from ((place, problem) for problem in asked)


def _tower_problems(prepared: Prepared) -> Iterator[str]:
    towers, kept = [tower.name for tower in prepared.anatomy.towers], _kept_by_default(prepared)
    for name, own in prepared.recipe.towers.items():
        if own != "keep" and name in kept:
            yield (
                f"towers.{name}: it is kept whole by default, where {' and '.join(own.plain())} would change nothing. "
                f"Remove this, or have it pruned too by include: [{name}]."
            )
        elif name not in [*towers, *kept]:
            yield f"towers.{name}: this model has no such tower.{nearest(name, towers)} Known: {', '.join(towers)}."
    if not prepared.pools:
        yield f"towers: every tower of this model is kept, so there is nothing to prune. It has {', '.join(towers)}."


def _kept_by_default(prepared: Prepared) -> list[str]:
    """Name the towers, and matrices outside the blocks, that are pruned on request alone, and that no key asks for."""
    with blaming(_adapter_of(prepared)):
        towers = prepared.adapter.towers(prepared.model)
    return [tower.name for tower in towers if not tower.prunable and tower.name not in prepared.recipe.included]


def _include_problems(prepared: Prepared) -> Iterator[str]:
    if not prepared.recipe.include:
        return
    with blaming(_adapter_of(prepared)):
        towers = prepared.adapter.towers(prepared.model)
        left_out = options_of(AdapterOptions, prepared.adapter).left_out(prepared.model)
    for name in prepared.recipe.include:
        meant = name.removesuffix(".weight")
        if meant not in [tower.name for tower in prepared.anatomy.towers]:
            yield f"include: {why_not_included(name, prepared.model, prepared.anatomy, towers, left_out)}"
        elif prepared.recipe.towers.get(meant) == "keep":
            yield f"include: {name} is to be pruned here and kept under towers. Remove one."


def _token_problems(prepared: Prepared) -> Iterator[str]:
    """Yield towers whose tokens are weighted for a statistic that cannot weigh them."""
    tried_at = f"{prepared.recipe.allocated_at}.tokens"
    weighing = [(key, towers) for key, choices, towers in prepared.token_choices if "balanced" in choices]
    for key, tower in ((key, tower) for key, towers in weighing for tower in towers):
        pruner = prepared.pruners[tower]
        wrong = [need.__name__ for need in pruner.options.needs if not getattr(need, "takes_weights", True)]
        if wrong:
            way_out = "Take balanced out, or set" if key == tried_at else "Set"
            yield (
                f"{key}: balanced weighs tokens in sums of squares, and {pruner.use}, which prunes the {tower} tower, "
                f"asks for {', '.join(wrong)}, which cannot weigh them. {way_out} tokens: real, all, text or "
                f"drifting, for this tower alone by towers.{tower}.tokens"
            )


def _statistic_problems(prepared: Prepared) -> Iterator[str]:
    """Yield choices of tokens, a tower's own or tried, that change nothing: no pruner asks for statistics of inputs.

    What is chosen for the whole model stays beside every pruner that a sweep compares, and the plan says what it does.
    """
    at = f"{prepared.recipe.allocated_at}.tokens"
    keys = [key for key, _, _ in prepared.token_choices]
    if prepared.tokens_tried and keys and at not in keys:
        yield f"{at}: nothing is tried, for {' and '.join(keys)} say it of every tower that is pruned. Remove one"
    for key, choices, towers in prepared.token_choices:
        pruners = [prepared.pruners[tower] for tower in towers]
        needs = [need for pruner in pruners for need in pruner.options.needs]
        chosen = [choice for choice in choices if choice != "real"]
        if key != "tokens" and chosen and not any(map(is_of_inputs, needs)):
            change = "changes" if len(chosen) == 1 else "change"
            yield (
                f"{key}: {' and '.join(chosen)} {change} nothing, for no statistic of layers' inputs is asked for by "
                f"{pruners[0].use}. Remove this, or prune by what does, such as wanda"
            )


def _device_problems(prepared: Prepared) -> Iterator[str]:
    asked = prepared.recipe.model
    number = int(asked.device.partition(":")[2] or 0)
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked.device.startswith("cuda") and number >= there:
        yield f"model.device: {asked.device} is not there: torch sees {there} CUDA devices. Use auto or cpu."
    if prepared.source.model is not None and asked.dtype != "auto":
        yield "model.dtype: a model in memory keeps the type it has. Leave dtype out, or convert the model."


def _integer_problems(prepared: Prepared) -> Iterator[str]:
    """Refuse a model in memory whose weights are integers, as a quantised one's are."""
    layers = [layer for _, layer in prepared.anatomy.layers() if not layer.weight.is_floating_point()]
    if layers:
        kind = dtype_name(layers[0].weight.dtype)
        yield (
            f"model: {len(layers)} layers hold no real numbers, of which {layers[0].name} is {kind}: a quantised model "
            f"cannot be pruned. Load it without quantisation, or the model that it was made from."
        )


def _pattern_problems(pools: Iterable[Pool]) -> Iterator[str]:
    for pool in pools:
        if isinstance(pool.sparsity, Pattern):
            m = pool.sparsity.m
            uneven = [layer.name for _, layer in pool.layers if layer.shape[1] % m]
            if uneven:
                shared = gcd(*(layer.shape[1] for _, layer in pool.layers))
                fitting = ", ".join(str(number) for number in _USUAL if shared % number == 0)
                instead = f"An m of {' or '.join(fitting.rsplit(', ', 1))} divides all. " if fitting else ""
                yield (
                    f"pattern {pool.sparsity.n}:{m}: the inputs of {len(uneven)} layers cannot be divided into runs of "
                    f"{m}: {first_of(uneven, 5)}. {instead}Or give their tower a sparsity of its own under towers:, or "
                    f"keep it"
                )


def _granularity_problems(recipe: Recipe) -> Iterator[str]:
    score = recipe.score
    if (
        score is not None
        and score.granularity == "layer"
        and recipe.takes_scores
        and score.scorer.options.unit == "block"
    ):
        yield (
            f"score.granularity: {score.scorer.use} scores whole blocks here, so budgets cannot be by layer. "
            f"Use block, tower or model."
        )


def _adapter_problems(prepared: Prepared) -> Iterator[str]:
    named = "model.adapter: " if prepared.recipe.model.adapter else ""
    asked = _asked(_adapter_of(prepared), prepared.adapter_options.problems, prepared.context)
    yield from (f"{named}{problem}" for problem in asked)


def _adapter_of(prepared: Prepared) -> str:
    return f"the adapter {type(prepared.adapter).__name__}"


def _length_problems(prepared: Prepared) -> Iterator[str]:
    longest = max_length_of(prepared.adapter, prepared.model)
    for where, spec in prepared.recipe.specs():
        if spec.kind == "dataset":
            who = f"the dataset {spec.use}, asked for its tokens,"
            said = _said_by(partial(_blamed, who, partial(spec.options.tokens_per_sample, longest)))
            yield from (f"{where}: {problem}" for problem in said)


def _ability_problems(prepared: Prepared, registry: Registry) -> Iterator[str]:
    for place, spec in evaluators_of(prepared.recipe):
        for problem in ability_problems(spec, prepared.adapter, prepared.model, registry):
            yield f"{place}: {problem}"


def _logit_problems(prepared: Prepared, registry: Registry) -> Iterator[str]:
    """Say where the whole model is refined by what it says, and its adapter knows that its loss is of no logits."""
    if not prepared.model_refiners:
        return
    name = _name(prepared.adapter, registry)
    with blaming(f"the adapter {name}, asked why its loss is of no logits,"):
        why = prepared.adapter_options.why_no_logits(prepared.model)
    for where, spec in _model_refiners(prepared):
        if why:
            yield (
                f"{where}: {spec.use} holds what the pruned model says against what the dense one says, and the loss "
                f"of the adapter {name} is no cross entropy of logits here: {why}. Refine its blocks, by "
                f"refine: [reconstruct]."
            )


def _head_problems(prepared: Prepared) -> Iterator[str]:
    """Say where a head is pruned that the model applies in pieces, and refined by what the dense one would say.

    What a block gave is recorded call by call, and of a head in pieces their number is no one's to know.
    """
    heads = [block.name for pool in prepared.pools for block, _ in pool.layers if block.calls is None]
    for where, spec in _model_refiners(prepared):
        if heads:
            yield (
                f"{where}: {spec.use} holds what the pruned model says against what the dense one says, which is not "
                f"known any more once {heads[0]} is pruned: the model applies it in pieces. Leave {heads[0]} out of "
                f"include, or refine by refine: [reconstruct]."
            )


def _model_refiners(prepared: Prepared) -> Iterator[tuple[str, PartSpec]]:
    """Yield each refiner of the whole model with its place in the recipe."""
    yield from ((where, spec) for where, spec in prepared.recipe.specs() if spec in prepared.model_refiners)


def evaluators_of(recipe: Recipe) -> Iterator[tuple[str, PartSpec]]:
    """Yield each evaluator of a recipe with its place in it, those among the parameters of others too."""
    for number, evaluator in enumerate(recipe.evaluate):
        yield from ((at, one) for at, one in evaluator.with_inner(f"evaluate.{number}") if one.kind == "evaluator")


def ability_problems(evaluator: PartSpec, adapter: Any, model: nn.Module, registry: Registry) -> Iterator[str]:
    """Say why a model cannot be asked for what an evaluator wants of it."""
    wants = evaluator.options.wants
    if wants is None:
        return
    head = f"{evaluator.use} needs a model that can {wants.does}"
    if not offers(adapter, wants):
        known = [name for name in registry.names("adapter") if offers(registry.find("adapter", name), wants)]
        yield (
            f"{head}, and the adapter {_name(adapter, registry)} has none. Adapters that do: "
            f"{', '.join(known) or 'none'}. Evaluators for this model: {_fitting(adapter, registry)}."
        )
        return
    options = options_of(AdapterOptions, adapter)
    with blaming(f"the adapter {_name(adapter, registry)}"):
        why = options.refuses(model, wants)
    if why:
        yield f"{head}: {why}"


def _fitting(adapter: Any, registry: Registry) -> str:
    names = registry.names("evaluator")
    options = {name: options_of(EvaluatorOptions, registry.find("evaluator", name)) for name in names}
    return ", ".join(name for name in names if not options[name].wants or offers(adapter, options[name].wants))


def _name(adapter: Any, registry: Registry) -> str:
    """Give the name by which a recipe would choose an adapter."""
    named = {registry.find("adapter", name): name for name in registry.names("adapter")}
    return named.get(type(adapter), type(adapter).__name__)


def _subblock_problems(prepared: Prepared) -> Iterator[str]:
    """Say where sub-blocks are to be trained, and no block has any."""
    refiners = {one.use for some in prepared.block_refiners.values() for one in some if one.options.each == "subblock"}
    asked = prepared.subblocks_asked
    if refiners and asked and not any(found for of_blocks in asked.values() for found in of_blocks.values()):
        yield (
            f"refine: {' and '.join(sorted(refiners))} would train the sub-blocks of each block, and no block of "
            f"{', '.join(asked)} has two that hold all of its layers, such as an attention and an MLP. Refine whole "
            f"blocks: each: block."
        )


def _plan_problems(prepared: Prepared) -> Iterator[str]:
    """Try the whole plan of each allocator that looks at no scores, so that nothing else decides about it."""
    without = list(weightless(prepared.pools))
    if without:  # which no budget can be made for
        yield from without
        return
    recipe, plans = prepared.recipe, []
    pools = [pool for pool in prepared.pools if not any(_pattern_problems([pool]))]  # others were told
    unscored = {label: spec for label, spec in recipe.allocate.candidates.items() if not spec.options.takes}
    for label, allocator in unscored.items() if pools else ():
        where = recipe.allocated_at if allocator is recipe.allocate else f"{recipe.allocated_at}: {label}"
        try:
            with blaming(f"the allocator {allocator.use}"):
                plans.append(make_plan(pools, allocator.built, "layer", None, seed=recipe.seed))
        except EcoflapError as error:
            yield from (f"{where}: {problem}" for problem in error.problems)
    yield from emptying_shares(prepared.pools, None if recipe.takes_scores else next(iter(plans), None))


def _asked(
    who: str, problems: Callable[[PlanContext], Iterable[str]], context: PlanContext
) -> list[str] | tuple[str, ...]:
    try:
        with blaming(f"{who}, asked for problems,"):
            return list(problems(context))
    except EcoflapError as error:
        return error.problems


def _blamed(who: str, ask: Callable[[], Any]) -> Any:
    with blaming(who):
        return ask()


def _said_by(check: Callable[[], Any]) -> Iterator[str]:
    try:
        check()
    except EcoflapError as error:
        yield from error.problems
