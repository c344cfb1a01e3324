"""Find layers that a budget leaves without a weight: they answer zeros whatever they are fed, which is seldom meant."""

from collections.abc import Iterable, Iterator
from fractions import Fraction

from ecoflap.core.budget.counts import Pattern, keep_count
from ecoflap.core.errors import first_of
from ecoflap.core.planning.plan import SHARED, Plan, Pool

FEW = 5
"""So many names a sentence has at most."""


def weightless(pools: Iterable[Pool]) -> Iterator[str]:
    """Say which layers have no weights to begin with: nothing can be kept of them, and no share be taken."""
    layers = [layer for pool in pools for _, layer in pool.layers]
    empty = [layer.name for layer in layers if not layer.size]
    if empty:
        yield (
            f"model: {len(empty)} of {len(layers)} layers have no weights: {first_of(empty, FEW)}. A size in the "
            f"model's configuration is 0, such as hidden_size or intermediate_size: correct it, or keep their tower by "
            f"keep under towers:."
        )


def emptying_shares(pools: Iterable[Pool], plan: Plan | None) -> Iterator[str]:
    """Say which sparsity leaves a pool, or by itself a layer, without a weight.

    :param plan: None where it shows only once layers are scored: then other layers may give some of theirs up.
    """
    for pool in pools:
        if isinstance(pool.sparsity, Pattern):
            continue
        where = "sparsity" if pool.name == SHARED else f"towers.{pool.name}.sparsity"
        if keep_count(pool.size, pool.sparsity) == 0:
            if pool.sparsity == 1:  # no recipe may ask for it, so that it is what masks of elsewhere have
                yield f"{where}: the masks keep none of {pool.size:,} weights. Give masks that keep some"
                continue
            share = f"{_share(pool.sparsity)} of {pool.size:,} weights"
            yield f"{where}: {share} leaves none of them. {_at_most(pool.size)}."
            continue
        empty = [layer for _, layer in pool.layers if plan is not None and not plan.layers[layer.name].keep]
        by_share = [layer for layer in empty if not keep_count(layer.size, pool.sparsity)]
        if by_share:
            smallest = min(layer.size for layer in by_share)
            yield (
                f"{where}: {_share(pool.sparsity)} leaves no weight in {len(by_share)} of {len(pool.layers)} layers, "
                f"of which the smallest has {smallest:,}: {first_of([layer.name for layer in by_share], FEW)}. "
                f"{_at_most(smallest)}, or keep what is so small, such as its tower, by keep under towers:."
            )


def emptied(plan: Plan) -> str | None:
    """Say which layers a plan leaves without a weight; None where each keeps some."""
    names = [name for name, layer in plan.layers.items() if not layer.keep]
    if not names:
        return None
    return (
        f"{len(names)} of {len(plan.layers)} layers keep none of their weights, and answer zeros: "
        f"{first_of(names, FEW)}. If that is not meant, lower the sparsity, or let no group lose so much, as by "
        f"allocate: {{use: ecoflap, max_sparsity: …}}"
    )


def _share(sparsity: Fraction) -> str:
    return f"{float(100 * sparsity):.10g} %"


def _at_most(size: int) -> str:
    """Name a share that leaves one of so many weights; it is rounded down, so that it still does."""
    digits = len(str(size))
    return f"Prune at most {(size - 1) * 10**digits // size / 10**digits:.{digits}g}"
