"""Replay against the plain forward of the whole model, for a decoder and for an encoder with a decoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ecoflap import ColumnNorm, EcoflapError, Gram, RegionalGradient, Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.records import Batch, Sample
from ecoflap.core.errors import ModelError
from ecoflap.core.model.anatomy import Block, Layer, Source, Tower


class T5Adapter:
    """Just enough of T5 to walk it: two towers, a bias made in block 0 and handed on, cross-attention."""

    processor: Any = None

    def matches(self, source: Source) -> bool:
        return False

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        raise NotImplementedError

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        def tower(name: str) -> Tower:
            blocks = getattr(model, name).block
            return Tower(name, tuple(Block(f"{name}.block.{i}", block, name) for i, block in enumerate(blocks)))

        return [tower("encoder"), tower("decoder")]

    def layers(self, block: Block) -> Sequence[Layer]:
        names = [name for name, module in block.module.named_modules() if isinstance(module, nn.Linear)]
        return [
            Layer(
                f"{block.name}.{name}.weight",
                block.module.get_submodule(name),
                reads="encoder" if name.endswith(("EncDecAttention.k", "EncDecAttention.v")) else "",
            )
            for name in names
        ]

    def max_length(self, model: nn.Module) -> int | None:
        return None

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(**batch, use_cache=False).loss.double()

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Tensor:
        mask = batch["attention_mask"] if tower == "encoder" else torch.ones_like(batch["labels"])
        return mask.to(torch.int8)

    def save(self, model: nn.Module, folder: Path) -> None:
        raise NotImplementedError


@pytest.fixture
def t5(redraw):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0, relative_attention_num_buckets=8,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    redraw(model, 3)
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    batches = [
        {
            "input_ids": torch.randint(1, 100, (2, 9), generator=generator),
            "attention_mask": mask,
            "labels": torch.randint(1, 100, (2, 5), generator=generator),
        }
        for _ in range(2)
    ]
    return model, T5Adapter(), batches


@pytest.fixture
def llama(pico_llama):
    generator = torch.Generator().manual_seed(2)
    mask = torch.tensor([[1] * 12, [1] * 7 + [0] * 5])
    batches = [
        {"input_ids": torch.randint(3, 60, (2, 12), generator=generator), "attention_mask": mask} for _ in range(3)
    ]
    return pico_llama(), LlamaAdapter(), batches


@pytest.fixture(params=["llama", "t5"])
def case(request):
    return request.getfixturevalue(request.param)


def full_losses(model, adapter, batches):
    with torch.no_grad():
        return torch.stack([adapter.loss(model, batch).double() for batch in batches])


def halve(layer):
    layer.weight.data *= 0.5


def test_loss_from_any_block_is_the_full_forwards_bit_for_bit(case):
    model, adapter, batches = case
    replay = Replay(model, adapter, batches)
    expected = full_losses(*case)
    for index in range(len(replay.blocks)):
        assert torch.equal(replay.loss(index), expected), index
        replay.advance(index)


def test_and_again_after_the_blocks_before_it_have_changed(case):
    model, adapter, batches = case
    replay = Replay(model, adapter, batches)
    for index, block in enumerate(replay.blocks):
        for layer in replay.anatomy.layers_of[block.name]:
            halve(layer)
        assert torch.equal(replay.loss(index), full_losses(*case)), index
        replay.advance(index)


def test_statistics_are_those_of_the_plain_forward_without_padding(case):
    """Inputs are read with module hooks here, which do fire for these models."""
    model, adapter, batches = case
    replay = Replay(model, adapter, batches)
    expected: dict[str, Tensor] = {}
    handles = []
    for _, layer in replay.anatomy.layers():
        tower = layer.reads or next(b.tower for b in replay.blocks if layer.name.startswith(f"{b.name}."))

        def hook(module, inputs, _, name=layer.name, tower=tower):
            real = adapter.tokens(model, batch, tower).bool()
            expected[name] = expected.get(name, 0) + inputs[0][real].double().square().sum(0)

        handles.append(layer.module.register_forward_hook(hook))
    with torch.no_grad():
        for batch in batches:
            adapter.loss(model, batch)
    for handle in handles:
        handle.remove()
    for index, block in enumerate(replay.blocks):
        seen = replay.run(index, (ColumnNorm,))
        assert list(seen) == [layer.name for layer in replay.anatomy.layers_of[block.name]]
        for name, statistic in seen.items():
            torch.testing.assert_close(statistic[ColumnNorm].squared.double(), expected[name], rtol=1e-5, atol=0)
        replay.advance(index)


def test_layers_fed_the_same_tensor_share_a_statistic(llama):
    replay = Replay(*llama)
    seen = replay.run(0, (Gram,))
    of = {name.split(".")[-2]: id(statistic[Gram]) for name, statistic in seen.items()}
    assert of["q_proj"] == of["k_proj"] == of["v_proj"]
    assert of["gate_proj"] == of["up_proj"]
    assert len(set(of.values())) == 4


def test_statistics_come_by_their_types(llama):
    replay = Replay(*llama)
    seen = replay.run(0, (Gram, ColumnNorm))["model.layers.0.mlp.up_proj.weight"]
    assert [(kind, type(statistic)) for kind, statistic in seen.items()] == [(Gram, Gram), (ColumnNorm, ColumnNorm)]
    with pytest.raises(ModelError, match=r"the statistic RegionalGradient was not taken .*; taken: Gram, ColumnNorm\."):
        seen[RegionalGradient]
    assert [dict(seen) for seen in replay.run(0).values()] == [{}] * 7


def test_cross_attention_reads_the_encoder(t5):
    """With encoder and decoder of one length a wrong tower would not be noticed by its size."""
    model, adapter, batches = t5
    for batch in batches:
        batch["labels"] = batch["input_ids"].clone()
    replay = Replay(model, adapter, batches)
    for index in (0, 1):
        replay.advance(index)
    seen = replay.run(2, (ColumnNorm,))
    real = sum(int(batch["attention_mask"].sum()) for batch in batches)
    for name, statistic in seen.items():
        reads_encoder = "EncDecAttention.k" in name or "EncDecAttention.v" in name
        assert statistic[ColumnNorm].tokens == (real if reads_encoder else 2 * 2 * 9), name


def test_a_poisoned_padding_row_changes_nothing(llama):
    model, adapter, batches = llama
    before = Replay(model, adapter, batches).run(0, (ColumnNorm,))
    with torch.no_grad():
        model.model.embed_tokens.weight[63] = 1e6
    for batch in batches:
        batch["input_ids"][1, 7:] = 63
    after = Replay(model, adapter, batches).run(0, (ColumnNorm,))
    for name in before:
        assert torch.equal(before[name][ColumnNorm].squared, after[name][ColumnNorm].squared), name


def test_float32_losses_of_a_half_model_leave_it_byte_for_byte(llama):
    model, adapter, batches = llama
    model.bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    storage = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    replay = Replay(model, adapter, batches, dtype=torch.float32)
    losses = replay.loss()
    replay.advance(0)
    with replay:
        assert torch.equal(replay.loss(1), losses)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.view(torch.int16), before[name].view(torch.int16)), name
        assert tensor.data_ptr() == storage[name]
    torch.testing.assert_close(losses, full_losses(model.float(), adapter, batches), rtol=0, atol=1e-9)


def test_perturbed_holds_weight_plus_delta_and_gives_the_same_tensor_back(llama):
    model, adapter, batches = llama
    model.bfloat16()
    replay = Replay(model, adapter, batches, dtype=torch.float32)
    _, layer = next(replay.anatomy.layers())
    original, pointer = layer.weight.data.clone(), layer.weight.data_ptr()
    delta = torch.full(layer.shape, 1e-6)
    with replay.perturbed(layer, delta):
        assert torch.equal(layer.weight.data, original.float() + delta)
    assert torch.equal(layer.weight.data, original)
    assert layer.weight.data_ptr() == pointer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_autograds(case, dtype):
    model, adapter, batches = case
    model.to(dtype)
    replay = Replay(model, adapter, batches, dtype=torch.float32)
    streamed: dict[str, list[Tensor]] = {}
    replay.gradients(lambda layer, gradient: streamed.setdefault(layer.name, []).append(gradient.clone()))
    assert all(parameter.grad is None and parameter.dtype == dtype for parameter in model.parameters())
    model.float()
    for number, batch in enumerate(batches):
        model.zero_grad()
        adapter.loss(model, batch).backward()
        for _, layer in replay.anatomy.layers():
            torch.testing.assert_close(streamed[layer.name][number], layer.weight.grad, rtol=1e-4, atol=1e-7)


def test_the_global_generator_is_untouched(llama):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    replay = Replay(*llama)
    replay.loss()
    replay.advance(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_gives_one_loss_for_one_batch(llama):
    model, adapter, batches = llama
    model.model.norm = nn.Sequential(model.model.norm, nn.Dropout(0.5).train())
    replay = Replay(model, adapter, batches, seed=1)
    assert torch.equal(replay.loss(), replay.loss())
    assert torch.equal(replay.loss(0, [1]), replay.loss()[1:2])
    assert not torch.equal(replay.loss(), Replay(model, adapter, batches, seed=2).loss())


def test_a_block_cannot_be_run_before_those_it_follows(llama):
    replay = Replay(*llama)
    with pytest.raises(EcoflapError, match=r"model.layers.2 is block 2, but no block has been recorded"):
        replay.loss(2)
    replay.advance(0)
    replay.advance(1)
    with pytest.raises(EcoflapError, match=r"model.layers.1 is block 1, but 2 blocks"):
        replay.run(1)


def test_blocks_listed_in_another_order_than_they_run_are_refused(llama):
    model, _, batches = llama

    class Reversed(LlamaAdapter):
        def towers(self, model):
            tower, *_ = super().towers(model)
            return [Tower(tower.name, tower.blocks[::-1])]

    with pytest.raises(EcoflapError, match=r"runs before model.layers.1; its adapter must list blocks in the order"):
        Replay(model, Reversed(), batches).advance(0)


def test_a_block_that_runs_more_often_than_declared_is_refused(llama):
    model, adapter, batches = llama
    model.model.layers.append(model.model.layers[2])
    model.config.num_hidden_layers = 4

    class Once(LlamaAdapter):
        def towers(self, model):
            tower, *_ = super().towers(model)
            return [Tower(tower.name, tower.blocks[:3])]

    with pytest.raises(EcoflapError, match=r"model.layers.2 runs more than the 1 times its adapter declares"):
        Replay(model, Once(), batches).loss()
    with pytest.raises(EcoflapError, match=r"as model.layers.2.self_attn.q_proj.weight and as model.layers.3.self_at"):
        Replay(model, adapter, batches)


def test_a_block_may_run_twice_where_its_adapter_says_so():
    """The statistic sums over both calls, and a replay answers each call with its own record."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.after = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            first, second = self.block(x), self.block(x.cos())
            return self.after(first) * self.after(second)

    class HeadAdapter(LlamaAdapter):
        def towers(self, model):
            blocks = [Block(name, getattr(model, name), "text", calls=2) for name in ("block", "after")]
            return [Tower("text", tuple(blocks))]

        def layers(self, block):
            return [Layer(f"{block.name}.weight", block.module)]

        def loss(self, model, batch):
            return model(batch["x"]).double().square().mean()

        def tokens(self, model, batch, tower, call=0):
            return torch.ones(batch["x"].shape[:2], dtype=torch.int8)

    torch.manual_seed(0)
    head, batches = Head().eval(), [{"x": torch.randn(2, 5, 8)}]
    replay = Replay(head, HeadAdapter(), batches)
    expected = batches[0]["x"].square().sum((0, 1)) + batches[0]["x"].cos().square().sum((0, 1))
    torch.testing.assert_close(replay.run(0, (ColumnNorm,))["block.weight"][ColumnNorm].squared, expected)
    losses = replay.loss()
    replay.advance(0)
    assert torch.equal(replay.loss(1), losses)


def test_a_matrix_that_is_not_used_is_named(llama):
    model, adapter, batches = llama
    block = model.model.layers[0]
    up = block.mlp.up_proj

    class Elsewhere(nn.Module):
        """Uses the weight, but multiplies nothing with it."""

        def __init__(self):
            super().__init__()
            self.weight = up.weight

        def forward(self, x):
            return (x[..., None, :] * self.weight).sum(-1)

    block.mlp.up_proj = Elsewhere()
    with pytest.raises(EcoflapError, match=r"model.layers.0 ran without .*up_proj"):
        Replay(model, adapter, batches).run(0, (ColumnNorm,))


def test_writing_into_a_record_is_refused(llama):
    model, adapter, batches = llama
    second = model.model.layers[1]
    forward = second.forward
    second.forward = lambda hidden_states, *args, **kwargs: forward(hidden_states.add_(0), *args, **kwargs)
    replay = Replay(model, adapter, batches)
    replay.advance(0)
    with pytest.raises(EcoflapError, match=r"writes in place"):
        replay.advance(1)


def test_a_wrapper_already_there_is_kept(llama):
    model, adapter, batches = llama
    expected = full_losses(*llama)
    block = model.model.layers[1]
    original, seen = block.forward, []

    def wrapper(*args, **kwargs):
        seen.append(1)
        return original(*args, **kwargs)

    block.forward = wrapper
    replay = Replay(model, adapter, batches)
    assert torch.equal(replay.loss(), expected)
    assert len(seen) == len(batches)
    assert block.__dict__["forward"] is wrapper
    assert "forward" not in model.model.layers[0].__dict__


def test_infinite_inputs_name_the_layer(llama):
    model, adapter, batches = llama
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0] = float("inf")
    replay = Replay(model, adapter, batches)
    replay.advance(0)
    with pytest.raises(EcoflapError, match=r"model.layers.1.mlp.down_proj.weight: its inputs hold NaN or infinite"):
        replay.run(1, (ColumnNorm,))
    with pytest.raises(EcoflapError, match="the loss of calibration batch 0 is nan"):
        replay.loss()


def plain_calls(model, module, run):
    """What a module is given and what it returns in the model's own forward."""
    calls = []
    handle = module.register_forward_hook(lambda _, args, output: calls.append((args, output)))
    with torch.no_grad():
        run(model)
    handle.remove()
    return calls


def first(output):
    return output if isinstance(output, Tensor) else output[0]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_blocks_inputs_and_outputs_are_those_of_the_plain_forward(kind, request):
    model, adapter, batches = request.getfixturevalue(kind)
    replay = Replay(model, adapter, batches)
    for index, block in enumerate(replay.blocks):
        for batch, (call,) in zip(batches, replay.calls(index), strict=True):
            ((args, output),) = plain_calls(model, block.module, lambda m, batch=batch: adapter.loss(m, batch))
            assert call.number == 0
            assert torch.equal(first(call.output), first(output))
            given = call.args[0] if call.args else call.kwargs["hidden_states"]
            assert torch.equal(given, args[0] if args else given)
        replay.advance(index)


def finished(module, run, *arguments):
    """How often a module came to its end."""
    return len(outputs_of(arguments, module, lambda given: run(*given)))


def test_a_batch_ends_where_the_last_input_is_seen_and_the_first_one_does_not(case):
    replay = Replay(*case)
    for index, block in enumerate(replay.blocks):
        layers = replay.anatomy.layers_of[block.name]
        assert finished(block.module, replay.run, index, (ColumnNorm,)) == 1
        assert finished(layers[-1].module, replay.run, index, (ColumnNorm,)) == 1
        assert finished(layers[-1].module, replay.run, index, (ColumnNorm,), layers[:1]) == 1
        assert finished(block.module, replay.run, index, (RegionalGradient,)) == len(replay.batches)
        assert finished(block.module, replay.advance, index) == len(replay.batches)


def test_a_matrix_that_not_every_batch_multiplies_is_seen_where_one_does(llama, monkeypatch):
    """As one that only images go through, behind what all go through."""
    model, adapter, batches = llama
    block = adapter.towers(model)[0].blocks[0].module
    through, runs = block.mlp.forward, []

    def sometimes(hidden):
        runs.append(len(runs) > 1)
        return through(hidden) if runs[-1] else hidden

    monkeypatch.setattr(block.mlp, "forward", sometimes)
    seen = Replay(model, adapter, batches * 2).run(0, (ColumnNorm,))
    monkeypatch.setattr(block.mlp, "forward", through)
    expected = Replay(model, adapter, (batches * 2)[2:]).run(0, (ColumnNorm,))
    assert runs.count(False) == 2
    name = "model.layers.0.mlp.down_proj.weight"
    of_all, of_some = (one[name][ColumnNorm].squared for one in (seen, expected))
    torch.testing.assert_close(of_all, of_some, rtol=1e-5, atol=0)


def test_what_is_fed_alike_is_found_on_as_few_batches_as_tell_it(llama, monkeypatch):
    """The MLP is left out of the first batch, so that it takes the second one too, and not the third."""
    model, adapter, batches = llama
    block = adapter.towers(model)[0].blocks[0].module
    through, runs = block.mlp.forward, []

    def not_at_first(hidden):
        runs.append(bool(runs))
        return through(hidden) if runs[-1] else hidden

    monkeypatch.setattr(block.mlp, "forward", not_at_first)
    replay = Replay(model, adapter, batches)
    found = replay.fed_alike(0, replay.anatomy.layers_of["model.layers.0"])
    short = {name.split(".")[-2]: first.split(".")[-2] for name, first in found.inputs.items()}
    assert short == {
        "q_proj": "q_proj", "k_proj": "q_proj", "v_proj": "q_proj", "o_proj": "o_proj",
        "gate_proj": "gate_proj", "up_proj": "gate_proj", "down_proj": "down_proj",
    }  # fmt: skip
    assert runs == [False, True]
    assert not any(statistics for statistics in found.seen.values())


def test_a_matrix_that_is_multiplied_twice_is_seen_twice_in_each_batch(llama):
    model, adapter, batches = llama
    block = adapter.towers(model)[0].blocks[0].module
    through = block.mlp.forward
    block.mlp.forward = lambda hidden: through(through(hidden))
    seen = Replay(model, adapter, batches).run(0, (ColumnNorm,))
    once = [Replay(model, adapter, [batch]).run(0, (ColumnNorm,)) for batch in batches]
    for name, statistics in seen.items():
        expected = sum(one[name][ColumnNorm].squared.double() for one in once)
        torch.testing.assert_close(statistics[ColumnNorm].squared.double(), expected, rtol=1e-5, atol=0)


def nothing_of(output):
    """Zeros in the place of what a block gives, which older transformers put into a tuple."""
    return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0


def test_hooks_of_a_block_fire_and_may_change_its_output(llama):
    model, adapter, batches = llama
    replay = Replay(model, adapter, batches)
    module, fired = replay.blocks[1].module, []
    before = module.register_forward_pre_hook(lambda *_: fired.append("before"))
    after = module.register_forward_hook(lambda _, args, output: fired.append("after") or nothing_of(output))
    inside = module.mlp.up_proj.register_forward_hook(lambda *_: fired.append("inside"))
    replay.advance(0)
    replay.run(1, (ColumnNorm,))  # only the first batch's goes on behind the last input that is to be seen
    assert fired == ["before", "inside", "after", *["before", "inside"] * (len(batches) - 1)]
    fired.clear()
    replay.advance(1)
    assert fired == ["before", "inside", "after"] * len(batches)
    ((call,),) = list(replay.calls(2))[:1]
    for handle in (before, after, inside):
        handle.remove()
    assert not (call.args[0] if call.args else call.kwargs["hidden_states"]).any()
    assert not module._forward_hooks


def regional(model, block, batch, run, real):
    """Each weight's gradient of the norm of the block's output at the real tokens, sample by sample, in float64."""
    (output,) = [first(output) for output in outputs_of(model.double(), block.module, run)]
    weights = dict(block.module.named_parameters())
    squared = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for sample, mask in zip(output, real, strict=True):
        gradients = torch.autograd.grad(sample[mask].norm(), list(weights.values()), retain_graph=True)
        for name, gradient in zip(weights, gradients, strict=True):
            squared[name] += gradient.square()
    return squared


def outputs_of(model, module, run):
    outputs = []
    handle = module.register_forward_hook(lambda _, args, output: outputs.append(output))
    run(model)
    handle.remove()
    return outputs


def test_a_statistic_that_asks_for_gradients_gets_those_of_the_block_alone(llama, pico_llama):
    """Against autograd in float64 through the whole model, whose earlier blocks are constants to these weights."""
    model, adapter, batches = llama
    replay = Replay(model, adapter, batches)
    replay.advance(0)
    seen = replay.run(1, (ColumnNorm, RegionalGradient))
    assert not any(parameter.grad is not None for parameter in model.parameters())
    norms = Replay(model, adapter, batches)
    norms.advance(0)
    alone = norms.run(1, (ColumnNorm,))
    double = pico_llama()
    double.load_state_dict(model.state_dict())
    block = adapter.towers(double)[0].blocks[1]
    total = {}
    for batch in batches:
        real = batch["attention_mask"].bool()
        for name, squared in regional(double, block, batch, lambda m, b=batch: adapter.loss(m, b), real).items():
            total[name] = total.get(name, 0) + squared
    samples = sum(len(batch["input_ids"]) for batch in batches)
    for name, statistics in seen.items():
        expected = (total[name.removeprefix("model.layers.1.")] / samples).sqrt()
        assert statistics[RegionalGradient].samples == samples
        torch.testing.assert_close(statistics[RegionalGradient].magnitude.double(), expected, rtol=1e-4, atol=1e-7)
        assert torch.equal(statistics[ColumnNorm].squared, alone[name][ColumnNorm].squared)


def test_gradients_are_added_from_several_statistics(llama):
    model, adapter, batches = llama
    whole = Replay(model, adapter, batches).run(0, (RegionalGradient,))
    parts = [Replay(model, adapter, [batch]).run(0, (RegionalGradient,)) for batch in batches]
    for name, seen in whole.items():
        merged = parts[0][name][RegionalGradient]
        for other in parts[1:]:
            merged.merge(other[name][RegionalGradient])
        torch.testing.assert_close(merged.magnitude, seen[RegionalGradient].magnitude)
    with pytest.raises(ModelError, match="no gradient has reached this layer"):
        _ = RegionalGradient(4).magnitude


def test_what_is_asked_of_a_replay_in_another_way_is_told(llama):
    model, adapter, batches = llama
    replay = Replay(model, adapter, batches)
    layer = replay.anatomy.layers_of[replay.blocks[0].name][0]
    row = torch.ones(1, layer.shape[1])  # which torch would add to every row
    said = r"replay\.perturbed was given a tensor of \(1, 32\) for .*q_proj\.weight, which is \(32, 32\)"
    with pytest.raises(ModelError, match=said), replay.perturbed(layer, row):
        pass
    with pytest.raises(ModelError, match=r"there are no batches: this part says data = False"):
        Replay(model, adapter, []).loss(0)
