"""A model in memory is the caller's: it is pruned in place, may be compiled, and a recipe names no other."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import ecoflap
from ecoflap.adapters.generic.causal_lm import CausalLMAdapter
from ecoflap.core.contracts.events import StageStarted
from ecoflap.core.errors import EcoflapError, ModelError, RunError
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.core.model.source import fingerprint, in_memory
from ecoflap.core.preparing.held_model import refuse_computed

SHORT = {"score": None, "allocate": "uniform", "evaluate": None, "export": None}


@pytest.fixture
def cut_off(heard_by):
    """Ends a run as it saves the model, which is pruned by then."""

    def stop(event):
        if isinstance(event, StageStarted) and event.stage == "save":
            raise KeyboardInterrupt

    return heard_by(stop)


def test_a_run_that_was_cut_off_goes_on_with_the_model_loaded_anew(
    plain, pico_llama, pico_tokenizer, tmp_path, cut_off, lasting
):
    recipe, model = plain(model=None, **SHORT), pico_llama()
    keys = {"processor": pico_tokenizer, "folder": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        ecoflap.run(recipe, model=model, registry=cut_off, **keys)
    with pytest.raises(RunError) as caught:
        ecoflap.run(recipe, model=model, **keys)
    assert "Load the model anew and call again with the same folder" in str(caught.value)
    assert "fresh=True" in str(caught.value)
    assert "--" not in str(caught.value)
    ecoflap.run(recipe, model=pico_llama(), **keys)
    ecoflap.run(recipe, model=pico_llama(), processor=pico_tokenizer, folder=tmp_path / "other")
    assert lasting(tmp_path / "run") == lasting(tmp_path / "other")


def refuse(module, inputs):
    raise AssertionError("something was compiled")


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # which torch's compiler says of itself
def test_a_compiled_model_is_pruned_as_it_was_written(plain, pico_llama, pico_tokenizer, tmp_path):
    recipe, runs = plain(model=None, **SHORT), {}
    inner, outer, parts = (pico_llama() for _ in range(3))
    outer.compile(backend=refuse)
    parts.model.layers[0].compile(backend=refuse)
    wrapped = torch.compile(inner, backend=refuse)
    for name, model in {"plain": pico_llama(), "wrapped": wrapped, "outer": outer, "parts": parts}.items():
        runs[name] = ecoflap.run(recipe, model=model, processor=pico_tokenizer, folder=tmp_path / name).model
    assert runs["wrapped"] is inner
    states = [model.state_dict() for model in runs.values()]
    assert all(torch.equal(state[name], value) for state in states for name, value in states[0].items())


def test_a_recipe_of_a_model_in_memory_says_that_it_has_to_be_given(plain, pico_llama, pico_tokenizer, tmp_path):
    ecoflap.run(plain(model=None, **SHORT), model=pico_llama(), processor=pico_tokenizer, folder=tmp_path / "run")
    with pytest.raises(ModelError, match=r"was in memory, and none is given\. .* ecoflap\.run\(recipe, model=…"):
        ecoflap.run(tmp_path / "run" / "recipe.yaml", folder=tmp_path / "again")


def test_a_recipe_that_names_the_files_of_another_model_is_refused(plain, pico, pico_tokenizer, pico_llama, tmp_path):
    same = pico_llama(dtype=torch.bfloat16)
    named = ecoflap.run(plain(**SHORT), model=same, processor=pico_tokenizer, folder=tmp_path / "same")
    assert named.recipe.model.source == str(pico / "model")
    narrow = pico_llama(dtype=torch.bfloat16, layers=2)
    with pytest.raises(EcoflapError, match=r"LlamaForCausalLM .* another model: num_hidden_layers 3 there and 2 here"):
        ecoflap.run(plain(**SHORT), model=narrow, processor=pico_tokenizer, folder=tmp_path / "other")
    label = plain(model={"source": "what-i-call-it"}, **SHORT)
    ecoflap.run(label, model=narrow, processor=pico_tokenizer, folder=tmp_path / "label")


class Sized(nn.Sequential):
    """A model of which nothing but its identity may be asked."""

    def __len__(self):
        raise TypeError("it has no length")


def test_a_model_is_never_asked_whether_it_is_true(tmp_path):
    layer, never = nn.Linear(2, 2), lambda: pytest.fail("it was loaded")
    assert fingerprint(in_memory(Sized(layer)), never) == fingerprint(in_memory(nn.Sequential(layer)), never)


def with_masks(model):
    prune.l1_unstructured(model.model.layers[0].mlp.up_proj, "weight", 0.3)


def with_norms(model):
    torch.nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)


def on_meta(model):
    model.model.layers[0].mlp.to("meta")


def of_one_number(model):
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data = torch.full((1, 1), 0.5).expand(weight.shape)


def sparse(model):
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse(), requires_grad=False)


def test_of_a_gpt2_they_are_refused_too_and_what_no_block_holds_is_let_be(plain, pico_tokenizer, tmp_path):
    """Its matrices are of a class of transformers' own."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4))
    keys = {"processor": pico_tokenizer, "folder": tmp_path / "run"}
    prune.l1_unstructured(model.transformer.h[0].mlp.c_fc, "weight", 0.3)
    with pytest.raises(ModelError, match=r"transformer\.h\.0\.mlp\.c_fc is computed anew"):
        ecoflap.run(plain(model=None, **SHORT), model=model, **keys)
    prune.remove(model.transformer.h[0].mlp.c_fc, "weight")
    torch.nn.utils.parametrizations.weight_norm(model.transformer.wpe)
    refuse_computed(Anatomy.of(CausalLMAdapter().towers(model), CausalLMAdapter().layers))


@pytest.mark.parametrize(("change", "said"), [
    (with_masks, r"up_proj is computed anew in each forward.*torch\.nn\.utils\.prune\.remove"),
    (with_norms, r"up_proj is computed anew in each forward.*remove_parametrizations"),
    (on_meta, r"down_proj.* no numbers in memory \(device meta\)"),
    (of_one_number, r"up_proj\.weight is sparse, or one number stands for many"),
    (sparse, r"up_proj\.weight is sparse, or one number stands for many"),
])  # fmt: skip
def test_weights_that_are_not_simply_there_are_refused(plain, pico_llama, pico_tokenizer, tmp_path, change, said):
    """Nothing would be pruned of them, or what is saved would be read by nobody."""
    model = pico_llama()
    change(model)
    with pytest.raises(ModelError, match=said):
        ecoflap.run(plain(model=None, **SHORT), model=model, processor=pico_tokenizer, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_around_a_run_changes_nothing(plain, pico_llama, pico_tokenizer, tmp_path, lasting, dtype):
    """It keeps its casts of weights, and the pruned model would be measured by the dense one's.

    Refiners of a model in bfloat16 compute by an autocast of their own.
    """
    recipe = plain(model=None, export=None, refine={"use": "reconstruct", "steps": 4})
    around = {"on": torch.autocast("cpu"), "off": torch.autocast("cpu", enabled=False), "none": nullcontext()}
    for name, context in around.items():
        with context:
            keys = {"processor": pico_tokenizer, "folder": tmp_path / name}
            done = ecoflap.run(recipe, model=pico_llama(dtype=dtype), **keys)
            assert torch.is_autocast_enabled("cpu") == (name == "on")
        assert any(one.is_kept for one in done.report.refined)
    assert lasting(tmp_path / "on") == lasting(tmp_path / "off") == lasting(tmp_path / "none")
