"""Memory that is spent on being quicker: nothing is converted or run twice, and every score has the same bits."""

from collections import Counter
from typing import Any

import pytest
import torch

from ecoflap import Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.forward.gradients import saved_bytes
from ecoflap.core.forward.nested import tensors_in
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.plugins.scorers.first_order import FirstOrder
from ecoflap.plugins.scorers.zeroth_order import ZerothOrder

ROOM = 1 << 30


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(3, 60, (2, length), generator=generator) for length in (7, 12, 12)]
    return [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]


@pytest.fixture
def model(pico_llama):
    return pico_llama(layers=3).bfloat16()


def replay_of(model: Any, batches: Any, spare: int) -> Replay:
    return Replay(model, LlamaAdapter(), batches, seed=4, dtype=torch.float32, spare=spare)


def scores(scorer: Any, model: Any, batches: Any, spare: int) -> dict[str, tuple[float, ...]]:
    with replay_of(model, batches, spare) as replay:
        found = scorer(replay, [layer for _, layer in replay.anatomy.layers()])
        return {name: tuple(estimate.terms) for name, estimate in found}


def types(replay: Replay) -> list[set[torch.dtype]]:
    return [{one.dtype for one in block.module.parameters()} for block in replay.blocks]


@pytest.mark.parametrize("scorer", [ZerothOrder(), ZerothOrder(joint=True, noises=2), FirstOrder()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scores_have_the_same_bits(scorer, dtype, model, batches):
    model.to(dtype)
    before = {name: (one.data_ptr(), one.clone()) for name, one in model.state_dict().items()}
    assert scores(scorer, model, batches, ROOM) == scores(scorer, model, batches, 0)
    for name, one in model.state_dict().items():
        assert one.data_ptr() == before[name][0]
        assert torch.equal(one, before[name][1])


def test_every_block_is_held_until_it_is_recorded(model, batches):
    with replay_of(model, batches, ROOM) as replay:
        assert types(replay) == [{torch.float32}] * 3
        replay.advance(0)
        assert types(replay) == [{torch.bfloat16}, {torch.float32}, {torch.float32}]
    assert types(replay) == [{torch.bfloat16}] * 3


def test_blocks_of_a_model_that_does_not_fit_are_held_one_at_a_time(model, batches):
    narrow = [one for one in (*model.parameters(), *model.buffers()) if one.dtype == torch.bfloat16]
    needed = sum(4 * one.numel() for one in narrow)
    with replay_of(model, batches, needed - 1) as replay:
        assert types(replay) == [{torch.bfloat16}] * 3
    with replay_of(model, batches, needed) as replay:
        assert types(replay) == [{torch.float32}] * 3


@pytest.mark.parametrize(("spare", "forwards"), [(ROOM, [4, 4, 4]), (0, [6, 6, 3])])
def test_no_block_is_run_again_in_the_backward_where_activations_fit(spare, forwards, model, batches):
    """One more forward counts them; without room all blocks but the last run twice a batch."""
    ran = Counter[str]()
    with replay_of(model, batches, spare) as replay:
        for block in replay.blocks:
            layer = replay.anatomy.layers_of[block.name][0]
            layer.module.register_forward_pre_hook(lambda *_, name=block.name: ran.update([name]))
        replay.gradients(lambda layer, gradient: None)
        assert [ran[block.name] for block in replay.blocks] == forwards


def test_a_block_that_was_let_go_is_run_again(model, batches):
    found: list[list[torch.Tensor]] = [[], []]
    for spare, gradients in zip((ROOM, 0), found, strict=True):
        with replay_of(model, batches, spare) as replay:
            replay.advance(0)
            replay.gradients(lambda layer, gradient, into=gradients: into.append(gradient.clone()))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert found[0]


def test_what_a_backward_needs_is_counted_and_not_kept(model, batches):
    model, adapter = model.float().requires_grad_(False), LlamaAdapter()
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers)
    counted = saved_bytes(model, adapter, batches[1], anatomy)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        for _, layer in anatomy.layers():
            layer.parameter.requires_grad_(True)
        adapter.loss(model, batches[1])
    weights = {one.data_ptr() for one in tensors_in(model.state_dict())}
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in kept}
    held = sum(size for place, size in storages.items() if place not in weights)
    assert 0 < held <= counted <= 4 * held
