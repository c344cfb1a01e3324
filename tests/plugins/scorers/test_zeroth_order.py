"""The zeroth-order score against autograd's ⟨g, z⟩ and against what its expectation must be."""

import weakref
from math import pi, sqrt

import pytest
import torch
from torch import nn

from ecoflap import Block, EcoflapError, Estimate, Layer, Replay, Tower
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.errors import NotFiniteError
from ecoflap.core.forward.noise import gaussian
from ecoflap.plugins.scorers import zeroth_order
from ecoflap.plugins.scorers.zeroth_order import ZerothOrder


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(4)
    ids = [torch.randint(3, 60, (2, 24), generator=generator) for _ in range(3)]
    return [{"input_ids": rows, "attention_mask": torch.ones_like(rows)} for rows in ids]


def slopes(model, batches, layers, noises, seed, joint=False):
    """|⟨g, z⟩| by autograd on a float32 copy of the model, for the noise the scorer draws."""
    adapter, found = LlamaAdapter(), {}
    parameters = dict(model.named_parameters())
    for number, batch in enumerate(batches):
        model.zero_grad()
        adapter.loss(model, batch).backward()
        for layer in layers:
            for noise in range(noises):
                z = gaussian(layer.shape, seed, layer.name, number, noise).double()
                inner = float((parameters[layer.name].grad.double() * z).sum())
                found.setdefault(layer.name, {})[number, noise] = inner
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_estimate_is_the_directional_derivative(pico_llama, batches, dtype):
    model = pico_llama(dtype=dtype)
    replay = Replay(model, LlamaAdapter(), batches, seed=7, dtype=torch.float32)
    layers = [layer for _, layer in replay.anatomy.layers()]
    scores = dict(ZerothOrder()(replay, layers))
    expected = slopes(pico_llama(dtype=dtype).float(), batches, layers, 1, 7)
    assert list(scores) == [layer.name for layer in layers]
    for name, score in scores.items():
        for number, term in enumerate(score.terms):
            assert term == pytest.approx(abs(expected[name][number, 0]), rel=0.02), (name, number)


def test_noises_are_averaged_within_a_batch_and_cost_no_data(pico_llama, batches):
    replay = Replay(pico_llama(), LlamaAdapter(), batches, seed=1, dtype=torch.float32)
    _, layer = next(replay.anatomy.layers())
    ((name, score),) = ZerothOrder(noises=3)(replay, [layer])
    expected = slopes(pico_llama(), batches, [layer], 3, 1)[name]
    assert len(score.terms) == len(batches)
    for number, term in enumerate(score.terms):
        assert term == pytest.approx(sum(abs(expected[number, k]) for k in range(3)) / 3, rel=0.02)


@pytest.mark.parametrize("joint", [False, True])
def test_it_holds_as_many_numbers_as_it_says(pico_llama, batches, joint, monkeypatch):
    replay = Replay(pico_llama(), LlamaAdapter(), batches[:1], dtype=torch.float32)
    layers, drawn, most = [layer for _, layer in replay.anatomy.layers()], [], [0]

    def draw(*arguments):
        made = gaussian(*arguments)
        drawn.append(weakref.ref(made))
        return made

    def moved(layer, delta):
        alive = sum(one.numel() for ref in drawn if (one := ref()) is not None)
        most.append(alive + delta.numel())
        return perturbed(layer, delta)

    perturbed = replay.perturbed
    monkeypatch.setattr(zeroth_order, "gaussian", draw)
    monkeypatch.setattr(replay, "perturbed", moved)
    assert dict(ZerothOrder(joint=joint)(replay, layers))
    assert max(most) == ZerothOrder(joint=joint).held_numbers(replay.anatomy)


def test_joint_moves_a_whole_block(pico_llama, batches):
    replay = Replay(pico_llama(), LlamaAdapter(), batches, seed=2, dtype=torch.float32)
    layers = [layer for _, layer in replay.anatomy.layers()]
    scorer = ZerothOrder(joint=True)
    scores = dict(scorer(replay, layers))
    expected = slopes(pico_llama(), batches, layers, 1, 2)
    assert (scorer.unit, list(scores)) == ("block", [block.name for block in replay.blocks])
    for block in replay.blocks:
        for number, term in enumerate(scores[block.name].terms):
            inner = sum(expected[layer.name][number, 0] for layer in replay.anatomy.layers_of[block.name])
            assert term == pytest.approx(abs(inner), rel=0.02)


def test_weights_are_the_same_bytes_in_the_same_place_afterwards(pico_llama, batches):
    model = pico_llama(dtype=torch.bfloat16)
    before = {name: (tensor.clone(), tensor.data_ptr()) for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    replay = Replay(model, LlamaAdapter(), batches, dtype=torch.float32)
    with replay:
        list(ZerothOrder()(replay, [layer for _, layer in replay.anatomy.layers()]))
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.view(torch.int16), before[name][0].view(torch.int16)), name
        assert tensor.data_ptr() == before[name][1]


def test_a_score_does_not_depend_on_what_else_is_scored(pico_llama, batches):
    replay = Replay(pico_llama(), LlamaAdapter(), batches, dtype=torch.float32)
    layers = [layer for _, layer in replay.anatomy.layers()]
    whole = dict(ZerothOrder()(replay, layers))
    again = Replay(pico_llama(), LlamaAdapter(), batches, dtype=torch.float32)
    part = dict(ZerothOrder()(again, [again_layer for _, again_layer in again.anatomy.layers()][9:12]))
    assert part == {name: whole[name] for name in part}


class Linear(nn.Module):
    """Loss Σ G∘W, whose gradient is G wherever W is."""

    def __init__(self, gradient):
        super().__init__()
        self.block = nn.Linear(gradient.shape[1], gradient.shape[0], bias=False)
        self.gradient = gradient


class LinearAdapter(LlamaAdapter):
    def towers(self, model):
        return [Tower("text", (Block("block", model.block, "text"),))]

    def layers(self, block):
        return [Layer("block.weight", block.module)]

    def loss(self, model, batch):
        eye = torch.eye(model.block.in_features, dtype=model.block.weight.dtype)
        return (model.block(eye).T.double() * model.gradient * batch["scale"]).sum()


def test_its_mean_is_root_two_over_pi_times_the_gradients_norm():
    gradient = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = Linear(gradient)
    batches = [{"scale": 2.0}] * 400
    replay = Replay(model, LinearAdapter(), batches, dtype=torch.float64)
    ((_, score),) = ZerothOrder(eps=1e-2)(replay, list(replay.anatomy.layers_of["block"]))
    expected = sqrt(2 / pi) * 2 * float(gradient.norm())
    assert abs(score - expected) < 4 * score.standard_error
    assert score.standard_error == pytest.approx(sqrt(1 - 2 / pi) * 2 * float(gradient.norm()) / 20, rel=0.1)


def test_estimates_know_their_standard_error():
    estimate = Estimate([1.0, 2.0, 3.0, 6.0])
    assert estimate == 3.0
    assert estimate.standard_error == pytest.approx(sqrt((4 + 1 + 0 + 9) / 3 / 4))
    assert Estimate([1.0]).standard_error == float("inf")


def test_a_step_that_float32_does_not_hold_is_refused_by_its_name():
    with pytest.raises(EcoflapError, match=r"eps is 1e\+300, and .* in float32, which ends at 3\.4e\+38"):
        ZerothOrder(eps=1e300)


def test_where_weights_are_moved_too_far_for_a_loss_the_step_is_named(pico_llama, batches):
    replay = Replay(pico_llama(), LlamaAdapter(), batches, dtype=torch.float32)
    layers = [layer for _, layer in replay.anatomy.layers()]
    with pytest.raises(NotFiniteError, match=r"q_proj\.weight perturbed, .* A smaller eps than 1e\+38 moves them less"):
        list(ZerothOrder(eps=1e38)(replay, layers))


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"noises": 0}, {"eps": 0.0}, {"eps": float("nan")}])
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(EcoflapError, match=f"{next(iter(wrong))} is .*; more than 0 is needed"):
        ZerothOrder(**wrong)
