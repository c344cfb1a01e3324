"""A backward that runs each block again: the same gradients, bit for bit, and no block's activations meanwhile."""

import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ecoflap.core.disk.on_disk import lies_on_disk
from ecoflap.core.errors import ModelError
from ecoflap.core.forward import recomputed
from ecoflap.core.forward.recomputed import recomputed_blocks
from ecoflap.core.model.anatomy import Block


class Inner(nn.Module):
    """Two matrices around a tanh, beside what comes in; ``twice`` uses the first one twice."""

    def __init__(self, *, twice=False, drops=False):
        super().__init__()
        self.a, self.b = nn.Linear(12, 24, bias=False), nn.Linear(24, 12, bias=False)
        self.twice, self.drops = twice, drops

    def forward(self, x, *, scale):
        hidden = torch.tanh(self.a(x * scale))
        hidden = hidden + self.a(x) if self.twice else hidden
        hidden = nn.functional.dropout(hidden, 0.5) if self.drops else hidden
        return (x + self.b(hidden),)


class Model(nn.Module):
    """Some of these in a row, each called so often."""

    def __init__(self, *, calls=1, **keys):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 12)
        self.inner = nn.ModuleList(Inner(**keys) for _ in range(3))
        self.calls, self.scale = calls, torch.linspace(0.5, 1.5, 12)

    def blocks(self):
        return [Block(f"inner.{at}", one, "language", calls=self.calls) for at, one in enumerate(self.inner)]

    def forward(self, x):
        x = self.first(x)
        for _ in range(self.calls):
            for one in self.inner:
                (x,) = one(x, scale=self.scale)
        return x.float().square().mean()


def gradients(model, around, dtype=None):
    """What a loss' gradients are, and it: two are added, as of two batches."""
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    for one in model.parameters():
        one.grad = None
    losses = []
    with around:
        for factor in (1, 2):
            torch.manual_seed(factor)
            with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                loss = model(factor * x)
            loss.backward()
            losses.append(loss.detach())
    return losses + [one.grad for one in model.parameters()]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("keys", [{}, {"calls": 2}, {"twice": True}, {"twice": True, "calls": 2}, {"drops": True}])
def test_gradients_are_those_of_the_models_own_forward(tmp_path, keys, dtype):
    model = Model(**keys)
    own = gradients(model, nullcontext(), dtype)
    again = gradients(model, recomputed_blocks(model.blocks(), tmp_path), dtype)
    assert all(map(torch.equal, again, own))
    assert list(tmp_path.iterdir()) == []
    assert "forward" not in vars(model.inner[0])


def test_blocks_that_share_a_weight_sum_its_gradients_where_they_did(tmp_path):
    """By autocast it is cast once for both, and so what is added up is as narrow as that."""
    model = Model()
    model.inner[2].a.weight = model.inner[0].a.weight
    own = gradients(model, nullcontext(), torch.bfloat16)
    again = gradients(model, recomputed_blocks(model.blocks(), tmp_path), torch.bfloat16)
    assert all(map(torch.equal, again, own))


@pytest.mark.parametrize("again", [False, True])
def test_no_block_keeps_anything_in_memory_and_what_it_was_given_lies_in_a_file(tmp_path, monkeypatch, again):
    model, given, saved, put = Model(twice=True), [], [], []
    for one in model.inner:
        one.register_forward_hook(lambda module, args, output: given.append(weakref.ref(output[0])))

    def noted(tensor, folder):
        put.append(real(tensor, folder))
        return put[-1]

    real = recomputed.matrix_on_disk
    monkeypatch.setattr(recomputed, "matrix_on_disk", noted)

    def count(tensor):
        saved.append(tensor.shape)
        return tensor

    x = torch.ones(7, 5)
    with recomputed_blocks(model.blocks(), tmp_path) if again else nullcontext():
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model(x)
        assert [one() is None for one in given[:2]] == [again] * 2
        assert ((7, 24) in saved) is not again
        assert len(put) == (3 if again else 0)
        assert all(lies_on_disk(one) and one.shape == (7, 12) for one in put)
        loss.backward()


def test_without_gradients_a_block_runs_once_and_nothing_is_put_away(tmp_path, monkeypatch):
    monkeypatch.setattr(recomputed, "matrix_on_disk", None)
    model, calls = Model(), []
    model.inner[0].a.register_forward_hook(lambda *_: calls.append(1))
    with recomputed_blocks(model.blocks(), tmp_path), torch.no_grad():
        model(torch.ones(7, 5))
    assert calls == [1]


class Casts(TorchDispatchMode):
    """Counts how often a tensor of a shape is made another type."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].shape == self.shape:
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("grad", [True, False])
def test_a_weight_that_autocast_has_cast_is_not_kept_behind_its_block(tmp_path, grad):
    model = Model()
    weight = model.inner[0].a.weight
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16), Casts(weight.shape) as casts:
        with recomputed_blocks(model.blocks()[:1], tmp_path):
            model.inner[0](torch.ones(7, 12), scale=model.scale)
        torch.nn.functional.linear(torch.ones(7, 12), weight)
    assert casts.count == 2


class Writing(nn.Module):
    """Writes in place into what it is given."""

    def __init__(self, *, into_scale):
        super().__init__()
        self.inner, self.into_scale = Inner(), into_scale

    def forward(self, x, *, scale):
        (scale if self.into_scale else x).add_(1.0)
        return self.inner(x, scale=scale)


def writing(*, into_scale):
    model = Model()
    model.inner[1] = Writing(into_scale=into_scale)
    return model


def test_a_block_may_write_into_its_own_input(tmp_path):
    model = writing(into_scale=False)
    own = gradients(model, nullcontext())
    again = gradients(model, recomputed_blocks(model.blocks(), tmp_path))
    assert all(map(torch.equal, again, own))


def test_one_that_writes_into_what_all_are_given_is_refused(tmp_path):
    model = writing(into_scale=True)
    with pytest.raises(ModelError, match=r"inner\.1 writes into what it is given.*Leave out model\.offload: disk"):
        gradients(model, recomputed_blocks(model.blocks(), tmp_path))
