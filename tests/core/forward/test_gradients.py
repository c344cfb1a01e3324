"""Statistics of the loss' gradient against autograd, and what becomes of them while a model is pruned."""

import errno
import os

import pytest
import torch

from ecoflap import ColumnNorm, LossGradient, Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.errors import ModelError, RunError
from ecoflap.core.forward.gradients import kept_gradients


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(2)
    mask = torch.tensor([[1] * 12, [1] * 7 + [0] * 5])
    return [{"input_ids": torch.randint(3, 60, (2, 12), generator=generator), "attention_mask": mask} for _ in range(3)]


def by_autograd(model, batches):
    """The mean over batches of |g|, in float64, by a plain backward for each batch."""
    model, adapter = model.double(), LlamaAdapter()
    sums = {}
    for batch in batches:
        model.zero_grad()
        adapter.loss(model, batch).backward()
        sums = {name: sums.get(name, 0) + one.grad.abs() for name, one in model.named_parameters()}
    return {name: total / len(batches) for name, total in sums.items()}


def test_it_is_the_mean_of_absolute_gradients_of_the_whole_loss(pico_llama, batches):
    replay = Replay(pico_llama(), LlamaAdapter(), batches)
    expected = by_autograd(pico_llama(), batches)
    for index in range(len(replay.blocks)):
        seen = replay.run(index, (ColumnNorm, LossGradient))
        alone = replay.run(index, (ColumnNorm,))
        for name, statistics in seen.items():
            assert list(statistics) == [ColumnNorm, LossGradient]
            assert statistics[LossGradient].batches == 3
            torch.testing.assert_close(
                statistics[LossGradient].magnitude.double(), expected[name], rtol=1e-3, atol=1e-7
            )
            assert torch.equal(statistics[ColumnNorm].squared, alone[name][ColumnNorm].squared)
        replay.advance(index)
    assert not any(parameter.grad is not None for parameter in replay.model.parameters())


class SquaredLossGradient(LossGradient):
    """The mean of the squared gradients, of a part of one's own."""

    def add_loss_gradient(self, gradient):
        super().add_loss_gradient(gradient.square())


def test_a_statistic_of_the_loss_that_is_asked_for_later_leaves_those_before_it(pico_llama, batches):
    replay = Replay(pico_llama(), LlamaAdapter(), batches)
    first = replay.run(0, (LossGradient,))
    name, before = next((name, seen[LossGradient].magnitude.clone()) for name, seen in first.items())
    with torch.no_grad():
        for parameter in replay.model.parameters():
            parameter.mul_(0.5)  # as a pruner would change them
    later = replay.run(1, (SquaredLossGradient,))
    assert all(list(seen) == [SquaredLossGradient] for seen in later.values())
    both = replay.run(0, (LossGradient, SquaredLossGradient))
    assert torch.equal(both[name][LossGradient].magnitude, before)
    assert both[name][SquaredLossGradient].batches == 3


def test_gradients_of_the_users_own_are_neither_added_nor_lost(pico_llama, batches):
    model, clean = pico_llama(), pico_llama()
    LlamaAdapter().loss(model, batches[0]).backward()
    own = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    found = Replay(model, LlamaAdapter(), batches).run(0, (LossGradient,))
    expected = Replay(clean, LlamaAdapter(), batches).run(0, (LossGradient,))
    for name, statistics in found.items():
        assert torch.equal(statistics[LossGradient].magnitude, expected[name][LossGradient].magnitude)
    assert all(torch.equal(parameter.grad, own[name]) for name, parameter in model.named_parameters())


def test_a_model_in_bfloat16_has_them_in_float32(pico_llama, batches):
    model = pico_llama().bfloat16()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    found = Replay(model, LlamaAdapter(), batches).run(0, (LossGradient,))
    wide = pico_llama().bfloat16().float()
    expected = by_autograd(wide, batches)
    for name, statistics in found.items():
        torch.testing.assert_close(statistics[LossGradient].magnitude.double(), expected[name], rtol=1e-3, atol=1e-7)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_what_was_kept_stays_when_the_model_changes(pico_llama, batches, tmp_path):
    replay = Replay(pico_llama(), LlamaAdapter(), batches)
    layers = [layer for _, layer in replay.anatomy.layers()]
    first = {layer.name: replay.run(0, (LossGradient,))[layer.name] for layer in layers[:7]}
    other = Replay(pico_llama(), LlamaAdapter(), batches)
    other.keep_loss_gradients([layer for _, layer in other.anatomy.layers()], (LossGradient,), tmp_path / "blocks")
    assert not list((tmp_path / "blocks").iterdir())  # a file without a name, gone with the numbers
    for layer in [layer for _, layer in other.anatomy.layers()]:
        layer.weight.data.mul_(0.5)
    again = other.run(0, (LossGradient,))
    for name, statistics in first.items():
        assert torch.equal(again[name][LossGradient].magnitude, statistics[LossGradient].magnitude)


def test_only_the_layers_asked_for_are_kept(pico_llama, batches):
    replay = Replay(pico_llama(), LlamaAdapter(), batches)
    some = replay.anatomy.layers_of[replay.blocks[0].name][:2]
    replay.keep_loss_gradients(some, (LossGradient,))
    assert set(replay.run(0, (LossGradient,), some)) == {layer.name for layer in some}


def test_a_gradient_that_is_not_finite_is_refused_by_layer(pico_llama, batches):
    model = pico_llama()
    model.model.embed_tokens.weight.data[5] = float("inf")
    batches = [{**batch, "input_ids": torch.full_like(batch["input_ids"], 5)} for batch in batches]
    with pytest.raises(ModelError, match=r"model\.layers\.\d.*: the gradient of the loss is NaN or infinite"):
        Replay(model, LlamaAdapter(), batches).run(0, (LossGradient,))


def test_a_layer_that_the_loss_does_not_depend_on_is_refused(pico_llama, batches):
    replay = Replay(pico_llama(), LlamaAdapter(), batches)
    layers = [layer for _, layer in replay.anatomy.layers()]

    def stream(visit):
        replay.gradients(lambda layer, gradient: visit(layer, gradient) if layer is not layers[3] else None)

    said = rf"the loss does not depend on {layers[3].name}, so there is no gradient\. Keep them whole"
    with pytest.raises(ModelError, match=said):
        kept_gradients(stream, layers, (LossGradient,), None, len(batches))


def test_a_full_disk_is_said_before_anything_is_written(pico_llama, batches, tmp_path, monkeypatch):
    replay = Replay(pico_llama(), LlamaAdapter(), batches)
    layers = [layer for _, layer in replay.anatomy.layers()]
    asked = []

    def full(_, begin, size):
        asked.append((begin, size))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(RunError, match=r"could not be written: the disk is full .* what is finished is kept"):
        kept_gradients(replay.gradients, layers, (LossGradient,), tmp_path, len(batches))
    assert asked == [(0, 4 * sum(layer.weight.numel() for layer in layers))]


def test_a_batch_that_a_layer_has_no_part_in_counts_with_zeros(pico_llama, batches):
    layers = [layer for _, layer in Replay(pico_llama(), LlamaAdapter(), batches).anatomy.layers()][:2]

    def stream(visit):
        for number in range(4):
            for layer in layers[: 1 if number else 2]:
                visit(layer, torch.full(layer.shape, -2.0))

    always, once = kept_gradients(stream, layers, (LossGradient,), None, 4).values()
    assert always.is_fed
    assert once.is_fed
    assert torch.equal(always[LossGradient].magnitude, torch.full(layers[0].shape, 2.0))
    assert torch.equal(once[LossGradient].magnitude, torch.full(layers[1].shape, 0.5))


def test_gradients_are_brought_to_where_their_total_is(pico_llama, batches):
    layers = [layer for _, layer in Replay(pico_llama(), LlamaAdapter(), batches).anatomy.layers()][:1]
    moved = []

    class Elsewhere(torch.Tensor):
        """Stands for a gradient on a GPU, of which a statistic that moves nothing can sum what was moved alone."""

        def to(self, device):
            moved.append(device)
            return torch.full(self.shape, 3.0)

    class Sum(LossGradient):
        """Sums without a look at where anything is."""

        def add_loss_gradient(self, gradient):
            assert type(gradient) is torch.Tensor
            self._sum.add_(gradient)
            self.batches += 1

    def stream(visit):
        visit(layers[0], torch.full(layers[0].shape, 3.0).as_subclass(Elsewhere))

    (found,) = kept_gradients(stream, layers, (Sum,), None, 1).values()
    assert moved == [torch.device("cpu")]
    assert torch.equal(found[Sum].magnitude, torch.full(layers[0].shape, 3.0))


def test_two_are_merged():
    one, two, whole = LossGradient(3), LossGradient(3), LossGradient(3)
    drawn = [torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    for statistic, some in ((one, drawn[:2]), (two, drawn[2:]), (whole, drawn)):
        statistic.sum_into(torch.zeros(2, 3))
        for gradient in some:
            statistic.add_loss_gradient(gradient)
    one.merge(two)
    torch.testing.assert_close(one.magnitude, whole.magnitude)
    torch.testing.assert_close(one.magnitude, torch.stack(drawn).abs().mean(0))
    with pytest.raises(ModelError, match="no gradient has reached this layer"):
        _ = LossGradient(3).magnitude
