"""A model in memory is the caller's: it is pruned in place, may be compiled, and a recipe names no other."""

import pytest
import torch
from torch import nn

import ecoflap
from ecoflap.core.contracts.events import StageStarted
from ecoflap.core.errors import EcoflapError, ModelError, RunError
from ecoflap.core.model.source import fingerprint, in_memory

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
