"""A narrow model whose products are computed in float32: as if it were stored in that, and it stays as narrow."""

import itertools
import json
import signal
from shutil import copytree
from typing import Any

import pytest
import torch
from killing import in_a_fork
from safetensors.torch import load_file
from torch.nn import functional
from transformers_version import is_before

import ecoflap
from ecoflap.core.errors import EcoflapError, RunError
from ecoflap.core.forward.placement import Placement
from ecoflap.core.pruning.masks import read_masks
from ecoflap.core.record.folder import RunFolder

WIDE = torch.float32


@pytest.fixture
def slow_here(monkeypatch):
    """Say whether this CPU lacks products in bfloat16, whatever it has."""

    def slow_here(lacks):
        monkeypatch.setattr("ecoflap.core.preparing.prepared.is_slow", lambda dtype: lacks and dtype == torch.bfloat16)

    return slow_here


@pytest.fixture
def recipe_of(plain, pico):
    def recipe_of(model, **keys):
        return plain(model={"source": str(pico / "model"), **model}, export=None, **keys)

    return recipe_of


def measures(run):
    found = run.report.measures
    return {name: (found.dense[name].value, one.value) for name, one in found.pruned.items()}


def alike(narrow, wide):
    """Hold a run on the narrow model to one on the same model stored in float32, where no weight was changed."""
    assert read_masks(narrow.folder / "masks.safetensors").keys() == narrow.plan.layers.keys()
    for name, mask in read_masks(narrow.folder / "masks.safetensors").items():
        assert torch.equal(mask, read_masks(wide.folder / "masks.safetensors")[name]), name
    assert measures(narrow) == measures(wide)
    expected = wide.model.state_dict()
    for name, weight in narrow.model.state_dict().items():
        assert weight.dtype == torch.bfloat16, name
        assert torch.equal(weight.to(WIDE), expected[name]), name


PRUNED = {
    "scored by zeroth order": {},
    "scored by curves": {"score": {"use": "sensitivity", "samples": 2}, "allocate": "marginal"},
    "by the better budget": {"allocate": {"use": "best_of", "of": ["uniform", "ecoflap"]}},
    "in rounds": {"rounds": 2},
    "with its head": {"include": ["lm_head"]},
    "step by step": {"sequential": True},
}
IN_MEMORY, ON_THE_DISK = "in memory", "on the disk"


def ways() -> list[Any]:
    """Each way in each place: three of them are tried always, and the rest with what takes long."""
    always = {("scored by zeroth order", IN_MEMORY), ("in rounds", ON_THE_DISK), ("step by step", ON_THE_DISK)}
    return [
        pytest.param(how, place, marks=() if (how, place) in always else pytest.mark.slow)
        for how in PRUNED
        for place in (IN_MEMORY, ON_THE_DISK)
    ]


@pytest.mark.parametrize(("how", "place"), ways())
def test_it_is_pruned_and_measured_as_one_that_is_stored_so(recipe_of, plain, tmp_path, how, place):
    keys, where = PRUNED[how], {}
    if place == "on the disk":
        if is_before("5"):
            pytest.skip("transformers 5 leaves weights in their files")
        keys, where = {**keys, "calibration": {**plain()["calibration"], "keep": "disk"}}, {"offload": "disk"}
    narrow = ecoflap.run(recipe_of({"compute": "float32", **where}, **keys), folder=tmp_path / "narrow")
    wide = ecoflap.run(recipe_of({"dtype": "float32"}, **keys), folder=tmp_path / "wide")
    alike(narrow, wide)
    assert narrow.report.machine["computed_in"] == wide.report.machine["computed_in"] == "float32"
    as_it_is = ecoflap.run(recipe_of({"compute": "model"}, **keys), folder=tmp_path / "as it is")
    assert as_it_is.report.machine["computed_in"] == "bfloat16"
    assert measures(as_it_is) != measures(narrow)


def test_memory_that_is_there_is_used_and_changes_nothing(recipe_of, tmp_path, monkeypatch):
    kept = {}
    for name, bytes_free in (("roomy", 1 << 40), ("tight", 0)):
        monkeypatch.setattr("ecoflap.core.run.run_model.spare_memory", lambda prepared, free=bytes_free: free)
        kept[name] = ecoflap.run(recipe_of({"compute": "float32"}), folder=tmp_path / name)
    assert measures(kept["roomy"]) == measures(kept["tight"])


@pytest.mark.parametrize("lacks", [True, False])
def test_where_the_recipe_leaves_it_open_the_cpu_decides(recipe_of, tmp_path, slow_here, lacks):
    slow_here(lacks)
    seen = set()
    original = functional.linear

    def linear(input, weight, bias=None):
        seen.add(weight.dtype)
        return original(input, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "linear", linear)
        run = ecoflap.run(recipe_of({}, score=None, allocate="uniform"), folder=tmp_path / "run")
    expected = WIDE if lacks else torch.bfloat16
    assert expected in seen
    if lacks:
        assert seen == {WIDE}
    assert run.report.machine["computed_in"] == str(expected).removeprefix("torch.")


@pytest.mark.parametrize("began_slow", [True, False])
def test_a_run_goes_on_as_it_was_begun_on_another_machine(recipe_of, lasting, killer, tmp_path, slow_here, began_slow):
    slow_here(began_slow)
    whole = ecoflap.run(recipe_of({}), folder=tmp_path / "whole")
    folder = tmp_path / "run"
    point = killer("event:LayerPruned:5")
    assert in_a_fork(point, lambda: ecoflap.run(recipe_of({}), folder=folder)) == -signal.SIGKILL
    slow_here(not began_slow)
    run = ecoflap.run(recipe_of({}), folder=folder)
    assert lasting(folder) == lasting(whole.folder)
    assert measures(run) == measures(whole)
    assert run.report.machine["computed_in"] == whole.report.machine["computed_in"]


def test_what_another_run_computed_otherwise_is_not_taken_over(recipe_of, tmp_path, slow_here):
    slow_here(False)
    first = ecoflap.run(recipe_of({}), folder=tmp_path / "first")
    slow_here(True)
    second = ecoflap.run(recipe_of({}, reuse=[str(first.folder)]), folder=tmp_path / "second")
    assert RunFolder(second.folder).taken_over() == []
    assert measures(second) != measures(first)
    slow_here(False)
    third = ecoflap.run(recipe_of({}, reuse=[str(first.folder)]), folder=tmp_path / "third")
    assert set(RunFolder(third.folder).taken_over()) == {"dense evaluation", "scores"}


def test_another_arithmetic_is_another_recipe(recipe_of, tmp_path):
    ecoflap.run(recipe_of({"compute": "float32"}), folder=tmp_path / "run")
    with pytest.raises(RunError, match=r"begun with another recipe: model\.compute"):
        ecoflap.run(recipe_of({"compute": "model"}), folder=tmp_path / "run")


def test_refiners_compute_in_it_too(recipe_of, tmp_path):
    """What they find before the first step is what they find of a model that is stored in float32."""
    keys = {"refine": [{"use": "reconstruct", "steps": 2}, {"use": "distill", "steps": 2}]}
    found = {}
    for name, model in (
        ("narrow", {"compute": "float32"}),
        ("wide", {"dtype": "float32"}),
        ("own", {"compute": "model"}),
    ):
        run = ecoflap.run(recipe_of(model, **keys), folder=tmp_path / name)
        lines = map(json.loads, (run.folder / "refined.jsonl").read_text().splitlines())
        found[name] = next(line["before"] for line in lines if line["refiner"] == "reconstruct")
    assert found["narrow"] == found["wide"]
    assert found["own"] != found["wide"]


def test_of_a_model_in_memory_its_weights_say_what_it_is_in(plain, pico_llama, pico_tokenizer, tmp_path, slow_here):
    slow_here(True)
    kept = {}
    for dtype in (torch.bfloat16, torch.float32):
        model = pico_llama(dtype=dtype)
        recipe = plain(model=None, export=None)
        run = ecoflap.run(recipe, model=model, processor=pico_tokenizer, folder=tmp_path / str(dtype))
        assert run.model is model
        assert {one.dtype for one in model.parameters()} == {dtype}
        kept[dtype] = RunFolder(run.folder).read_fingerprints().get("arithmetic")
    assert kept == {torch.bfloat16: "float32", torch.float32: None}


@pytest.mark.parametrize("compute", ["model", "float32"])
def test_a_model_in_memory_that_is_narrow_in_part_is_computed_as_the_recipe_says(
    plain, pico_llama, pico_tokenizer, tmp_path, compute
):
    def in_two_types():
        """Its first layer is in float32, and is given and gives what those around it take."""
        model = pico_llama(dtype=torch.bfloat16)
        attention = model.model.layers[0].self_attn
        attention.q_proj.float()
        attention.q_proj.register_forward_pre_hook(lambda module, given: (given[0].to(module.weight.dtype),))
        attention.q_proj.register_forward_hook(lambda _, given, found: found.to(attention.k_proj.weight.dtype))
        return model

    def run(name, model, **keys):
        recipe = plain(model=keys or None, export=None)
        return ecoflap.run(recipe, model=model, processor=pico_tokenizer, folder=tmp_path / name)

    wide, mixed = run("wide", in_two_types().float()), run("mixed", in_two_types(), compute=compute)
    assert (measures(mixed) == measures(wide)) is (compute == "float32")
    assert mixed.report.machine["computed_in"] == {"model": "bfloat16", "float32": "float32"}[compute]


def without_type(folder):
    """Let a configuration name no type."""
    config = json.loads((folder / "config.json").read_text())
    without = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    (folder / "config.json").write_text(json.dumps(without))
    return folder


@pytest.mark.parametrize("compute", ["auto", "model"])
def test_a_type_that_shows_only_in_the_weights_is_the_same_when_a_run_goes_on(
    pico, plain, lasting, killer, tmp_path, monkeypatch, compute
):
    monkeypatch.setattr("ecoflap.core.preparing.prepared.slow_types", list)
    source = without_type(copytree(pico / "model", tmp_path / "model"))
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    recipe = plain(model={"source": str(source), "compute": compute}, export={"use": "eora", "rank": 2})
    whole = ecoflap.run(recipe, folder=tmp_path / "whole")
    folder = tmp_path / "run"
    assert in_a_fork(killer("event:LayerPruned:5"), lambda: ecoflap.run(recipe, folder=folder)) == -signal.SIGKILL
    run = ecoflap.run(recipe, folder=folder)
    assert measures(run) == measures(whole)
    assert lasting(folder) == lasting(whole.folder)
    ecoflap.export_run(folder, {"use": "eora", "rank": 2}, overwrite=True)
    assert lasting(folder) == lasting(whole.folder)
    assert run.report.machine["computed_in"] == whole.report.machine["computed_in"] == "bfloat16"


@pytest.mark.parametrize("place", ["in memory", "on the disk"])
def test_a_type_that_no_configuration_names_is_that_of_the_files(pico, plain, tmp_path, slow_here, place):
    if place == "on the disk" and is_before("5"):
        pytest.skip("transformers 5 leaves weights in their files")
    slow_here(True)
    without_type(copytree(pico / "model", tmp_path / "model"))
    where = {"offload": "disk"} if place == "on the disk" else {}

    def measured(name, **model):
        recipe = plain(model={"source": str(tmp_path / "model"), **model}, export=None)
        return ecoflap.run(recipe, folder=tmp_path / name)

    wide, left_open = measured("wide", dtype="float32"), measured("open", **where)
    assert measures(left_open) == measures(wide)
    assert measures(measured("own", compute="model", **where)) != measures(wide)
    assert RunFolder(left_open.folder).read_fingerprints()["arithmetic"] == "float32"
    assert {one.dtype for one in left_open.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("failing", [1, 2, 5, 12, 20, 30, 45])
@pytest.mark.parametrize("free", [0, 1 << 40])
def test_memory_that_is_not_enough_leaves_a_model_as_narrow_as_it_was(
    plain, pico_llama, pico_tokenizer, tmp_path, monkeypatch, failing, free
):
    """Whichever tensor is widened when there is none left."""
    for name in ("run_model.spare_memory", "stages.spare_for_scoring"):
        monkeypatch.setattr(f"ecoflap.core.run.{name}", lambda prepared: free)
    brought, count = Placement.brought, itertools.count(1)

    def short(self, tensor):
        if next(count) == failing:
            raise MemoryError
        return brought(self, tensor)

    monkeypatch.setattr(Placement, "brought", short)
    model = pico_llama(dtype=torch.bfloat16)
    before = {name: (one, one.data_ptr()) for name, one in model.named_parameters()}
    recipe = plain(model={"compute": "float32"}, export=None, refine=[{"use": "distill", "steps": 1}])
    with pytest.raises((MemoryError, EcoflapError), match=r"MemoryError|^$"):  # the latter from within a forward
        ecoflap.run(recipe, model=model, processor=pico_tokenizer, folder=tmp_path / "run")
    for name, one in model.named_parameters():
        assert one.dtype == torch.bfloat16, name
        assert (one, one.data_ptr()) == before[name]


def test_the_same_arithmetic_by_another_key_is_taken_over(recipe_of, tmp_path, slow_here):
    slow_here(True)
    first = ecoflap.run(recipe_of({}), folder=tmp_path / "first")
    second = ecoflap.run(recipe_of({"compute": "float32"}, reuse=[str(first.folder)]), folder=tmp_path / "second")
    assert set(RunFolder(second.folder).taken_over()) == {"dense evaluation", "scores"}


def test_an_export_that_looks_at_inputs_computes_as_the_run_did(recipe_of, tmp_path):
    """Once behind pruning, and once more from the finished run."""
    written = {}
    for name, compute in (("wide", "float32"), ("own", "model")):
        recipe = {**recipe_of({"compute": compute}, score=None, allocate="uniform"), "prune": "magnitude"}
        run = ecoflap.run({**recipe, "export": {"use": "eora", "rank": 2}}, folder=tmp_path / name)
        written[name] = (run.folder / "exports" / "eora" / "adapter_model.safetensors").read_bytes()
        ecoflap.export_run(run.folder, {"use": "eora", "rank": 2}, overwrite=True)
        assert (run.folder / "exports" / "eora" / "adapter_model.safetensors").read_bytes() == written[name]
    assert written["wide"] != written["own"]
