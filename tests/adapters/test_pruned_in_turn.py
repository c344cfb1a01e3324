"""For every family: ``sequential`` by forwards that wait, against a forward of a block for each group of its layers."""

from fractions import Fraction

import pytest
import torch
from spec import spec
from table import ALL_ROWS

from ecoflap import Anatomy, Replay
from ecoflap.core.planning.plan import make_plan, pools_of
from ecoflap.core.pruning.prune_blocks import BlockwisePruning
from ecoflap.plugins.allocators.uniform import Uniform
from ecoflap.plugins.pruners.wanda import Wanda

KINDS = {"blip2_t5", "deepseek_v3", "llama", "llava", "phi", "vit"}
"""A block of Phi's gives one input to attention and to its MLP behind it; DeepSeek's attention uses its input twice."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in KINDS else pytest.mark.slow) for name in sorted(ALL_ROWS)]
)
def test_each_family_comes_out_the_same(name, tmp_path):
    anew, waiting = (pruned(ALL_ROWS[name], tmp_path / str(spare), spare) for spare in (0, 1 << 30))
    assert anew.keys() == waiting.keys()
    assert all(torch.equal(tensor, waiting[key]) for key, tensor in anew.items())


def pruned(row, folder, spare):
    """Prune half of a family's model in turn, and give its masks and weights."""
    model, adapter = row.build(), row.adapter()
    samples = list(row.samples(2 * row.batch_size))
    batches = [adapter.collate(model, some) for some in (samples[: row.batch_size], samples[row.batch_size :])]
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers)
    plan = make_plan(pools_of(anatomy, Fraction(1, 2), {}, []), Uniform(), "layer", None)
    pruners = dict.fromkeys((tower.name for tower in anatomy.towers), spec("pruner", Wanda()))
    replay = Replay(model, adapter, batches, anatomy=anatomy, spare=spare)
    masks = BlockwisePruning(replay, plan, pruners, folder, lambda event: None, sequential=True)()
    return {**masks, **model.state_dict()}
