"""What a run would do and need, from configurations alone."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from ecoflap.core.budget.counts import Pattern, keep_count
from ecoflap.core.cli.tables import Section
from ecoflap.core.model.anatomy import Anatomy, Tower
from ecoflap.core.model.source import is_on_hub
from ecoflap.core.recipe.part_spec import Part
from ecoflap.core.recipe.schema import Calibration, Recipe
from ecoflap.core.registry.registry import Registry
from ecoflap.core.run.prepare import Prepared, prepare
from ecoflap.core.text.numbers import bytes_text

ITSELF = 500_000_000
"""About what Python, torch and transformers hold before any model, in bytes."""


def preview(recipe: Recipe, registry: Registry) -> list[Section]:
    """:raises RecipeError: With every problem the recipe has with its model and data."""
    return tables(prepare(recipe, registry, planning=True))


def tables(prepared: Prepared) -> list[Section]:
    """What is pruned, what is run for it, and what that needs."""
    recipe = prepared.recipe
    total = sum(parameter.numel() for parameter in prepared.model.parameters())
    also = prepared.also_changed
    title = f"{recipe.model.source}: {prepared.size:,} of {total:,} parameters can be pruned"
    return [
        Section(title, ("tower", ">blocks", ">layers", ">prunable", "budget", ">kept"), list(_towers(prepared))),
        Section("work", ("stage", "what is run"), list(_work(prepared))),
        *([Section("tied", ("what else is changed",), [(told,) for told in also])] if also else []),
        *([_configured(recipe)] if recipe.model.config is not None and is_on_hub(prepared.source) else []),
        Section("needs, predicted", ("what", ">size", "made of"), list(_needs(prepared))),
    ]


def _configured(recipe: Recipe) -> Section:
    told = f"{recipe.model.config}, instead of the one on the hub, with which a run compares it"
    return Section("", ("planned by the configuration",), [(told,)])


def _towers(prepared: Prepared) -> Iterator[tuple[str, ...]]:
    pool_of = {block.name: pool for pool in prepared.pools for block, _ in pool.layers}
    sharing = Counter(pool_of[tower.blocks[0].name].name for tower in _pruned(prepared))
    for tower in prepared.anatomy.towers:
        layers = [layer for _, layer in prepared.anatomy.layers(tower.blocks)]
        size = sum(layer.size for layer in layers)
        pool = pool_of.get(tower.blocks[0].name)
        budget, kept = "kept whole", f"{size:,}"
        if pool is not None:
            shared = sharing[pool.name] > 1
            budget = _asked(pool.sparsity) + (", shared" if shared else "")
            kept = f"of {_kept(pool.size, pool.sparsity):,} in all" if shared else f"{_kept(size, pool.sparsity):,}"
        yield tower.name, f"{len(tower.blocks)}", f"{len(layers)}", f"{size:,}", budget, kept


def _pruned(prepared: Prepared) -> list[Tower]:
    blocks = {block.name for pool in prepared.pools for block, _ in pool.layers}
    return [tower for tower in prepared.anatomy.towers if tower.blocks[0].name in blocks]


def _asked(sparsity: Any) -> str:
    return f"{sparsity.n}:{sparsity.m}" if isinstance(sparsity, Pattern) else f"{100 * float(sparsity):g} % pruned"


def _kept(size: int, sparsity: Any) -> int:
    return sparsity.keep_of(size) if isinstance(sparsity, Pattern) else keep_count(size, sparsity)


def _work(prepared: Prepared) -> Iterator[tuple[str, str]]:
    recipe = prepared.recipe
    if recipe.score and prepared.looks_at_scores:
        yield "score", f"{recipe.score.part.use}: {_scoring(prepared)}"
    else:
        yield "score", f"nothing: {recipe.allocate.use} looks at no score" if prepared.pools else "nothing"
    yield "allocate", recipe.allocate.use
    blocks = len({block.name for pool in prepared.pools for block, _ in pool.layers})
    needs = any(pruner.needs for pruner in prepared.pruners.values())
    data = f"each block twice on {_data(prepared, recipe.calibration)}" if needs else "no data needed"
    yield "prune", f"{_pruners(prepared)}: {blocks} blocks, {data}"
    evaluators = ", ".join(part.use for part in recipe.evaluate)
    yield "evaluate", f"{evaluators}: before and after" if evaluators else "nothing"
    yield "export", ", ".join(["model/", *(part.use for part in recipe.export)])


def _pruners(prepared: Prepared) -> str:
    own = {name: tower.prune for name, tower in prepared.recipe.towers.items() if tower != "keep"}
    named = [own.get(tower.name) or prepared.recipe.prune for tower in _pruned(prepared)]
    return ", ".join(dict.fromkeys(part.use for part in named))


def _scoring(prepared: Prepared) -> str:
    score, keys = prepared.recipe.score, prepared.recipe.score_calibration
    assert score is not None
    scorer = score.part.build()
    if keys is None or not getattr(scorer, "data", True):
        return "no data needed"
    limit, there = getattr(scorer, "samples", None), _samples(keys)
    samples = min((count for count in (limit, there) if count is not None), default=None)
    data = _data(prepared, keys, samples)
    if samples is None or not hasattr(scorer, "forwards"):
        return f"over {data}"
    forwards = scorer.forwards(_scored(prepared), -(-samples // keys.batch_size))
    return f"{forwards:,} forwards from the block in question on, over {data}"


def _scored(prepared: Prepared) -> Anatomy:
    """Of the layers that are scored: neither of towers that are kept nor of those with a pattern."""
    pools = [pool for pool in prepared.pools if not isinstance(pool.sparsity, Pattern)]
    blocks = {block.name for pool in pools for block, _ in pool.layers}
    towers = tuple(tower for tower in prepared.anatomy.towers if tower.blocks[0].name in blocks)
    return Anatomy(towers, prepared.anatomy.layers_of)


def _samples(keys: Calibration) -> int | None:
    """How many the dataset yields; None where it does not say so before it is read."""
    return getattr(keys.data.build(), "samples", None)


def _length(prepared: Prepared, keys: Calibration) -> int:
    """Tokens of a sample; 0 where the dataset cannot tell before it is read."""
    tokens_per_sample = getattr(keys.data.build(), "tokens_per_sample", None)
    return tokens_per_sample(prepared.adapter.max_length(prepared.model)) if tokens_per_sample else 0


def _data(prepared: Prepared, keys: Calibration | None, samples: int | None = None) -> str:
    if keys is None:
        return "no data"
    length = _length(prepared, keys)
    count = _samples(keys) if samples is None else samples
    of = f" of {length} tokens" if length else ""
    return f"{'all' if count is None else count} samples{of}, {keys.batch_size} a batch"


def _needs(prepared: Prepared) -> Iterator[tuple[str, str, str]]:
    recipe, width = prepared.recipe, _bytes_a_weight(prepared)
    total = sum(parameter.numel() for parameter in prepared.model.parameters())
    weights = total * width
    statistics, recorded = _statistics(prepared), _recorded(prepared, width)
    outside = total - sum(layer.size for _, layer in prepared.anatomy.layers())
    widened = 4 * (outside + _largest_block(prepared.anatomy))
    upcast = widened if width < 4 and prepared.looks_at_scores else 0
    memory = ITSELF + weights + max(statistics + recorded, upcast)
    there = bytes_text(recorded) if recorded or not recipe.calibration else "not known before the data are read"
    made_of = (
        f"weights {bytes_text(weights)}, the largest block's statistics {bytes_text(statistics)}, recorded activations "
        f"{there}, scoring in float32 {bytes_text(upcast)}, libraries {bytes_text(ITSELF)}"
    )
    yield "peak memory", bytes_text(memory), made_of
    if _offloads(prepared):
        yield _device_memory(prepared, width, statistics)
    masks = prepared.size // 8
    exports = [(part.use, _exported(part, prepared, width)) for part in prepared.recipe.export]
    parts = [("model/", weights), ("masks", masks), *exports]
    yield "disk", bytes_text(sum(size for _, size in parts)), ", ".join(f"{n} {bytes_text(size)}" for n, size in parts)
    meanwhile = prepared.size * width + masks
    yield "disk meanwhile", bytes_text(meanwhile), "finished blocks, until model/ is complete"


def _offloads(prepared: Prepared) -> bool:
    """Whether blocks run elsewhere than the model is."""
    return prepared.recipe.model.offload is not None


def _device_memory(prepared: Prepared, width: int, statistics: int) -> tuple[str, str, str]:
    """A block, its statistics, and one batch's input and output; what attention needs in between comes on top."""
    block = _largest_block(prepared.anatomy) * (4 if prepared.looks_at_scores else width)
    keys = prepared.recipe.calibration
    batches = -(-(_samples(keys) or 1) // keys.batch_size) if keys else 1
    activations = 2 * _recorded(prepared, 4) // max(1, batches)
    made_of = f"the largest block {bytes_text(block)}, its statistics {bytes_text(statistics)}"
    size = bytes_text(block + statistics + activations)
    return "device memory", size, f"{made_of}, a batch's input and output {bytes_text(activations)}"


def _exported(part: Part, prepared: Prepared, width: int) -> int:
    """What the exporter predicts, or the dense model's size where it predicts nothing."""
    total = sum(parameter.numel() for parameter in prepared.model.parameters())
    kept = sum(_kept(pool.size, pool.sparsity) for pool in prepared.pools)
    predict = getattr(part.build(), "predicted_bytes", None)
    return predict(total, prepared.size, kept, width) if predict else total * width


def _bytes_a_weight(prepared: Prepared) -> int:
    named = prepared.recipe.model.dtype
    stored = prepared.source.config.get("dtype") or prepared.source.config.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(stored if named == "auto" else named).removeprefix("torch."), torch.float32)
    return int(dtype.itemsize)


def _largest_block(anatomy: Anatomy) -> int:
    return max(sum(layer.size for layer in layers) for layers in anatomy.layers_of.values())


def _statistics(prepared: Prepared) -> int:
    """Of the block that needs most; layers that share an input are counted one by one, so it is at most this."""
    pruners = prepared.pruners
    return max(
        sum(
            _size(need, layer.shape[1])
            for layer in prepared.anatomy.layers_of[block.name]
            for need in pruners[block.tower].needs
        )
        for block in prepared.anatomy.blocks
    )


def _size(statistic: Any, in_features: int) -> int:
    with torch.device("meta"):
        values = vars(statistic(in_features)).values()
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def _recorded(prepared: Prepared, width: int) -> int:
    """One output a tower and sample: what the next block reads."""
    keys = prepared.recipe.calibration
    if keys is None:
        return 0
    hidden = max(prepared.anatomy.layers_of[tower.blocks[0].name][0].shape[1] for tower in prepared.anatomy.towers)
    return (_samples(keys) or 0) * _length(prepared, keys) * hidden * width * len(prepared.anatomy.towers)
