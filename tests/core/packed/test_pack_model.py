"""A model in memory runs from packed weights: every family's outputs, what stays dense, and what is refused."""

import copy
import os
import signal
import sys
from inspect import unwrap

import pytest
import torch
from exported import bits, half_pruned, outputs, packed_names
from table import ALL_ROWS, THOROUGH, marked
from torch import nn
from torch.nn.utils import prune

import ecoflap
from ecoflap.core.errors import KernelError, ModelError
from ecoflap.core.kernel import matrix, route
from ecoflap.core.kernel.packed_module import PackedLinear

pytestmark = pytest.mark.filterwarnings("ignore:no matrix of this model runs packed")  # each is asked why

needs_llama = pytest.mark.skipif("llama" not in ALL_ROWS, reason="these families are not of this environment")


@pytest.mark.parametrize("name", marked(THOROUGH))
def test_a_family_gives_the_same(name):
    pruned = half_pruned(name)
    model, adapter = pruned.model, pruned.adapter
    state, expected = bits(model), outputs(name, model, adapter)
    packing = ecoflap.pack_model(model)
    assert packing is model.ecoflap_packing
    assert packing.packed
    assert not set(packing.dense) & set(pruned.parameter_masks)
    assert set(packing.packed) <= packed_names(model)
    assert bits(model) == state
    for ours, theirs in zip(outputs(name, model, adapter), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)


@needs_llama
def test_what_is_packed_is_counted():
    model = half_pruned("llama").model
    before = sum(p.numel() * p.itemsize for p in model.parameters())
    packing = ecoflap.pack_model(model)
    after = sum(p.numel() * p.itemsize for p in model.parameters())
    assert before - after == packing.bytes_dense
    assert packing.bytes_packed == sum(m.packed.numel() for m in model.modules() if isinstance(m, PackedLinear))
    assert str(packing).startswith(f"{len(packing.packed)} matrices run packed, 0.")


@pytest.fixture
def no_library(monkeypatch, take_path):
    """As where ecoflap was installed without a compiler."""
    take_path()
    for module in (route, matrix):
        monkeypatch.setattr(module, "opened", lambda: "there is no library here")


def test_where_there_is_no_library_a_warning_and_the_packing_say_that_it_is_not_fast(no_library):
    with pytest.warns(UserWarning, match=r"not multiplied fast here: there is no library.*Until then.*not fast\.$"):
        packing = ecoflap.pack_model(small())
    assert packing.packed
    assert "computed by torch, where zeros save memory, but no time." in str(packing)


def test_the_path_is_told(take_path):
    take_path("torch")
    assert ecoflap.pack_model(small()).products == route.route().told
    assert "computed by" not in str(ecoflap.pack_model(nn.Sequential(nn.Linear(8, 8))))


def test_a_path_that_cannot_be_taken_is_refused_before_anything_is_packed(take_path):
    take_path("nonsense")
    model = small()
    with pytest.raises(KernelError, match="ECOFLAP_KERNEL=nonsense"):
        ecoflap.pack_model(model)
    assert type(model["fifty"]) is nn.Linear


def small():
    model = nn.ModuleDict({name: nn.Linear(40, 20) for name in ("fifty", "third", "dense")})
    model["conv"] = nn.Conv1d(8, 8, 3)
    model["float64"] = nn.Linear(40, 20).double()
    with torch.no_grad():
        for name, share in (("fifty", 0.5), ("third", 0.3), ("float64", 0.5)):
            model[name].weight.mul_(torch.rand(20, 40) >= share)
        model["conv"].weight.mul_(torch.rand(8, 8, 3) >= 0.5)
        model.register_parameter("position", nn.Parameter(torch.zeros(1, 8, 8)))
    return model


def test_what_stays_dense_is_named_with_the_reason():
    model = small()
    packing = ecoflap.pack_model(model)
    assert packing.packed == ["fifty.weight"]
    assert packing.dense == {
        "conv.weight": "Conv1d is not known to multiply with 'weight' as a matrix",
        "float64.weight": "float64 is not multiplied packed",
        "third.weight": "less than 35 % of it is zero",
    }
    assert type(model["third"]) is nn.Linear
    assert "dense, because float64 is not multiplied packed: float64.weight" in str(packing)


@pytest.mark.parametrize("values", ["exact", "int8"])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_matrix_of_nothing_stays_as_it_is(values):
    model = nn.Sequential(nn.Linear(0, 8), *sparse(0.5))
    assert ecoflap.pack_model(model, values=values).packed[0] == "1.weight"
    assert type(model[0]) is nn.Linear


@pytest.mark.filterwarnings("ignore:.*jit.script")  # torch 2.15 calls it a FutureWarning
def test_what_torch_has_compiled_is_refused():
    with pytest.raises(ModelError, match=r"compiled by torch\.jit, and its layers cannot be replaced"):
        ecoflap.pack_model(torch.jit.script(sparse(0.5)))
    with pytest.raises(ModelError, match="a model in memory is wanted, and no str; load_model reads a folder"):
        unwrap(ecoflap.pack_model)("a folder")  # as it is where no test checks types


def sparse(share):
    layer = nn.Linear(40, 25)
    layer.weight.data.fill_(1.0).view(-1)[: round(share * 1000)] = 0
    return nn.Sequential(layer, nn.Linear(25, 10))


def test_too_few_zeros_are_told():
    assert str(ecoflap.pack_model(sparse(0.05))) == (
        "0 matrices run packed.\nA matrix does from 35 % zeros on; the most that one has is 5.0 %."
    )
    packing = ecoflap.pack_model(sparse(0.34))
    assert packing.dense == {"0.weight": "less than 35 % of it is zero"}
    assert "the most that one has is 34.0 %" in str(packing)
    assert "zeros on" not in str(ecoflap.pack_model(sparse(0.35)))


@pytest.mark.filterwarnings("error:no matrix of this model runs packed")
def test_a_model_of_which_nothing_runs_packed_is_warned_of_with_the_reason():
    with pytest.warns(UserWarning, match=r"runs packed, all stay dense\. A matrix does from 35 % .* is 34\.0 %\.\n?"):
        ecoflap.pack_model(sparse(0.34))
    with pytest.warns(UserWarning, match="dense, because float64 is not multiplied packed: 0.weight"):
        ecoflap.pack_model(sparse(0.5).double())
    with pytest.warns(UserWarning, match="It has none that could"):
        ecoflap.pack_model(nn.ReLU())
    ecoflap.pack_model(sparse(0.5))


def test_a_layer_that_lies_in_two_places_stays_one():
    layer = sparse(0.5)[0]
    model = nn.ModuleDict({"a": layer, "b": layer, "c": nn.Sequential(layer)})
    weight = layer.weight.detach().clone()
    assert ecoflap.pack_model(model).packed == ["a.weight"]
    assert isinstance(model["a"], PackedLinear)
    assert model["a"] is model["b"] is model["c"][0]
    model.to(torch.bfloat16)
    assert len({module.packed.data_ptr() for module in (model["a"], model["b"], model["c"][0])}) == 1
    assert torch.equal(model["b"].weight, weight.bfloat16())


def test_a_packed_parameter_is_given_by_its_name_as_a_dense_one_is():
    """By it transformers asks for shapes while it writes a checkpoint of a Qwen3-VL-MoE."""
    model = sparse(0.5)
    weight = model[0].weight.detach().clone()
    ecoflap.pack_model(model)
    given = model.get_parameter("0.weight")
    assert isinstance(given, nn.Parameter)
    assert given.shape == weight.shape
    assert torch.equal(given, weight)
    assert "0.weight" not in dict(model.named_parameters())  # which an optimizer would train


def test_a_mask_of_torch_that_is_held_apart_is_told():
    model = sparse(0)
    prune.l1_unstructured(model[0], "weight", 0.6)
    reason = ecoflap.pack_model(model).dense["0.weight_orig"]
    assert "torch.nn.utils.prune.remove(module, 'weight')" in reason
    prune.remove(model[0], "weight")
    assert ecoflap.pack_model(model).packed == ["0.weight"]


def test_what_has_few_zeros_by_its_nature_is_not_told():
    """A mask of ones makes none, a row that pads an embedding is no pruning, and 34.99 % are not 35."""
    model = sparse(0)
    prune.identity(model[0], "weight")
    assert ecoflap.pack_model(model).dense == {}
    packing = ecoflap.pack_model(nn.Sequential(nn.Embedding(8, 32, padding_idx=0), nn.Linear(32, 8)))
    assert (packing.dense, packing.most_zeros) == ({}, 0)
    layer = nn.Linear(100, 100)
    layer.weight.data.fill_(1.0).view(-1)[:3499] = 0
    assert "the most that one has is 34.9 %" in str(ecoflap.pack_model(nn.Sequential(layer)))


@pytest.mark.parametrize("values", ["exact", "int8"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_eight_bit_floats_stay_as_they_are(values, dtype):
    model = small()
    model["dense"].weight = nn.Parameter(model["dense"].weight.detach().to(dtype), requires_grad=False)
    packing = ecoflap.pack_model(model, values)
    assert packing.dense["dense.weight"] == f"{str(dtype).removeprefix('torch.')} is not multiplied packed"
    assert model["dense"].weight.dtype is dtype


def test_a_weight_of_two_modules_is_packed_once():
    model = nn.ModuleDict({"a": nn.Linear(40, 20), "b": nn.Linear(40, 20), "c": nn.Linear(40, 20)})
    model["a"].weight.data.mul_(torch.rand(20, 40) >= 0.5)
    model["b"].weight = model["a"].weight
    assert ecoflap.pack_model(model).packed == ["a.weight"]
    assert model["a"].packed is model["b"].packed
    assert not torch.equal(model["a"].bias, model["b"].bias)


def test_a_head_that_is_the_embedding_too_stays_dense():
    model = nn.ModuleDict({"embedding": nn.Embedding(20, 40), "head": nn.Linear(40, 20)})
    model["embedding"].weight.data.mul_(torch.rand(20, 40) >= 0.5)
    model["head"].weight = model["embedding"].weight
    packing = ecoflap.pack_model(model)
    assert not packing.packed
    assert packing.dense == {"embedding.weight": "it is an embedding, and none was said to run packed"}


def test_hooks_are_not_lost():
    model = small()
    model["fifty"].register_forward_hook(lambda *_: None)
    assert ecoflap.pack_model(model).dense["fifty.weight"] == "its module has hooks, which would be lost"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda one: setattr(one, "forward", lambda x: x), "its module's forward was replaced, which would be lost"),
        (lambda one: one.register_buffer("scale", torch.ones(1)), "its module holds more than a weight and a bias"),
        (lambda one: one.register_module("norm", nn.LayerNorm(20)), "its module holds more than a weight and a bias"),
        (
            lambda one: one.register_parameter("gain", nn.Parameter(torch.ones(1))),
            "its module holds more than a weight and a bias",
        ),
    ],
)
def test_what_else_a_module_is_and_has_is_not_lost(change, reason):
    model = small()
    change(model["fifty"])
    assert ecoflap.pack_model(model).dense["fifty.weight"].startswith(reason)
    assert type(model["fifty"]) is nn.Linear


def test_a_module_that_lies_in_two_places_is_packed_once():
    first = nn.Linear(40, 40)
    first.weight.data.mul_(torch.rand(40, 40) >= 0.5)
    inner = nn.Sequential(first)
    model = nn.Sequential(first, inner, inner)
    x = torch.rand(3, 40)
    expected = copy.deepcopy(model)(x)
    assert ecoflap.pack_model(model).packed == ["0.weight"]
    torch.testing.assert_close(model(x), expected)
    assert all(isinstance(one, PackedLinear) for one in (model[0], inner[0]))


def test_a_layer_by_itself_is_no_model():
    layer = nn.Linear(40, 20)
    layer.weight.data.mul_(torch.rand(20, 40) >= 0.5)
    packing = ecoflap.pack_model(layer)
    assert not packing.packed
    assert packing.dense["weight"].startswith("it is the model's own, and another module is put")
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_a_model_is_packed_once_and_on_the_cpu():
    model = small()
    ecoflap.pack_model(model)
    with pytest.raises(ModelError, match=r"the weights of fifty are packed already.*weights='dense'"):
        ecoflap.pack_model(model)
    for values in ("exact", "int8"):
        with pytest.raises(ModelError, match=r"is on meta, and packed weights are multiplied on the CPU.*model\.to"):
            ecoflap.pack_model(small().to("meta"), values)


@pytest.fixture
def llama():
    if "llama" not in ALL_ROWS:
        pytest.skip("these families are not of this environment")
    model = half_pruned("llama").model.eval()
    dense = copy.deepcopy(model)
    ecoflap.pack_model(model)
    return model, dense


def test_it_generates(llama):
    model, dense = llama
    ids = torch.tensor([[1, 5, 7, 9]])
    asked = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **asked), dense.generate(ids, **asked))


def test_it_is_saved_dense(llama, tmp_path):
    model, dense = llama
    model.save_pretrained(tmp_path)
    again = type(dense).from_pretrained(tmp_path)
    assert bits(again) == bits(dense)


def test_it_is_cast_and_not_moved(llama):
    model, dense = llama
    assert bits(model.to(torch.bfloat16)) == bits(dense.to(torch.bfloat16))
    assert all(module.dtype == torch.bfloat16 for module in model.modules() if isinstance(module, PackedLinear))
    assert bits(model.type(torch.float32)) == bits(dense.type(torch.float32))
    with pytest.raises(KernelError, match=r"cannot be moved to meta.* was moved: the model has to be loaded again"):
        model.to("meta")


def test_what_was_cast_before_a_refusal_is_brought_back_as_it_says(llama):
    """torch goes module by module, and the embedding comes before the first packed layer."""
    model, _ = llama
    ids, state = torch.tensor([[1, 5, 7, 9]]), bits(model)
    expected = model(ids).logits
    with pytest.raises(KernelError, match=r"not torch.float64.* was cast: \.to\(torch\.float32\) brings it back\."):
        model.double()
    assert next(model.parameters()).dtype == torch.float64
    model.to(torch.float32)
    assert bits(model) == state
    assert torch.equal(model(ids).logits, expected)


def test_of_a_narrow_model_that_was_cast_before_a_refusal_nothing_brings_back_what_was_wider(llama):
    """Rotary frequencies are in float32 there, and to cast the model back would cast them, too."""
    model, _ = llama
    frequencies = model.model.rotary_emb.inv_freq.clone()
    model.to(torch.bfloat16)
    model.model.rotary_emb.inv_freq = frequencies
    with pytest.raises(KernelError, match=r"not torch.float64.* was cast: load the model again\."):
        model.double()


def test_layers_are_told_apart_by_their_memory(llama):
    model, _ = llama
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert len({layer.weight.data_ptr() for layer in layers}) == len(layers)
    assert layers[0].weight.data_ptr() == layers[0].weight.data_ptr()


def test_a_packed_model_is_not_pruned(llama, plain, tmp_path):
    with pytest.raises(ModelError, match=r"are packed already: they can be run and saved, and not pruned"):
        ecoflap.run(plain(model=None), model=llama[0], folder=tmp_path / "run")


def test_a_copy_of_it_is_one_of_its_own(llama):
    model, _ = llama
    again = copy.deepcopy(model)
    memory = {m.packed.untyped_storage().data_ptr() for m in again.modules() if isinstance(m, PackedLinear)}
    assert len(memory) == 1
    assert bits(again) == bits(model)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child of fork may not multiply at all")
def test_a_child_of_fork_runs_it_on_one_thread(llama):
    """As docs/kernel.md says: with more threads torch's own attention waits in a child for those of its parent."""
    model, _ = llama
    ids, before = torch.arange(128).reshape(8, 16) % 60, torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            expected = model(input_ids=ids).logits
            child = os.fork()
            if child == 0:
                signal.alarm(60)  # ends a child that waits
                torch.set_num_threads(1)
                os._exit(0 if torch.allclose(model(input_ids=ids).logits, expected, atol=1e-5) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)


def test_it_is_not_trained(llama):
    model, _ = llama
    loss = model(input_ids=torch.tensor([[1, 5, 7]]), labels=torch.tensor([[1, 5, 7]])).loss
    with pytest.raises(KernelError, match="can be run and not trained"):
        loss.backward()


def test_it_is_exported(llama):
    model, dense = llama
    ids = torch.tensor([[1, 5, 7, 9]])
    program = torch.export.export(model, (), {"input_ids": ids, "use_cache": False}, strict=False)
    assert torch.allclose(
        program.module()(input_ids=ids, use_cache=False).logits, dense(input_ids=ids).logits, atol=1e-4
    )
