"""Experts that are parts of one parameter: seen, perturbed, differentiated and pruned, each as a layer of its own."""

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction

import pytest
import torch
from family import redraw
from spec import spec
from torch import Tensor, nn
from torch.nn import functional as F

from ecoflap import Anatomy, ColumnNorm, Gram, Layer, Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.events import Warned
from ecoflap.core.forward.observation import Observation
from ecoflap.core.model.parameter_masks import ParameterMasks
from ecoflap.core.planning.plan import make_plan, pools_of
from ecoflap.core.pruning.prune_blocks import BlockwisePruning
from ecoflap.core.ranks.ranks import ALONE
from ecoflap.core.statistics.loss_gradient import LossGradient
from ecoflap.core.statistics.regional_gradient import RegionalGradient
from ecoflap.plugins.allocators.uniform import Uniform
from ecoflap.plugins.pruners.magnitude import Magnitude
from ecoflap.plugins.pruners.sparsegpt import SparseGPT
from ecoflap.plugins.pruners.wanda import Wanda

transformers = pytest.importorskip("transformers", minversion="5.0", reason="experts are packed from transformers 5 on")

EXPERTS, HIDDEN, INNER = 4, 32, 24
SIZES = {
    "vocab_size": 64, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def mixtral(**keys: int) -> nn.Module:
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**{**SIZES, **keys}))


def gpt_oss() -> nn.Module:
    config = transformers.GptOssConfig(**SIZES, layer_types=["full_attention"] * 2)
    return transformers.GptOssForCausalLM(config)


def llama4() -> nn.Module:
    from transformers.models.llama4 import Llama4ForCausalLM, Llama4TextConfig

    sizes = {**SIZES, "num_experts_per_tok": 1, "intermediate_size_mlp": INNER, "interleave_moe_layer_step": 1}
    return Llama4ForCausalLM(Llama4TextConfig(**sizes, attention_chunk_size=64))


MODELS = {"mixtral": mixtral, "gpt_oss": gpt_oss, "llama4": llama4}
TRANSPOSED = {"gpt_oss", "llama4"}


class ExpertsAdapter(LlamaAdapter):
    """Lists attention's matrices and each expert's; a pico model's own head is plain, so the loss is right."""

    def layers(self, block):
        if block.tower == "lm_head":
            return super().layers(block)
        found = [
            Layer(f"{block.name}.{name}.weight", module)
            for name, module in block.module.named_modules()
            if isinstance(module, nn.Linear) and "router" not in name and "gate" not in name.split(".")[-1:]
        ]
        path, experts = next((n, m) for n, m in block.module.named_modules() if hasattr(m, "gate_up_proj"))
        transposed = type(experts).__name__ in ("GptOssExperts", "Llama4TextExperts")
        return found + [
            Layer(f"{block.name}.{path}.{own}[{e}]", experts, own, layout="routed", part=e, transposed=transposed)
            for own in ("gate_up_proj", "down_proj")
            for e in range(EXPERTS)
        ]


def batch(rows: int = 2) -> dict[str, Tensor]:
    ids = torch.randint(3, 64, (rows, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.fixture(params=sorted(MODELS))
def model(request) -> nn.Module:
    made = redraw(MODELS[request.param]())
    if hasattr(made, "set_experts_implementation") and request.param != "llama4":
        made.set_experts_implementation("eager")
    return made


def replay_of(model: nn.Module, **keys: object) -> Replay:
    adapter = ExpertsAdapter()
    return Replay(model, adapter, [batch()], anatomy=Anatomy.of(adapter.towers(model), adapter.layers), **keys)


def routed(model: nn.Module) -> Iterator[tuple[int, Tensor]]:
    """Each expert of the first block with its real tokens, from what its module is given in a plain forward."""
    experts = next(m for m in model.model.layers[0].modules() if hasattr(m, "gate_up_proj"))
    given: list[Tensor] = []
    handle = experts.register_forward_hook(lambda _, args, __: given.extend(args))
    with torch.no_grad():
        model(**batch(), use_cache=False)
    handle.remove()
    real = batch()["attention_mask"].reshape(-1).bool()
    for expert in range(EXPERTS):
        if type(experts).__name__ == "Llama4TextExperts":
            rows = given[0].reshape(EXPERTS, -1, HIDDEN)[expert]
            yield expert, rows[real & rows.ne(0).any(1)]
        else:
            yield expert, given[0].reshape(-1, HIDDEN)[real & (given[1] == expert).any(1)]


def test_an_expert_is_seen_with_its_real_tokens(model):
    seen = replay_of(model).run(0, (ColumnNorm, Gram))
    layers = {layer.name: layer for _, layer in replay_of(model).anatomy.layers()}
    for expert, rows in routed(model):
        name = next(name for name in layers if name.endswith(f"gate_up_proj[{expert}]"))
        assert seen[name].is_fed is bool(len(rows))
        if len(rows):
            wide = rows.double()
            assert seen[name][ColumnNorm].tokens == len(rows)
            torch.testing.assert_close(
                seen[name][ColumnNorm].squared.double(), wide.square().sum(0), rtol=1e-5, atol=1e-9
            )
            torch.testing.assert_close(seen[name][Gram].matrix.double(), wide.T @ wide, rtol=1e-4, atol=1e-5)
            down = name.replace("gate_up", "down")
            assert seen[down][ColumnNorm].tokens == len(rows)
            assert seen[down][ColumnNorm].in_features == INNER == layers[down].shape[1]


def test_mixtrals_second_matrix_sees_what_the_first_made():
    model = redraw(mixtral())
    model.set_experts_implementation("eager")
    seen = replay_of(model).run(0, (ColumnNorm,))
    weight = model.model.layers[0].mlp.experts.gate_up_proj.detach().double()
    for expert, rows in routed(model):
        gate, up = (rows.double() @ weight[expert].T).chunk(2, -1)
        found = seen[f"model.layers.0.mlp.experts.down_proj[{expert}]"][ColumnNorm].squared
        torch.testing.assert_close(found.double(), (F.silu(gate) * up).square().sum(0), rtol=1e-4, atol=1e-8)


def test_the_loss_from_any_block_is_the_whole_forwards(model):
    replay = replay_of(model)
    with torch.no_grad():
        expected = replay.adapter.loss(model, batch()).double()
    for index in range(len(replay.blocks)):
        assert torch.equal(replay.loss(index)[0], expected)
        replay.advance(index)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_that_are_perturbed_together_come_back_bit_for_bit(model, dtype):
    model = model.to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    replay = replay_of(model, dtype=torch.float32)
    layers = [layer for _, layer in replay.anatomy.layers() if layer.part is not None][:3]
    deltas = {layer: torch.full(layer.shape, 0.25 + layer.part) for layer in layers}
    with ExitStack() as stack:
        for layer, delta in deltas.items():
            stack.enter_context(replay.perturbed(layer, delta))
        for layer, delta in deltas.items():
            expected = before[layer.name.split("[")[0]].float()[layer.part]
            assert torch.equal(layer.weight, layer.oriented(expected) + delta)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype, name
        assert torch.equal(tensor, before[name]), name


def test_the_loss_moves_with_one_expert_alone(model):
    replay = replay_of(model)
    plain = replay.loss()
    fed = replay.run(0)
    for _, layer in replay.anatomy.layers(replay.blocks[:1]):
        if layer.part is not None:
            with replay.perturbed(layer, torch.ones(layer.shape)):
                assert bool(replay.loss() != plain) or not fed[layer.name].is_fed, layer.name
    assert torch.equal(replay.loss(), plain)


def test_gradients_are_autograds(model):
    replay, found = replay_of(model), {}
    replay.gradients(lambda layer, gradient: found.update({layer.name: gradient.clone()}))
    model.requires_grad_(True)
    replay.adapter.loss(model, batch()).backward()
    for _, layer in replay.anatomy.layers():
        expected = layer.matrix_of(layer.parameter.grad)
        torch.testing.assert_close(found[layer.name], expected, rtol=1e-4, atol=1e-7)


def without_last_expert() -> nn.Module:
    """A Mixtral whose routers choose one of the first three: of v·x and −v·x one is above the last expert's 0."""
    model = redraw(mixtral(num_experts_per_tok=1))
    model.set_experts_implementation("eager")
    for block in model.model.layers:
        gate = block.mlp.gate.weight.data
        gate[1], gate[3] = -gate[0], 0
    return model


def test_a_regional_gradient_is_a_mean_over_samples_whichever_reach_the_expert():
    """Squares are added up, and those of a batch by itself are seen by itself; the order of batches changes nothing."""
    model = without_last_expert()
    ids = [torch.randint(3, 64, (1, 2), generator=torch.Generator().manual_seed(seed)) for seed in range(6)]
    batches = [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]
    adapter = ExpertsAdapter()
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers)

    def seen(some):
        return Replay(model, adapter, some, anatomy=anatomy).run(0, (RegionalGradient,))

    alone = [seen([one]) for one in batches]
    together, reversed_ = seen(batches), seen(batches[::-1])
    some_reach = 0
    for name, found in together.items():
        if not found.is_fed:
            continue
        parts = [one[name] for one in alone if one[name].is_fed]
        some_reach += len(parts) < len(batches)
        squares = sum(one[RegionalGradient].magnitude.double().square() for one in parts) / len(batches)
        assert found[RegionalGradient].samples == len(batches)
        torch.testing.assert_close(found[RegionalGradient].magnitude.double(), squares.sqrt(), rtol=1e-4, atol=1e-9)
        other = reversed_[name][RegionalGradient].magnitude
        torch.testing.assert_close(other, found[RegionalGradient].magnitude, rtol=1e-4, atol=1e-9)
    assert some_reach


def test_a_regional_gradient_is_taken_of_each_expert(model):
    seen = replay_of(model).run(0, (RegionalGradient,))
    for name, found in seen.items():
        magnitude = found[RegionalGradient].magnitude
        assert bool(magnitude.isfinite().all()), name
        assert bool(magnitude.any()), name


def test_the_loss_gradient_of_each_expert_is_autograds(model):
    assert_loss_gradients(model, unfed=0)


def test_the_loss_gradient_of_an_expert_without_a_token_is_ones():
    assert_loss_gradients(without_last_expert(), unfed=2)


def test_statistics_of_an_expert_without_a_token_are_where_its_block_runs(monkeypatch):
    monkeypatch.setattr("ecoflap.core.forward.observation._is_finite", lambda one: True)  # meta has no numbers
    replay = replay_of(without_last_expert())
    layers = [layer for _, layer in replay.anatomy.layers() if layer.layout == "routed"]
    observation = Observation(replay.blocks[0], layers, (ColumnNorm, RegionalGradient), torch.device("meta"))
    for found in observation.observed(ALONE).seen.values():  # of nothing seen, so that no layer is fed
        assert not found.is_fed
        tensors = [tensor for one in found.values() for tensor in vars(one).values() if torch.is_tensor(tensor)]
        assert {tensor.device.type for tensor in tensors} == {"meta"}


def assert_loss_gradients(model: nn.Module, unfed: int) -> None:
    replay = replay_of(model)
    model.requires_grad_(True)
    replay.adapter.loss(model, batch()).backward()
    expected = {
        layer.name: layer.matrix_of(layer.parameter.grad).abs()
        for _, layer in replay.anatomy.layers()
        if layer.parameter.grad is not None
    }
    model.zero_grad()
    seen = replay.run(0, (LossGradient,))
    assert sum(not found.is_fed for found in seen.values()) == unfed
    for name, found in seen.items():
        is_fed = name in expected and bool(expected[name].any())
        ones = torch.ones_like(found[LossGradient].magnitude)
        wanted = expected[name] if is_fed else ones
        torch.testing.assert_close(found[LossGradient].magnitude, wanted, rtol=1e-4, atol=1e-7)
        assert found.is_fed == is_fed


@pytest.mark.parametrize("pruner", [Wanda(), SparseGPT(), Magnitude()], ids=["wanda", "sparsegpt", "magnitude"])
def test_each_expert_keeps_what_the_plan_says_and_a_second_run_takes_it_over(model, pruner, tmp_path):
    def prune(folder, on):
        replay = replay_of(on)
        plan = make_plan(pools_of(replay.anatomy, Fraction(1, 2), {}, []), Uniform(), "layer", None)
        masks = BlockwisePruning(replay, plan, {"language": spec("pruner", pruner)}, folder, lambda event: None)()
        return replay, plan, masks

    (tmp_path / "blocks").mkdir()
    other = type(model)(model.config).eval()
    other.load_state_dict(model.state_dict())
    replay, plan, masks = prune(tmp_path / "blocks", model)
    state = model.state_dict()
    for _, layer in replay.anatomy.layers():
        assert int(masks[layer.name].sum()) == plan.layers[layer.name].keep == layer.size // 2
    for name, mask in ParameterMasks(model, masks).items():
        assert mask.shape == state[name].shape, name
        assert not bool(state[name][~mask].any()), name
    *_, again = prune(tmp_path / "blocks", other)
    assert all(torch.equal(again[name], masks[name]) for name in masks)
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


def test_which_experts_are_fed_is_looked_for_in_every_batch():
    """A router gives each of two tokens to two experts of four, and these are not the same two."""
    model = redraw(mixtral())
    model.set_experts_implementation("eager")
    adapter = ExpertsAdapter()
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers)
    # A text of a token that is said twice has one hidden state, and is the shortest with a loss.
    texts = [{"input_ids": torch.full((1, 2), token), "attention_mask": torch.ones(1, 2).long()} for token in (3, 9)]
    layers = anatomy.layers_of["model.layers.0"]
    fed = []
    for batches in (texts[:1], texts[1:], texts):
        found = Replay(model, adapter, batches, anatomy=anatomy).fed_alike(0, layers)
        fed.append({name for name, one in found.seen.items() if one.is_fed})
    first, second, both = fed
    assert second - first
    assert both == first | second


@pytest.mark.parametrize("sequential", [False, True])
def test_an_expert_without_a_token_is_pruned_by_its_weights_alone_and_named(tmp_path, sequential):
    model = without_last_expert()
    replay, events = replay_of(model), []
    dense = model.model.layers[0].mlp.experts.down_proj[3].detach().clone()
    unfed = [name for name, found in replay.run(0).items() if not found.is_fed]
    plan = make_plan(pools_of(replay.anatomy, Fraction(1, 2), {}, []), Uniform(), "layer", None)
    (tmp_path / "blocks").mkdir()
    pruners = {"language": spec("pruner", Wanda())}
    folder = tmp_path / "blocks"
    masks = BlockwisePruning(replay, plan, pruners, folder, events.append, sequential=sequential)()
    assert unfed == [f"model.layers.0.mlp.experts.{own}[3]" for own in ("gate_up_proj", "down_proj")]
    told = [event.message for event in events if isinstance(event, Warned)]
    assert len(told) == len(model.model.layers)
    assert any("no calibration token to 2 matrices of experts" in text and unfed[0] in text for text in told)
    largest = dense.abs() >= dense.abs().sort(dim=1, descending=True).values[:, INNER // 2 - 1 : INNER // 2]
    assert torch.equal(masks[unfed[1]], largest)
