"""What pruners say that they hold while they prune, by what torch has of tensors then."""

import pytest
import torch
from held_tensors import Held

from ecoflap.core.budget.counts import Keep
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.options import PrunerOptions
from ecoflap.core.contracts.records import LayerPlace, Statistics
from ecoflap.plugins.metrics.magnitude import Magnitude
from ecoflap.plugins.metrics.optimal_brain_surgeon import OptimalBrainSurgeon
from ecoflap.plugins.metrics.ria import Ria
from ecoflap.plugins.metrics.wanda import Wanda
from ecoflap.plugins.pruners.admm import Admm
from ecoflap.plugins.pruners.alps import Alps
from ecoflap.plugins.pruners.by_metric import ByMetric
from ecoflap.plugins.pruners.dsnot import Dsnot
from ecoflap.plugins.pruners.magnitude import Magnitude as MagnitudePruner
from ecoflap.plugins.pruners.refit import Refit
from ecoflap.plugins.pruners.sparsegpt import SparseGPT
from ecoflap.plugins.pruners.swap import Swap
from ecoflap.plugins.pruners.wanda import Wanda as WandaPruner

METRICS = (OptimalBrainSurgeon(), Ria(), Magnitude(), Wanda())


@pytest.mark.parametrize("shape", [(128, 512), (512, 128)], ids=["wide", "high"])
@pytest.mark.parametrize(
    "pruner",
    [
        *(SparseGPT(), Admm(), Alps(), Refit(), Refit(solver="exact"), Swap(), Dsnot(), *map(ByMetric, METRICS)),
        *(WandaPruner(), WandaPruner("layer"), MagnitudePruner(), MagnitudePruner("row")),
    ],
    ids=lambda one: f"{type(one).__name__} {type(getattr(one, 'metric', one)).__name__}",
)
def test_it_is_about_as_much_as_is_held(pruner, shape):
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(*size, generator=generator) for size in (shape, (600, shape[1])))
    options, seen = options_of(PrunerOptions, pruner), Statistics()
    for statistic in options.needs:
        seen[statistic] = statistic(shape[1])
        seen[statistic].add(x)
    with Held() as held:
        pruner(weight, seen, Keep(weight.numel() // 2), LayerPlace("w", "tower", "block", 0, 0))
    said = 4 * options.held_numbers(*shape)
    assert 0.5 * held.most <= said <= 2 * held.most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "pruner",
    [
        WandaPruner(),
        MagnitudePruner(),
        *map(ByMetric, METRICS),
        Swap(),
        Dsnot(),
        Swap(inner=SparseGPT()),
        Admm(),
        Refit(),
    ],
    ids=repr,
)
def test_kept_weights_change_where_it_says_so(pruner, dtype):
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(24, 32, generator=generator).to(dtype), torch.randn(200, 32, generator=generator)
    options, seen = options_of(PrunerOptions, pruner), Statistics()
    for statistic in options.needs:
        seen[statistic] = statistic(32)
        seen[statistic].add(x)
    pruned = pruner(weight, seen, Keep(weight.numel() // 2), LayerPlace("w", "tower", "block", 0, 0))
    assert torch.equal(pruned.weight, weight * pruned.mask) is not options.changes_weights


def test_an_inner_pruner_that_holds_more_is_counted():
    inner = Alps()
    assert Refit(inner=inner).held_numbers(8, 4096) == inner.held_numbers(8, 4096)
    assert Refit(inner=inner).held_numbers(4096, 8) < Refit(inner=inner).held_numbers(4096, 4096)
