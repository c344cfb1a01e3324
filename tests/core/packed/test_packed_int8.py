"""Models whose weights are int8: rounded as they are read or in memory, by rows; and what of them stays dense."""

import copy
import inspect

import numpy as np
import pytest
import torch
from exported import bits, half_pruned, outputs
from table import ALL_ROWS, ROWS
from torch import nn

import ecoflap
from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.errors import FormatError, KernelError, ModelError
from ecoflap.core.kernel.packed_module import PackedLinear
from ecoflap.core.packed import forms, read_packed
from ecoflap.exporters.safetensors import Safetensors

SMALL = Safetensors(shard_bytes=30_000)
WHOLE = [name for name in ("llama", "clip", "t5", "vit", "opt") if name in ROWS and ROWS[name].is_whole_on_disk]
kinds = pytest.mark.parametrize("values", ["int8", "int8a8"])
needs_llama = pytest.mark.skipif("llama" not in ALL_ROWS, reason="these families are not of this environment")


def modules(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def rounded(weight):
    """What a matrix is after rounding each row to 127 scales, and the step that a weight may be off, in float64.

    A weight half way between two steps may go to either, for float32 divides less exactly than float64.
    """
    rows = weight.detach().double().numpy()
    scales = np.abs(rows).max(axis=1, keepdims=True) / 127
    steps = rows / np.where(scales > 0, scales, 1)
    half_way = np.abs(np.abs(steps - np.rint(steps)) - 0.5) < 127 * np.finfo(np.float32).eps
    return torch.from_numpy(np.rint(steps) * scales), torch.from_numpy(half_way * scales)


def assert_rounded(model, before, dtype=torch.float32):
    """Each packed weight is its rounded one; all else is bit by bit what it was."""
    names = {f"{name}.weight" for name in modules(model)}
    assert names
    for name, tensor in model.state_dict().items():
        if name not in names:
            assert torch.equal(tensor, before[name].to(tensor.dtype))
            continue
        expected, step = rounded(before[name])
        assert tensor.dtype == dtype
        assert bool(((tensor == 0) | (before[name] != 0)).all())
        largest = expected.abs().max()
        allowed = max(1e-6, torch.finfo(dtype).eps) * largest + step
        assert bool(((tensor.double() - expected).abs() <= allowed).all())


@pytest.mark.parametrize("name", WHOLE)
@kinds
def test_it_is_the_model_that_was_exported_rounded(name, values, tmp_path):
    pruned = half_pruned(name)
    SMALL(pruned, tmp_path)
    again = ecoflap.load_model(tmp_path, weights=f"packed-{values}")
    packing = again.ecoflap_packing
    assert packing.values == values
    assert {module.values for module in modules(again).values()} == {values}
    assert_rounded(again, pruned.model.state_dict())
    rounded_too = copy.deepcopy(pruned.model)
    rounded_too.load_state_dict(again.state_dict())
    most = {"int8": 2e-3, "int8a8": 0.15}[values]
    for ours, theirs in zip(
        outputs(name, again, pruned.adapter), outputs(name, rounded_too, pruned.adapter), strict=True
    ):
        assert (ours - theirs).abs().max() <= most * theirs.abs().max()


@needs_llama
def test_a_model_in_memory_is_the_same(tmp_path):
    pruned = half_pruned("llama")
    SMALL(pruned, tmp_path)
    read = ecoflap.load_model(tmp_path, weights="packed-int8")
    ecoflap.pack_model(pruned.model, values="int8")
    assert set(modules(read)) == set(modules(pruned.model))
    assert bits(read) == bits(pruned.model)


@needs_llama
def test_what_is_not_pruned_is_int8_too(tmp_path):
    """Its bytes are a byte and a bit for each weight, and no multiplication reads the bits."""
    pruned = half_pruned("llama")
    head, masks = pruned.model.lm_head, dict(pruned.masks)
    head.weight.data.normal_()
    pruned = PrunedModel(
        pruned.model, pruned.adapter, {name: mask for name, mask in masks.items() if name != "lm_head.weight"}
    )
    assert len(pruned.masks) == len(masks) - 1
    SMALL(pruned, tmp_path)
    again = ecoflap.load_model(tmp_path, weights="packed-int8")
    assert again.lm_head.kept == head.weight.numel()
    assert_rounded(again, pruned.model.state_dict())
    assert "lm_head.weight" in ecoflap.pack_model(pruned.model, values="int8").packed


@needs_llama
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_another_type(dtype, tmp_path):
    pruned = half_pruned("llama")
    SMALL(pruned, tmp_path)
    again = ecoflap.load_model(tmp_path, dtype=dtype, weights="packed-int8")
    assert {module.dtype for module in modules(again).values()} == {dtype}
    assert_rounded(again, {name: value.to(dtype) for name, value in pruned.model.state_dict().items()}, dtype)
    ids = torch.tensor([[1, 5, 7, 9]])
    with torch.inference_mode():
        assert again(input_ids=ids).logits.dtype == dtype


@needs_llama
def test_no_matrix_is_made_dense_and_all_are_in_one_piece_of_memory(tmp_path, monkeypatch):
    Safetensors()(half_pruned("llama"), tmp_path)
    monkeypatch.setattr(read_packed, "_read_packed", None)
    packed = [module.packed for module in modules(ecoflap.load_model(tmp_path, weights="packed-int8")).values()]
    assert len({one.untyped_storage().data_ptr() for one in packed}) == 1
    assert packed[0].untyped_storage().nbytes() == sum(one.numel() for one in packed)


@needs_llama
@kinds
def test_without_a_library_too(values, tmp_path, monkeypatch):
    pruned = half_pruned("llama")
    SMALL(pruned, tmp_path)
    expected = bits(ecoflap.load_model(tmp_path, weights=f"packed-{values}"))
    monkeypatch.setattr("ecoflap.core.kernel.matrix.opened", lambda: "there is none")
    assert bits(ecoflap.load_model(tmp_path, weights=f"packed-{values}")) == expected


def small(dtype=torch.float32):
    sizes = {"pruned": (40, 60), "dense": (40, 60), "tiny": (3, 4)}
    model = nn.ModuleDict({name: nn.Linear(inputs, outputs) for name, (outputs, inputs) in sizes.items()})
    model["conv"] = nn.Conv1d(8, 8, 3)
    model["float64"] = nn.Linear(40, 20)
    model["pruned"].weight.data.mul_(torch.rand(40, 60) >= 0.5)
    model.to(dtype)["float64"].double()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_takes_no_fewer_bytes_stays_dense(dtype):
    model = small(dtype)
    before = sum(model[name].weight.nbytes for name in ("pruned", "dense"))
    packing = ecoflap.pack_model(model, values="int8")
    assert packing.packed == ["pruned.weight", "dense.weight"]
    assert packing.dense == {
        "tiny.weight": "int8 with masks and scales would take no fewer bytes",
        "float64.weight": "float64 is not multiplied packed",
    }
    assert (packing.bytes_dense, packing.bytes_packed) == (
        before,
        sum(m.packed.numel() for m in modules(model).values()),
    )
    assert packing.bytes_packed < packing.bytes_dense
    assert str(packing).startswith("2 matrices run packed in int8, 0.")


def test_the_way_x_is_rounded_is_told():
    model = small()
    assert str(ecoflap.pack_model(model, values="int8a8")).startswith(
        "2 matrices run packed in int8 with x in int8, 0."
    )
    assert repr(model["pruned"]).endswith(", float32, int8a8)")


def test_a_weight_that_is_not_finite_stays_dense_in_memory():
    model = small()
    model["dense"].weight.data[3, 4] = torch.nan
    assert ecoflap.pack_model(model, values="int8").dense["dense.weight"] == "a weight of it is not finite"


@needs_llama
def test_a_weight_that_is_not_finite_is_refused_in_a_file(tmp_path):
    pruned = half_pruned("llama")
    name = next(name for name in pruned.parameter_masks if name.endswith("q_proj.weight"))
    weight = pruned.model.get_parameter(name).data
    weight[tuple(weight.nonzero()[0])] = torch.inf
    SMALL(pruned, tmp_path)
    with pytest.raises(ModelError, match=rf"{name} holds a weight that is not finite.*Say weights='packed'"):
        ecoflap.load_model(tmp_path, weights="packed-int8")


@needs_llama
def test_what_cannot_be_is_refused(tmp_path, monkeypatch):
    SMALL(half_pruned("llama"), tmp_path)
    with pytest.raises(ModelError, match="are multiplied on the CPU, and not on cuda"):
        ecoflap.load_model(tmp_path, weights="packed-int8", device="cuda")
    with pytest.raises(ModelError, match=r"device is 'gpu'; torch knows cpu, cuda and the like: "):
        ecoflap.load_model(tmp_path, device="gpu")
    with pytest.raises(ModelError, match=r"dtype is torch\.int8; it is a floating-point type of torch"):
        ecoflap.load_model(tmp_path, dtype=torch.int8)
    model = small()
    ecoflap.pack_model(model, values="int8")
    with pytest.raises(ModelError, match="the weights of pruned, dense are packed already"):
        ecoflap.pack_model(model, values="int8")

    def refuse(*_):
        raise KernelError("the mask keeps fewer weights than there are values")

    monkeypatch.setattr(forms, "pack_rows", refuse)
    with pytest.raises(FormatError, match=r"the packed weight \S+ is damaged: the mask keeps fewer"):
        ecoflap.load_model(tmp_path, weights="packed-int8")


def test_a_way_that_is_not_known_is_refused():
    unchecked = inspect.unwrap(ecoflap.pack_model)  # as it is outside of tests, where nobody checks types
    with pytest.raises(ModelError, match=r"no way to hold values named 'int9'\. Did you mean 'int8'\?"):
        unchecked(small(), values="int9")


@pytest.fixture
def llama():
    if "llama" not in ALL_ROWS:
        pytest.skip("these families are not of this environment")
    model = half_pruned("llama").model.eval()
    ecoflap.pack_model(model, values="int8")
    return model


def test_it_generates_and_is_saved_dense(llama, tmp_path):
    ids = torch.tensor([[1, 5, 7, 9]])
    assert llama.generate(ids, min_new_tokens=4, max_new_tokens=4, do_sample=False, pad_token_id=0).shape == (1, 8)
    llama.save_pretrained(tmp_path)
    again = type(llama).from_pretrained(tmp_path)
    assert bits(again) == bits(llama)
    with torch.inference_mode():
        assert torch.allclose(again(input_ids=ids).logits, llama(input_ids=ids).logits, atol=1e-3)


def test_to_another_type_and_back_loses_nothing(llama):
    before = bits(llama)
    packed = [module.packed for module in modules(llama).values()]
    llama.to(torch.bfloat16)
    assert {module.dtype for module in modules(llama).values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in llama.state_dict().values()} == {torch.bfloat16}
    llama.to(torch.float32)
    assert all(torch.equal(one, module.packed) for one, module in zip(packed, modules(llama).values(), strict=True))
    assert {name for name in before if before[name] != bits(llama)[name]}.isdisjoint(
        f"{name}.weight" for name in modules(llama)
    )


def test_it_takes_other_weights_by_load_state_dict(llama):
    other = half_pruned("llama").model
    for module in modules(llama):
        other.get_submodule(module).weight.data.mul_(2)
    llama.load_state_dict(other.state_dict())
    assert_rounded(llama, other.state_dict())
    assert {module.values for module in modules(llama).values()} == {"int8"}


def test_it_is_not_trained(llama):
    loss = llama(input_ids=torch.tensor([[1, 5, 7]]), labels=torch.tensor([[1, 5, 7]])).loss
    with pytest.raises(KernelError, match="can be run and not trained"):
        loss.backward()


@pytest.mark.filterwarnings("ignore:No complete tensor found:UserWarning")  # torch's word for pieces of one memory
def test_it_is_exported_and_read_again(llama, tmp_path):
    ids = torch.tensor([[1, 5, 7, 9]])
    program = torch.export.export(llama, (), {"input_ids": ids, "use_cache": False}, strict=False)
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    with torch.inference_mode():
        expected = llama(input_ids=ids, use_cache=False).logits
        assert torch.allclose(again(input_ids=ids, use_cache=False).logits, expected, atol=1e-5)
