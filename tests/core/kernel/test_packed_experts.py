"""Experts of one parameter: each is multiplied packed, however a model asks for it, and none is decoded with others."""

import pytest
import torch
from torch.nn import functional

from ecoflap.core.errors import KernelError
from ecoflap.core.kernel import packed_weight, stand_in
from ecoflap.core.kernel.library import TYPES
from ecoflap.core.kernel.matrix import pack_dense
from ecoflap.core.kernel.packed_parameters import Held
from ecoflap.core.kernel.packed_weight import PackedWeight
from kernels import assert_right, numbers, pruned

EXPERTS, OUTPUTS, INPUTS = 5, 20, 30


def dense(dtype=torch.float32):
    return torch.stack([pruned(OUTPUTS, INPUTS, 0.2 + 0.1 * e, dtype, seed=e) for e in range(EXPERTS)])


def packed(weights, transposed=False):
    """What stands for experts ``[out, in]`` or, if transposed, for the same ones held ``[in, out]``."""
    matrices = [pack_dense(one) for one in weights]
    ends = torch.tensor([len(one) for one in matrices]).cumsum(0).tolist()
    shape = weights.mT.shape if transposed else weights.shape
    memory = torch.cat(matrices)
    return Held.of(memory, ends, shape, transposed).stand_in(memory)


@pytest.fixture
def never_decoded(monkeypatch):
    """Anything that decodes experts, or one of them, as a whole would fail."""
    monkeypatch.setattr(stand_in, "_with_decoded", None)
    monkeypatch.setattr(packed_weight, "unpack", None)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_one_expert_is_multiplied_packed(dtype, transposed, never_decoded):
    weights, x = dense(dtype), numbers(3, INPUTS, dtype=dtype)
    experts = packed(weights, transposed)
    for expert in (3, -2, torch.tensor(3)):
        one = experts[expert]
        assert isinstance(one, PackedWeight)
        assert_right(x @ one if transposed else functional.linear(x, one), x, weights[3])


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_that_are_picked_for_each_token(transposed, never_decoded):
    """As transformers' ``batched_mm`` does, where several tokens may pick the same."""
    weights, x, picked = dense(), numbers(6, INPUTS, dtype=torch.float32), torch.tensor([3, 0, 3, 4, 0, 3])
    experts = packed(weights, transposed)
    for chosen in (experts[picked], torch.index_select(experts, 0, picked)):
        if transposed:
            y = torch.bmm(x.unsqueeze(1), chosen).squeeze(1)
        else:
            y = torch.bmm(chosen, x.unsqueeze(-1)).squeeze(-1)
        assert y.shape == (6, OUTPUTS)
        for row, given, expert in zip(y, x, picked, strict=True):
            assert_right(row[None], given[None], weights[expert])


@pytest.mark.parametrize("transposed", [False, True])
def test_all_experts_with_rows_of_their_own(transposed, never_decoded):
    weights, x = dense(), numbers(EXPERTS, 4, INPUTS, dtype=torch.float32)
    experts = packed(weights, transposed)
    turned = experts if transposed else experts.mT
    for y in (torch.bmm(x, turned), x @ turned, x.bmm(turned.transpose(1, 2).transpose(-2, -1)), turned.mT @ x.mT):
        products = y if y.shape[1] == 4 else y.mT
        for product, rows, weight in zip(products, x, weights, strict=True):
            assert_right(product, rows, weight)


@pytest.mark.parametrize("name", ["_grouped_mm", "grouped_mm", "fallback"])
def test_groups_of_rows(name, never_decoded):
    """As transformers' ``grouped_mm`` does, with rows behind the last group that are no expert's."""
    if name == "fallback":
        pytest.importorskip("transformers.integrations.moe")
        function = getattr(torch.ops.transformers, "grouped_mm_fallback", None)
    else:
        function = getattr(torch, name, None) or getattr(functional, name, None)
    if function is None:
        pytest.skip(f"there is no {name} here")
    weights, x = dense(), numbers(9, INPUTS, dtype=torch.float32)
    ends = torch.tensor([2, 2, 3, 7, 7], dtype=torch.int32)
    y = function(x, packed(weights).transpose(-2, -1), offs=ends)
    first = 0
    for last, weight in zip(ends.tolist(), weights, strict=True):
        assert_right(y[first:last], x[first:last], weight)
        first = last
    assert y.shape == (9, OUTPUTS)
    assert not y[7:].any()


def test_some_of_them_and_one_after_the_other(never_decoded):
    weights, x = dense(), numbers(2, INPUTS, dtype=torch.float32)
    experts = packed(weights)
    assert len(experts) == EXPERTS
    assert experts.shape == experts[:].shape == (EXPERTS, OUTPUTS, INPUTS)
    for one, weight in zip(experts, weights, strict=True):
        assert_right(functional.linear(x, one), x, weight)
    for one, weight in zip(experts[1:4].unbind(0), weights[1:4], strict=True):
        assert_right(functional.linear(x, one), x, weight)
    assert torch.bmm(experts[2:2], x.new_empty(0, INPUTS, 1)).shape == (0, OUTPUTS, 1)
    assert experts.mT.shape == (EXPERTS, INPUTS, OUTPUTS)
    assert experts.data_ptr() % 8 == 0


@pytest.mark.parametrize("transposed", [False, True])
def test_what_else_is_asked_is_answered_decoded(transposed):
    weights = dense()
    experts, expected = packed(weights, transposed), weights.mT if transposed else weights
    assert torch.equal(experts.clone(), expected)
    assert torch.allclose(experts.sum(0), expected.sum(0), atol=1e-5)
    assert torch.equal(experts[1, 2], expected[1, 2])
    assert torch.equal(experts.transpose(0, 1), expected.transpose(0, 1))
    assert torch.equal(experts[torch.tensor([True, False, False, True, False])], expected[[0, 3]])
    x = numbers(2, expected.shape[1], dtype=torch.float32)
    assert torch.allclose(x @ experts, x @ expected, atol=1e-5)
    with pytest.raises(KernelError, match="cannot be written to"):
        experts.zero_()
