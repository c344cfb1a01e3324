"""Experts that are modules of their own see the tokens that a router gives them, and no padding."""

from functools import partial

import pytest
import torch
import transformers
from column_norms import column_norms
from pico_composites import drawn
from torch import Tensor, nn
from transformers_version import is_before

import ecoflap
from ecoflap.adapters.generic.seq2seq_lm import Seq2SeqLMAdapter
from ecoflap.core.forward.replay import Replay

SAMPLES = [ecoflap.Sample(tokens=torch.arange(5, end)) for end in (29, 16, 21)]


@pytest.fixture
def model() -> nn.Module:
    if is_before("5"):
        pytest.skip("before 5 the routers of Switch Transformers cannot be followed; Mixtral's and others are there")
    config = transformers.SwitchTransformersConfig(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4, num_experts=4,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, decoder_start_token_id=0, router_jitter_noise=0.0,
    )  # fmt: skip
    return drawn(transformers.SwitchTransformersForConditionalGeneration(config))


def test_all_of_them_are_layers_whichever_ran_when_the_model_was_watched(model: nn.Module):
    anatomy = ecoflap.check_adapter(Seq2SeqLMAdapter(), model, SAMPLES)
    routed = {layer.name for _, layer in anatomy.layers() if layer.layout == "routed"}
    assert routed == {name for name, _ in model.named_parameters() if ".experts." in name}


def test_each_says_which_matrix_of_experts_it_is(model: nn.Module):
    adapter = Seq2SeqLMAdapter()
    for tower, at in zip(adapter.towers(model)[:2], (1, 2), strict=True):
        block = tower.blocks[1].name
        found = [layer for layer in adapter.layers(tower.blocks[1]) if layer.layout == "routed"]
        names = [f"{block}.layer.{at}.mlp.experts.expert_*.{own}.weight" for own in ("wi", "wo")]
        assert [layer.of_experts for layer in found] == [name for name in names for _ in range(4)]
        assert [layer.name for layer in found[:4]] == [names[0].replace("*", str(number)) for number in range(4)]


def test_what_they_read_is_what_hooks_see_in_texts_without_padding(model: nn.Module):
    adapter = Seq2SeqLMAdapter()
    expected: dict[str, Tensor] = {}
    for name, one in model.named_modules():
        if ".experts." in name and isinstance(one, nn.Linear):
            expected[f"{name}.weight"] = torch.zeros(one.in_features, dtype=torch.float64)
            one.register_forward_pre_hook(partial(see, expected[f"{name}.weight"]))
    with torch.no_grad():
        for sample in SAMPLES:
            adapter.loss(model, adapter.collate(model, [sample]))
    alone = {name: norms.clone() for name, norms in expected.items() if norms.any()}
    assert 0 < len(alone) <= len(expected)
    replay, found = Replay(model, adapter, [adapter.collate(model, SAMPLES)]), {}
    for index in range(len(replay.blocks)):
        found |= column_norms(replay, index)
        replay.advance(index)
    for name, norms in alone.items():  # one without a token is pruned by its weights alone
        torch.testing.assert_close(found[name].squared.double(), norms, rtol=1e-4, atol=1e-5)


def see(norms: Tensor, module: nn.Module, given: tuple[Tensor, ...]) -> None:
    norms += given[0].detach().reshape(-1, given[0].shape[-1]).double().square().sum(0)


def test_one_that_no_token_reached_has_a_gradient_of_zeros(model: nn.Module):
    adapter, gradients = Seq2SeqLMAdapter(), {}
    batch = adapter.collate(model, SAMPLES[1:2])
    Replay(model, adapter, [batch]).gradients(lambda layer, found: gradients.update({layer.name: found.clone()}))
    adapter.loss(model, batch).backward()
    own = {name: one.grad for name, one in model.named_parameters() if ".experts." in name}
    assert any(gradient is None for gradient in own.values())
    for name, gradient in own.items():
        wanted = torch.zeros_like(gradients[name]) if gradient is None else gradient
        torch.testing.assert_close(gradients[name], wanted)
