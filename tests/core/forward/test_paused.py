"""Forwards that wait for the layers of their block, against a forward of the block for each group of layers."""

from fractions import Fraction

import pytest
import torch
from spec import spec
from torch import nn
from torch.nn import functional

from ecoflap import Anatomy, Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.errors import ModelError
from ecoflap.core.pruning.plan import make_plan, pools_of
from ecoflap.core.pruning.prune_blocks import BlockwisePruning
from ecoflap.plugins.allocators.uniform import Uniform
from ecoflap.plugins.metrics.ria import Ria
from ecoflap.plugins.metrics.wanda_plus_plus import WandaPlusPlus
from ecoflap.plugins.pruners.by_metric import ByMetric
from ecoflap.plugins.pruners.sparsegpt import SparseGPT
from ecoflap.plugins.pruners.wanda import Wanda

LENGTHS = (12, 7, 9)
PLENTY = 1 << 30


def batch_of(length):
    tokens = torch.arange(2 * length).reshape(2, length)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


class Run:
    """A pico LLaMA that was pruned in turn, and what its first blocks ran."""

    def __init__(self, pico_llama, folder, spare, change=lambda model: None, pruner=None, **keys):
        adapter, self.model = LlamaAdapter(), pico_llama()
        change(self.model)
        anatomy = Anatomy.of(adapter.towers(self.model), adapter.layers)
        plan = make_plan(pools_of(anatomy, Fraction(1, 2), {}, []), Uniform(), "layer", None)
        self.replay = Replay(self.model, adapter, [batch_of(length) for length in LENGTHS], spare=spare, seed=3, **keys)
        self.projected = 0
        self.model.model.layers[0].self_attn.q_proj.register_forward_hook(self.count)
        pruners = {"language": spec("pruner", pruner or Wanda())}
        fine = BlockwisePruning(self.replay, plan, pruners, folder, lambda event: None, sequential=True)
        generator = torch.random.get_rng_state()
        self.masks = fine()
        assert torch.equal(torch.random.get_rng_state(), generator)
        self.weights = self.model.state_dict()

    def count(self, *of_a_hook):
        self.projected += 1

    def is_like(self, other):
        assert self.masks.keys() == other.masks.keys()
        masks = all(torch.equal(mask, other.masks[name]) for name, mask in self.masks.items())
        weights = all(torch.equal(weight, other.weights[name]) for name, weight in self.weights.items())
        return masks and weights


@pytest.fixture
def both(pico_llama, tmp_path):
    """``both(...)``: the same run with forwards that wait, and with one for each group."""

    def both(**keys):
        return (Run(pico_llama, tmp_path / str(spare), spare, **keys) for spare in (PLENTY, 0))

    return both


WAITING = 1 + len(LENGTHS)
"""One forward of the first batch tells which layers share an input, and one of each batch does all else."""


@pytest.mark.parametrize("pruner", [Wanda(), SparseGPT(), ByMetric(Ria())], ids=type)
def test_weights_have_the_same_bits_as_with_a_forward_for_each_group(both, pruner):
    waiting, anew = both(pruner=pruner)
    assert waiting.is_like(anew)
    assert waiting.projected == WAITING < anew.projected


class Noisy(nn.Module):
    """Adds noise of the global generator, as a model does that drops out or samples."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        output = self.inner(*args, **kwargs)
        return output + torch.randn_like(output) / 10


def make_noisy(model):
    for block in model.model.layers:
        block.post_attention_layernorm = Noisy(block.post_attention_layernorm)
        block.mlp.act_fn = Noisy(block.mlp.act_fn)


def test_each_forward_draws_its_own_random_numbers(both):
    waiting, anew = both(change=make_noisy)
    assert waiting.is_like(anew)
    assert waiting.projected == WAITING


class Multiplied(nn.Linear):
    """A product that is no ``F.linear``."""

    def forward(self, inputs):
        return inputs @ self.weight.T


def multiply(model):
    for block in model.model.layers:
        block.self_attn.o_proj.__class__ = Multiplied


def use_autocast(model):
    """Leave an autocast on while a matrix is multiplied: no other forward may run in it."""
    for block in model.model.layers:
        original = block.mlp.forward

        def forward(hidden, original=original):
            with torch.autocast("cpu", torch.bfloat16):
                return original(hidden).float()

        block.mlp.forward = forward


def hook(model):
    for block in model.model.layers:
        block.register_forward_hook(lambda module, args, output: output * 2)


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        (multiply, {}),
        (use_autocast, {}),
        (hook, {}),
        (lambda model: model.half(), {"dtype": torch.float32}),
        (lambda model: None, {"pruner": ByMetric(WandaPlusPlus())}),
    ],
    ids=["another product", "an autocast", "a hook of the block", "another precision", "gradients"],
)
def test_what_cannot_wait_runs_anew(both, change, keys):
    waiting, anew = both(change=change, **keys)
    assert waiting.is_like(anew)
    assert waiting.projected > WAITING
    assert functional.linear.__module__ == "torch._C._nn"


@pytest.mark.parametrize("spare", [0, 4 * sum(2 * LENGTHS[0] for _ in range(3)) * 32])
def test_forwards_wait_only_where_memory_takes_them(pico_llama, tmp_path, spare):
    run = Run(pico_llama, tmp_path / "blocks", spare)
    assert run.projected > WAITING


def test_what_is_recorded_is_what_the_pruned_block_gives(pico_llama, tmp_path):
    run = Run(pico_llama, tmp_path / "blocks", PLENTY)
    again = Replay(run.model, LlamaAdapter(), run.replay.batches, seed=3)
    last = len(run.replay.blocks) - 1
    assert run.replay.finished == last + 1
    for index in range(last + 1):
        again.advance(index)
    for number in range(len(LENGTHS)):
        (mine,), (theirs,) = run.replay.recorded(number), again.recorded(number)
        assert torch.equal(mine, theirs)


def test_a_layer_that_a_later_batch_is_fed_twice_is_named(both):
    def change(model):
        for block in model.model.layers:
            original = block.mlp.forward

            def forward(hidden, original=original, mlp=block.mlp):
                if hidden.shape[1] == LENGTHS[1]:
                    mlp.gate_proj(hidden)
                    mlp.gate_proj(hidden + 1)
                return original(hidden)

            block.mlp.forward = forward

    with pytest.raises(ModelError, match=r"gate_proj\.weight is fed otherwise in some batches .* Leave out sequential"):
        next(both(change=change))
    assert functional.linear.__module__ == "torch._C._nn"


def test_a_run_that_goes_on_behind_a_finished_block_gives_the_same(pico_llama, tmp_path):
    whole = Run(pico_llama, tmp_path / "blocks", PLENTY)
    (tmp_path / "blocks" / "001.safetensors").unlink()
    assert Run(pico_llama, tmp_path / "blocks", PLENTY).is_like(whole)
