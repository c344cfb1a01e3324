"""Whole models run packed whose weights are no plain matrices: transposed ones, q, k and v in one, and experts.

What they give is held against the dense model, and in int8 against the dense model with its rows rounded by hand.
"""

import copy
from functools import cache

import pytest
import torch
from exported import bits, half_pruned, outputs, packed_names
from hypothesis import given
from hypothesis import strategies as st
from table import ALL_ROWS
from torch import nn
from transformers_version import is_before

import ecoflap
from ecoflap.core.bits import pack_mask
from ecoflap.core.errors import KernelError
from ecoflap.core.kernel import stand_in
from ecoflap.core.kernel.library import TYPES
from ecoflap.core.kernel.matrix import unpack
from ecoflap.core.kernel.order import Shape
from ecoflap.core.kernel.packed_experts import PackedExperts
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.core.packed.forms import Form, form_of, pack_into, pack_stored_into
from ecoflap.core.packed.read_packed import StoredPacked
from ecoflap.exporters.safetensors import Safetensors

pytestmark = pytest.mark.filterwarnings("ignore:no matrix of this model runs packed")  # each is asked why

EXPERTS = [name for name in ("mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss") if name in ALL_ROWS]
OTHERS = ("gpt2", "falcon", "llama4_text", "open_clip", "open_clip_custom")
KINDS = [*EXPERTS, *(name for name in OTHERS if name in ALL_ROWS)]
HELD = {
    "gpt2": ".attn.c_attn.weight", "falcon": ".mlp.dense_h_to_4h.weight", "open_clip": ".attn.in_proj_weight",
    "open_clip_custom": ".attn.in_proj_weight", "mixtral": ".w2." if is_before("5") else ".down_proj",
}  # fmt: skip


@cache
def _made(name):
    return half_pruned(name)


def made(name):
    """The same model for each test, for it takes longer to take one apart than to run it."""
    return copy.deepcopy(_made(name))


@pytest.fixture
def never_decoded(monkeypatch):
    """Anything that decodes a stand-in as a whole would fail."""
    monkeypatch.setattr(stand_in, "_with_decoded", None)


def layers(pruned):
    towers = pruned.adapter.towers(pruned.model)
    return Anatomy.of(towers, pruned.adapter.layers, [tower.name for tower in towers if tower.outside]).layers()


def assert_near(ours, theirs, near):
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=near, rtol=near)


@pytest.mark.parametrize("name", KINDS)
def test_in_memory(name, monkeypatch):
    pruned = made(name)
    names = set(pruned.parameter_masks)
    model, expected, state = pruned.model, outputs(name, pruned.model, pruned.adapter), bits(pruned.model)
    packing = ecoflap.pack_model(model)
    assert names <= set(packing.packed)
    assert any(HELD.get(name, ".down_proj") in one for one in packing.packed)
    assert set(packing.packed) <= packed_names(model)
    assert packing.bytes_packed == sum(b.numel() for n, b in model.named_buffers() if "packed" in n.rpartition(".")[2])
    assert bits(model) == state
    monkeypatch.setattr(stand_in, "_with_decoded", None)  # what follows decodes no weight as a whole
    assert_near(outputs(name, model, pruned.adapter), expected, 1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_in_int8(name):
    pruned = made(name)
    rounded, names = made(name), set(pruned.parameter_masks)
    for _, layer in layers(rounded):
        rows = layer.weight.data
        scales = rows.double().abs().amax(1, keepdim=True) / 127
        rows.copy_((rows.double() / scales).round().nan_to_num() * scales)
    packing = ecoflap.pack_model(pruned.model, values="int8")
    assert set(packing.packed) | set(packing.dense) >= names
    state = rounded.model.state_dict()
    for weight, value in pruned.model.state_dict().items():
        if weight in names & set(packing.packed):
            assert torch.allclose(value, state[weight], atol=1e-6)
    assert_near(outputs(name, pruned.model, pruned.adapter), outputs(name, rounded.model, rounded.adapter), 2e-2)


@pytest.mark.parametrize("name", [name for name in KINDS if ALL_ROWS[name].is_whole_on_disk])
@pytest.mark.parametrize("weights", ["packed", "packed-int8"])
def test_from_a_file(name, weights, tmp_path):
    """What is read is what is packed of the same model in memory."""
    pruned = made(name)
    Safetensors(shard_bytes=60_000)(pruned, tmp_path)
    again = ecoflap.load_model(tmp_path, weights=weights)
    names = set(pruned.parameter_masks)
    ecoflap.pack_model(pruned.model, values="exact" if weights == "packed" else "int8")
    ours, theirs = again.ecoflap_packing, pruned.model.ecoflap_packing
    assert set(ours.packed) == set(theirs.packed)
    assert set(ours.packed) >= names - set(ours.dense)
    assert bits(again) == bits(pruned.model)
    assert_near(outputs(name, again, pruned.adapter), outputs(name, pruned.model, pruned.adapter), 1e-6)


@pytest.mark.skipif(is_before("5"), reason="this transformers has one way for experts")
@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("way", ["eager", "batched_mm", "grouped_mm"])
def test_each_way_that_transformers_has_for_experts(name, way, never_decoded):
    pruned = made(name)
    pruned.model.set_experts_implementation(way)
    expected = outputs(name, pruned.model, pruned.adapter)
    ecoflap.pack_model(pruned.model)
    assert pruned.model.config._experts_implementation == way
    assert_near(outputs(name, pruned.model, pruned.adapter), expected, 1e-5)


@pytest.mark.parametrize("name", EXPERTS)
def test_one_token_reads_its_own_experts_alone(name, monkeypatch):
    """Each layer's product is asked for as many experts as the router chose, and for no other."""
    model = made(name).model
    ecoflap.pack_model(model)
    read: list[int] = []
    original = PackedExperts.matrix
    monkeypatch.setattr(PackedExperts, "matrix", lambda self, *given: read.append(given[0]) or original(self, *given))
    with torch.no_grad():
        model(input_ids=torch.tensor([[5]]), use_cache=False)
    held = [module.held for module in model.modules() if "gate_up_proj" in getattr(module, "held", {})]
    assert len(read) == sum(len(one) for one in held) * model.config.num_experts_per_tok


@pytest.mark.parametrize("name", [name for name in ("gpt2", "mixtral", "gpt_oss") if name in ALL_ROWS])
def test_what_a_packed_model_does(name, tmp_path):
    model = made(name).model
    dense = copy.deepcopy(model)
    ecoflap.pack_model(model)
    ids = torch.tensor([[4, 5, 7, 9]])
    asked = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **asked), dense.generate(ids, **asked))
    model.save_pretrained(tmp_path)
    assert bits(type(dense).from_pretrained(tmp_path)) == bits(dense)
    assert bits(copy.deepcopy(model)) == bits(dense)
    with pytest.raises(KernelError, match="can be run and not trained"):
        model(input_ids=ids, labels=ids).loss.backward()
    assert bits(model.to(torch.bfloat16)) == bits(dense.to(torch.bfloat16))
    with torch.no_grad():
        assert_near([model(input_ids=ids).logits.float()], [dense(input_ids=ids).logits.float()], 5e-2)
    with pytest.raises(KernelError, match="cannot be moved to meta"):
        model.to("meta")


@pytest.mark.skipif("gpt2" not in ALL_ROWS, reason="GPT-2 is not of this environment")
def test_gpt2_is_exported():
    model = made("gpt2").model
    ids = torch.tensor([[4, 5, 7, 9]])
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
    ecoflap.pack_model(model)
    program = torch.export.export(model, (), {"input_ids": ids, "use_cache": False}, strict=False)
    assert torch.allclose(program.module()(input_ids=ids, use_cache=False).logits, expected, atol=1e-5)
    assert not any("c_attn.weight" in name for name in program.state_dict)


@pytest.mark.skipif("mixtral" not in ALL_ROWS, reason="Mixtral is not of this environment")
@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="this torch does not say that it exports")
def test_experts_are_not_exported():
    model = made("mixtral").model
    ecoflap.pack_model(model)
    with pytest.raises(KernelError, match=r"read from the data, and torch\.export cannot follow"):
        torch.export.export(model, (), {"input_ids": torch.tensor([[4, 5]]), "use_cache": False}, strict=False)


class Experts(nn.Module):
    """Experts as some version of transformers holds them."""

    def __init__(self, *shapes, **said):
        super().__init__()
        for name, shape in zip(("gate_up_proj", "down_proj"), shapes, strict=True):
            setattr(self, name, nn.Parameter(torch.rand(shape)))
        self.__dict__.update(said)


def test_how_experts_lie_is_told_by_their_sizes_where_nothing_says_it():
    plain, turned = Experts((4, 16, 8), (4, 8, 8)), Experts((4, 8, 16), (4, 8, 8))
    for name in ("gate_up_proj", "down_proj"):
        assert form_of(plain, name) == Form(4)
        assert form_of(turned, name) == Form(4, transposed=True)
        assert form_of(Experts((4, 16, 8), (4, 8, 8), is_transposed=True), name) == Form(4, transposed=True)


def test_what_is_not_known_has_no_form():
    class Grouped(nn.Linear):
        def forward(self, x):
            return x.reshape(-1, 2, 4) @ self.weight.view(2, -1, 4).mT

    several = nn.Module()
    several.weight = nn.Parameter(torch.rand(4, 8, 8))
    for module in (Grouped(8, 8), several, nn.Conv1d(8, 8, 3), nn.Conv2d(8, 8, 1)):
        assert form_of(module, "weight") is None
    with torch.no_grad():
        several.weight.mul_(torch.rand(4, 8, 8) >= 0.5)
    packing = ecoflap.pack_model(several)
    assert packing.dense == {"weight": "Module is not known to multiply with 'weight' as a matrix"}


@given(
    matrices=st.integers(1, 4), transposed=st.booleans(), rows=st.integers(1, 40), columns=st.integers(1, 40),
    sparsity=st.sampled_from([0.0, 0.4, 0.9, 1.0]), seed=st.integers(0, 99), dtype=st.sampled_from(list(TYPES)),
    values=st.sampled_from(["exact", "int8"]),
)  # fmt: skip
def test_what_is_stored_is_packed_as_what_is_dense(matrices, transposed, rows, columns, sparsity, seed, dtype, values):
    """A mask's bits end where a matrix does, and that is seldom at the end of a byte."""
    generator = torch.Generator().manual_seed(seed)
    shape = (matrices, rows, columns)
    mask = torch.rand(shape, generator=generator) >= sparsity
    weight = torch.randn(shape, generator=generator).to(dtype) * mask
    mask = weight != 0
    form = Form(matrices, transposed)
    outputs, inputs = form.sizes(shape)
    assert (inputs, outputs) == ((rows, columns) if transposed else (columns, rows))
    whole = Shape(dtype, matrices * outputs, inputs, int(mask.sum()), values)
    memory = torch.zeros(form.most_bytes(whole), dtype=torch.uint8)
    ends = pack_stored_into(memory, form, whole, StoredPacked(pack_mask(mask), weight[mask]))
    first = 0
    for last, matrix in zip(ends, weight, strict=True):
        decoded = unpack(memory[first:last])
        expected = matrix.T if transposed else matrix
        if values == "exact":
            assert torch.equal(decoded, expected)
        else:
            scales = expected.double().abs().amax(1, keepdim=True) / 127
            assert ((decoded.double() - expected.double()).abs() <= 0.502 * scales + 0.01 * expected.abs()).all()
        first = last
    if values == "exact":
        again = torch.zeros(len(memory), dtype=torch.uint8)
        assert pack_into(again, form, weight, values) == ends
        assert torch.equal(again[: ends[-1]], memory[: ends[-1]])


def test_a_mask_of_more_bits_than_weights_is_refused():
    bits_given = torch.tensor([0xFF, 0x01], dtype=torch.uint8)  # nine, of two matrices of four weights
    whole = Shape(torch.float32, 4, 2, 9, "exact")
    memory = torch.zeros(Form(2).most_bytes(whole), dtype=torch.uint8)
    with pytest.raises(KernelError, match="the mask keeps fewer weights than there are values"):
        pack_stored_into(memory, Form(2), whole, StoredPacked(bits_given, torch.ones(9)))
