"""Say what a run would do and need, from configurations alone."""

from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.cli.needs_table import needs
from ecoflap.core.cli.tables import Section
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.protocols import LossStatistic
from ecoflap.core.contracts.records import TokenChoice
from ecoflap.core.model.source import is_on_hub
from ecoflap.core.needs.exports import kept_of
from ecoflap.core.needs.sizes import samples_of, tokens_of_sample
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.preparing.prepared import Prepared
from ecoflap.core.preparing.seen_samples import seen_samples
from ecoflap.core.preparing.trial import untried
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.recipe.rounds import shares_of_rounds
from ecoflap.core.recipe.schema import CalibrationKeys, Recipe
from ecoflap.core.registry.named_adapter import knows
from ecoflap.core.registry.registry import Registry
from ecoflap.core.text.columns import left, right


def plan_tables(recipe: Recipe, registry: Registry) -> list[Section]:
    """Make the tables that ``ecoflap plan`` prints.

    :raises RecipeError: With every problem that the recipe has with its model and data.
    """
    return prepared_tables(prepare(recipe, registry, planning=True))


def prepared_tables(prepared: Prepared) -> list[Section]:
    """Make the tables of what is pruned, what is run for it, and what that needs."""
    recipe = prepared.recipe
    total = sum(parameter.numel() for parameter in prepared.model.parameters())
    tied = [(sentence,) for sentence in prepared.also_changed]
    seen = [(sentence,) for sentence in seen_samples(recipe)]
    said = list(_said_of_exports(prepared))
    not_tried = list(untried(prepared))
    title = f"{recipe.model.source}: {prepared.size:,} of {total:,} parameters can be pruned"
    return [
        Section(
            title,
            (*left("tower"), *right("blocks", "layers", "prunable"), *left("budget"), *right("kept")),
            list(_towers(prepared)),
        ),
        _kept_whole(prepared, total),
        *_warning(prepared),
        Section("work", left("stage", "what is run"), list(_work(prepared))),
        *([Section("tied", left("what else is changed"), tied)] if tied else []),
        *([Section("seen", left("what is measured by samples of the pruning"), seen)] if seen else []),
        *([Section("exports", left("exporter", "what else there is to say"), said)] if said else []),
        *([Section("not tried before a run", left("what", "because"), not_tried)] if not_tried else []),
        *([_configured(recipe)] if recipe.model.config is not None and is_on_hub(prepared.source) else []),
        Section("needs, predicted", (*left("what"), *right("size"), *left("made of")), list(needs(prepared))),
    ]


def _kept_whole(prepared: Prepared, total: int) -> Section:
    """Tell what is kept whole, by reason, with its share of the model."""
    rows = [
        (one.reason, f"{one.parameters:,}", f"{100 * one.parameters / total:.1f} %", one.example)
        for one in prepared.kept_whole
    ]
    size = sum(one.parameters for one in prepared.kept_whole)
    title = f"kept whole: {size:,} parameters, {100 * size / total:.1f} % of the model"
    return Section(title, (*left("being"), *right("parameters", "share"), *left("such as")), rows)


def _warning(prepared: Prepared) -> Iterator[Section]:
    """Warn of an adapter that was named for a model which it does not know."""
    name = prepared.recipe.model.adapter_name
    if name is not None and not knows(prepared.adapter, prepared.source):
        told = f"{name} does not know this model. Before it does anything else a run holds it against the model"
        yield Section("", left("adapter"), [(f"{told}, and refuses it where its loss is not the model's own",)])


def _configured(recipe: Recipe) -> Section:
    which = f"{recipe.model.config}, instead of the one on the hub, with which a run compares it"
    return Section("", left("planned by the configuration"), [(which,)])


def _towers(prepared: Prepared) -> Iterator[tuple[str, ...]]:
    """Yield a row for each tower, with what it is asked to keep; of towers that share a budget, together."""
    pool_of = {block.tower: pool for pool in prepared.pools for block, _ in pool.layers}
    sharing = Counter(pool_of[tower].name for tower in prepared.pruned_towers)
    for tower in prepared.anatomy.towers:
        layers = [layer for _, layer in prepared.anatomy.layers(tower.blocks)]
        size = sum(layer.size for layer in layers)
        pool = pool_of.get(tower.name)
        budget, kept = "kept whole", f"{size:,}"
        if pool is not None:
            shared = sharing[pool.name] > 1
            budget = _asked(pool.sparsity) + (", shared" if shared else "")
            kept = f"of {kept_of(pool.size, pool.sparsity):,} in all" if shared else f"{kept_of(size, pool.sparsity):,}"
        yield tower.name, f"{len(tower.blocks)}", f"{len(layers)}", f"{size:,}", budget, kept


def _asked(sparsity: Fraction | Pattern) -> str:
    return str(sparsity) if isinstance(sparsity, Pattern) else f"{100 * float(sparsity):g} % pruned"


def _work(prepared: Prepared) -> Iterator[tuple[str, str]]:
    """Yield each stage of the run with what is run in it."""
    recipe = prepared.recipe
    if recipe.round_count > 1:
        yield "rounds", _rounds(recipe)
    if recipe.score and prepared.looks_at_scores:
        yield "score", f"{recipe.score.scorer.use}: {_scoring(prepared)}"
    else:
        yield "score", f"nothing: {prepared.why_unscored}" if prepared.pools else "nothing"
    yield "allocate", _allocating(recipe.allocate, prepared.tokens_tried)
    blocks = len({block.name for pool in prepared.pools for block, _ in pool.layers})
    yield "prune", f"{_pruners(prepared)}: {blocks} blocks, {_looked_at(prepared)}"
    refiners = [*dict.fromkeys(one.use for of_tower in prepared.block_refiners.values() for one in of_tower)]
    if refiners:
        yield "refine", f"{', '.join(refiners)}: each block once it is pruned{_subblocks(prepared)}"
    if prepared.model_refiners:
        yield "refine", f"{', '.join(one.use for one in prepared.model_refiners)}: the whole model, held in float32"
    evaluators = ", ".join(part.use for part in recipe.evaluate)
    yield "evaluate", f"{evaluators}: before and after" if evaluators else "nothing"
    yield "export", ", ".join(["model/", *(part.use for part in recipe.export)])


def _rounds(recipe: Recipe) -> str:
    """Say how far each round prunes, and what is done in it."""
    assert recipe.sparsity is not None  # a pattern has no rounds
    shares = [f"{100 * share:g} %" for share in shares_of_rounds(recipe.rounds, recipe.sparsity)]
    refined = ", and is refined after the last" if _refiners(recipe) else ""
    return f"{', '.join(shares)} pruned: the model is scored, allocated and pruned {len(shares)} times{refined}"


def _subblocks(prepared: Prepared) -> str:
    """Name the sub-blocks of each tower's first block that has any, where refiners train these and not the block."""
    said = []
    for tower, of_blocks in prepared.subblocks_asked.items():
        if all(one.options.each == "block" for one in prepared.block_refiners[tower]):  # it looks at what is inside
            continue
        block = next((name for name, found in of_blocks.items() if found), "")
        names = [one.block.name.removeprefix(f"{block}.") for one in of_blocks.get(block, ())]
        said.append(f"{tower}: {', '.join(names) or 'whole blocks'}")
    return f", by its sub-blocks ({'; '.join(said)})" if said else ""


def _refiners(recipe: Recipe) -> list[PartSpec]:
    return [spec for _, spec in recipe.specs() if spec.kind == "refiner"]


def _allocating(allocator: PartSpec, tokens: Sequence[TokenChoice]) -> str:
    """Name the allocator, and those that it lets the engine try.

    :param tokens: The choices of tokens that each is tried by.
    """
    if not allocator.options.candidates:
        return allocator.use
    tried = [spec.use for _, spec in allocator.with_inner("") if spec is not allocator]
    by = f" by {', '.join(tokens)} tokens each, {len(tried) * len(tokens)} times in all" if tokens else ""
    done = "pruned and its blocks refined" if allocator.options.refine else "pruned"
    return f"{allocator.use}: the model is {done} by each of {', '.join(tried)}{by}, to see which loses least"


def _said_of_exports(prepared: Prepared) -> Iterator[tuple[str, str]]:
    """Yield what exporters have to say before the run, such as which views of the model they leave out."""
    for part in prepared.recipe.export:
        with blaming(f"the exporter {part.use}, asked for its notes,"):
            notes = list(part.options.notes(prepared.context))
        yield from ((part.use, note) for note in notes)


def _pruners(prepared: Prepared) -> str:
    """Name the pruners of the towers that are pruned, each once."""
    return ", ".join(dict.fromkeys(prepared.pruners[tower].use for tower in prepared.pruned_towers))


def _looked_at(prepared: Prepared) -> str:
    """Say how often blocks are run for what pruners look at, on which data, and which tokens of it count."""
    recipe, pruners = prepared.recipe, prepared.pruners
    towers = [tower for tower in prepared.pruned_towers if pruners[tower].options.needs]
    if not towers:
        return "no data needed"
    needs = [need for tower in towers for need in pruners[tower].options.needs]
    groups = prepared.prunes_in_turn
    anew = "once if forwards can wait for its layers, else once for each group of those that share an input and once,"
    times = anew if groups else "twice"
    said = f"each block {times} on {_data(prepared, recipe.calibration)}"
    if any(issubclass(need, LossStatistic) for need in needs):
        said += ", after a backward of the whole model"
    tokens, tried = prepared.tokens(), prepared.tokens_tried
    if drifting := [tower for tower in towers if tokens[tower] == "drifting"]:
        blocks = "each block" if drifting == towers else f"each block of {', '.join(drifting)}"
        said += f"; {blocks} once more{' for each group' if groups else ''} to see which tokens drift"
    if chosen := {tower: tokens[tower] for tower in towers if tokens[tower] != "real"}:
        said += f"; tokens that count: {', '.join(f'{choice} in {tower}' for tower, choice in chosen.items())}"
    if tried:
        said += f"; tokens that count: of {', '.join(tried)} those that lose least"
        said += ", and blocks are run once more to see which drift" if "drifting" in tried else ""
    return said


def _scoring(prepared: Prepared) -> str:
    """Say what the scorer runs, and over how much data."""
    score, keys = prepared.recipe.score, prepared.recipe.score_calibration
    assert score is not None
    scorer = score.scorer.options
    if keys is None or not scorer.data:
        return "no data needed"
    counts = (scorer.samples, samples_of(keys))
    samples = min((count for count in counts if count is not None), default=None)
    data = _data(prepared, keys, samples)
    batches = None if samples is None else -(-samples // keys.batch_size)
    forwards = None if batches is None else _forwards(prepared, score.scorer, batches)
    if forwards is None:
        return f"over {data}"
    return f"{forwards:,} forwards from the block in question on, over {data}"


def _forwards(prepared: Prepared, scorer: PartSpec, batches: int) -> int | None:
    """Give how many forwards a scorer takes; None where it cannot say."""
    with blaming(f"the scorer {scorer.use}, asked for its forwards,"):
        forwards: int | None = scorer.options.forwards(prepared.scored, batches)
    return forwards


def _data(prepared: Prepared, keys: CalibrationKeys | None, samples: int | None = None) -> str:
    """Describe data: how many samples, of how many tokens, and how many of them a batch.

    :param samples: How many of them are looked at; by default all.
    """
    if keys is None:
        return "no data"
    length = tokens_of_sample(prepared, keys)
    count = samples_of(keys) if samples is None else samples
    of = f" of {length} tokens" if length else ""
    return f"{'all' if count is None else count} samples{of}, {keys.batch_size} a batch"
