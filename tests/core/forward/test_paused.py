"""Forwards that wait for the layers of their block, against a forward of the block for each group of layers."""

from contextlib import contextmanager
from fractions import Fraction

import pytest
import torch
from spec import spec
from torch import nn
from torch.nn import functional

from ecoflap import Anatomy, Layer, Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.nested import times_as_large
from ecoflap.core.forward.paused import ProductsSeen
from ecoflap.core.planning.plan import make_plan, pools_of
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


def make_noisy(model):
    """Add noise of the global generator, as a model does that drops out or samples."""

    def noisy(module, args, output):
        return output + torch.randn_like(output) / 10

    for block in model.model.layers:
        block.post_attention_layernorm.register_forward_hook(noisy)
        block.mlp.gate_proj.register_forward_hook(noisy)


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


def use_gradients(model):
    """Multiply where gradients are kept: other forwards would keep theirs."""
    for block in model.model.layers:
        block.mlp.forward = torch.enable_grad()(block.mlp.forward)


def use_autocast_around(model):
    """Run all blocks in an autocast: a block that runs by itself would be outside of it."""
    original = model.model.forward

    def forward(*args, **kwargs):
        with torch.autocast("cpu", torch.bfloat16):
            return original(*args, **kwargs)

    model.model.forward = forward


def multiply_one(model):
    """Multiply k, which shares its input with q and v, by another product than these."""
    for block in model.model.layers:
        block.self_attn.k_proj.__class__ = Multiplied


def hook(model):
    for block in model.model.layers:
        block.register_forward_hook(lambda module, args, output: output * 2)


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        (multiply, {}),
        (multiply_one, {}),
        (use_autocast, {}),
        (use_autocast_around, {}),
        (use_gradients, {}),
        (hook, {}),
        (lambda model: model.half(), {"dtype": torch.float32}),
        (lambda model: None, {"pruner": ByMetric(WandaPlusPlus())}),
    ],
    ids=[
        "another product",
        "another product of one input",
        "an autocast",
        "an autocast around",
        "gradients that are kept",
        "a hook of the block",
        "another precision",
        "gradients",
    ],
)
def test_what_cannot_wait_runs_anew(both, change, keys):
    waiting, anew = both(change=change, **keys)
    assert waiting.is_like(anew)
    assert waiting.projected > WAITING
    assert functional.linear.__module__ == "torch._C._nn"


def test_forwards_wait_only_where_memory_takes_what_they_hold(pico_llama, tmp_path):
    """What a forward holds is at least its residual and the input of down, and at most all that it has made."""
    run = Run(pico_llama, tmp_path / "blocks", 0)
    (first, *_) = run.replay.anatomy.layers_of.values()
    held = Replay(run.model, LlamaAdapter(), run.replay.batches, spare=1).fed_alike(0, first).held
    (down,) = (layer for layer in first if "down_proj" in layer.name)
    positions = 2 * LENGTHS[0]
    assert (
        4 * positions * (down.shape[0] + down.shape[1]) <= held < 4 * positions * sum(sum(x.shape) for x in first) * 2
    )
    together = sum(held * max(length / LENGTHS[0], (length / LENGTHS[0]) ** 2) for length in LENGTHS)
    assert Run(pico_llama, tmp_path / "more", int(together) + 1).projected == WAITING
    assert Run(pico_llama, tmp_path / "less", int(together) - 1).projected > WAITING


def test_a_batch_is_as_large_as_its_longest_text_whatever_its_images_are():
    image = torch.zeros(2, 3, 8, 8)
    first, longer = ({"pixel_values": image, "input_ids": torch.zeros(2, length), "n": 3} for length in (5, 40))
    assert times_as_large(longer, first) == 8
    assert times_as_large(first, longer) == 1
    assert times_as_large({"texts": ["a"]}, {"texts": ["b"]}) == 1


def test_what_has_no_storage_is_passed_over():
    """A model may make a sparse tensor; of a view nothing is counted twice."""
    products = ProductsSeen()
    linear = nn.Linear(4, 4, bias=False)
    layer = Layer("one.weight", linear)
    with products.looking([layer]), torch.no_grad():
        hidden = torch.ones(3, 4).view(3, 4)
        torch.eye(3).to_sparse() @ hidden
        linear(hidden)
    assert products.are_linear_once([layer])
    assert 4 * 3 * 4 <= products.most <= 4 * (3 * 4 + 3 * 3 + 3 * 4)


def test_a_parameter_that_is_a_part_of_another_tensor_is_known_where_it_is_widened(pico_llama, tmp_path):
    def change(model):
        model.half()
        for block in model.model.layers:
            both = torch.cat([block.mlp.gate_proj.weight.data, block.mlp.up_proj.weight.data])
            block.mlp.gate_proj.weight, block.mlp.up_proj.weight = map(nn.Parameter, both.chunk(2))

    assert Run(pico_llama, tmp_path / "blocks", PLENTY, change, dtype=torch.float32).projected > WAITING


def test_layers_may_be_listed_in_another_order_than_they_run(pico_llama, tmp_path):
    """Where they run anew the one that runs first names their input, and so it does where forwards wait."""
    run = Run(pico_llama, tmp_path / "blocks", 0)
    layers = run.replay.anatomy.layers_of["model.layers.0"]
    k, q = (next(layer for layer in layers if name in layer.name) for name in ("k_proj", "q_proj"))
    replay = Replay(run.model, LlamaAdapter(), run.replay.batches, spare=PLENTY)
    alike = replay.fed_alike(0, (k, q))
    needs = Wanda.needs
    with replay.paused(0, needs, (k, q), alike, "real") as paused:
        waiting = replay.observed(0, needs, (k, q), paused=paused)
    anew = replay.observed(0, needs, (k, q))
    assert waiting.inputs == anew.inputs == {k.name: q.name, q.name: q.name}


class Counting(LlamaAdapter):
    """Counts how often the model is run in the adapter's context."""

    inside = False

    @contextmanager
    def running(self, model):
        self.inside = True
        yield
        self.inside = False


def test_forwards_run_in_the_context_of_the_adapter(pico_llama):
    model, adapter, found = pico_llama(), Counting(), []
    replay = Replay(model, adapter, [batch_of(length) for length in LENGTHS], spare=PLENTY)
    (layers, *_) = replay.anatomy.layers_of.values()
    alike = replay.fed_alike(0, layers)
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda *of_a_hook: found.append(adapter.inside))
    groups = [[layer for layer in layers if alike.inputs[layer.name] == first] for first in set(alike.inputs.values())]
    with replay.paused(0, Wanda.needs, layers, alike, "real") as paused:
        for group in sorted(groups, key=lambda group: layers.index(group[0])):
            assert paused.come_to(group)
            for number in range(len(LENGTHS)):
                paused.inputs(number, group)
        assert replay.take_over(0, paused)
    assert found == [True] * len(LENGTHS)


def test_what_is_recorded_is_what_the_pruned_block_gives(pico_llama, tmp_path):
    run = Run(pico_llama, tmp_path / "blocks", PLENTY)
    again = Replay(run.model, LlamaAdapter(), run.replay.batches, seed=3)
    last = len(run.replay.blocks) - 1
    assert run.replay.finished == last + 1
    for index in range(last + 1):
        again.advance(index)
    for number in range(len(LENGTHS)):
        (mine,), (theirs,) = run.replay.recorded(number), again.recorded(number)
        hidden = [one[0] if isinstance(one, tuple) else one for one in (mine, theirs)]  # a tuple until transformers 5
        assert torch.equal(*hidden)


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
