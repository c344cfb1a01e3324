"""The plan predicts the disk of each file that will be written: a weight that several views share counts in each."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from table import GENERIC_ROWS, ROWS
from transformers_version import LEAVES_WEIGHTS, is_before

from ecoflap.core.cli.plan_report import prepared_tables
from ecoflap.core.contracts.records import Meanwhile
from ecoflap.core.model.mapped_weights import mapped_beside
from ecoflap.core.model.source import open_source
from ecoflap.core.needs.disk import disk_needs
from ecoflap.core.needs.memory import Places
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry
from ecoflap.core.run.pipeline import run
from ecoflap.core.sealing.sealed import open_sealed
from ecoflap.plugins.pruners.alps import Alps

MODELS = {**ROWS, **GENERIC_ROWS}
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


def recipe_for(name: str, folder: Any, *exports: dict[str, Any]) -> dict[str, Any]:
    if name not in MODELS:
        pytest.skip(f"transformers here is too old for {name}")
    MODELS[name].adapter().save(MODELS[name].build(), folder / "model")
    return {
        "version": 1,
        "model": str(folder / "model"),
        "sparsity": 0.5,
        "allocate": "uniform",
        "prune": "magnitude",
        "export": list(exports),
    }


def predicted(recipe: dict[str, Any]) -> dict[str, float]:
    """Bytes by what takes them, as the plan's row about the disk says."""
    registry = load_registry()
    needs = prepared_tables(prepare(parse_recipe(recipe, registry=registry), registry))[-1].rows
    made_of = next(row[2] for row in needs if row[0] == "disk")
    parts = (part.rsplit(" ", 2) for part in made_of.split(", "))
    return {name: float(size) * UNITS[unit] for name, size, unit in parts}


def in_file(path: Any) -> int:
    """Bytes of the parameters in a TorchScript file, each once."""
    there = {one.data_ptr(): one for one in torch.jit.load(path).parameters()}
    return sum(one.nbytes for one in there.values())


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", [pytest.param("blip2_t5", marks=pytest.mark.slow), "llava", "llama"])
def test_dense_files_are_as_large_as_predicted(name, tmp_path):
    if name == "llava" and is_before("4.52"):
        pytest.skip("there its vision tower alone becomes a file, as a plan says")
    recipe = recipe_for(name, tmp_path, {"use": "torchscript", "weights": "dense"})
    expected = predicted(recipe)
    done = run(recipe, folder=tmp_path / "run")
    files = sorted((done.folder / "exports" / "torchscript").glob("*.pt"))
    found = sum(map(in_file, files))
    assert len(files) > 1
    assert found > 1.5 * expected["model/"]  # so that one file of the whole model would be too little
    # a view of the LLaVA's language has the table of its words, and its graph is given their vectors
    assert 0.99 * found <= expected["torchscript"] <= 1.1 * found


def test_the_views_that_a_recipe_names_are_counted(tmp_path):
    def disk(**keys: Any) -> float:
        return predicted(recipe_for("clip", tmp_path, {"use": "torchscript", **keys}))["torchscript"]

    vision, text, both = disk(views=["vision"]), disk(views=["text"]), disk(views=["vision", "text"])
    assert both == pytest.approx(vision + text, rel=0.02)
    assert disk() > disk(views=["pair"]) > max(vision, text)


def rows_of(pico_llama_folder: Any, **keys: Any) -> Any:
    recipe = {"version": 1, "model": str(pico_llama_folder), "sparsity": 0.5, "prune": "magnitude", **keys}
    registry = load_registry()
    return prepared_tables(prepare(parse_recipe(recipe, registry=registry), registry))[-1].rows


def needs_of(pico_llama_folder: Any, **keys: Any) -> dict[str, str]:
    """What each of the plan's needs is made of."""
    return {what: made_of for what, _, made_of in rows_of(pico_llama_folder, **keys)}


def in_memory(pico_llama_folder: Any, **keys: Any) -> dict[str, float]:
    """Bytes by what takes them, as the plan's row about memory says, in kilobytes; the peak by no name."""
    rows = rows_of(pico_llama_folder, **keys)
    (_, peak, made_of) = next(row for row in rows if row[0] == "peak memory")
    parts = [part.rsplit(" ", 2) for part in ("", *made_of.split(", ")) if part]
    found = {"": peak.split(), **{name: [size, unit] for name, size, unit in parts}}
    return {name: float(size) * UNITS[unit] / 1e3 for name, (size, unit) in found.items()}


def test_the_plan_says_that_forwards_come_on_top_of_the_peak_and_what_they_grow_with(pico_llama_folder, tmp_path):
    (tmp_path / "text.txt").write_text("word1 word2 the of and in " * 40)
    text = {"use": "text", "path": str(tmp_path / "text.txt"), "sequence_length": 16, "samples": 3}
    assert "beside the peak" not in needs_of(pico_llama_folder, allocate="uniform")
    keys = {
        "calibration": {**text, "batch_size": 2},
        "score": {"use": "zeroth_order", "calibration": {**text, "batch_size": 3}},
        "evaluate": [{"use": "kl", "data": text, "batch_size": 5}, {"use": "perplexity", "data": text}],
    }
    said = needs_of(pico_llama_folder, allocate="ecoflap", **keys)["beside the peak"]
    assert re.search(r"batch_size \(calibration 2, score\.calibration 3, kl 5, perplexity( \d+)?\): lower that", said)
    once = needs_of(pico_llama_folder, calibration=text, allocate="ecoflap", score="zeroth_order")
    assert "(calibration 1)" in once["beside the peak"]


@pytest.mark.parametrize(("rounds", "sets"), [(1, 1), (2, 2), (3, 2)])
def test_packed_masks_of_all_layers_are_counted_and_those_of_the_round_before(
    pico_llama, pico_llama_folder, rounds, sets
):
    blocks = [block.named_parameters() for block in pico_llama().model.layers]
    weights = sum(one.numel() for block in blocks for _, one in block if one.dim() == 2)
    found = in_memory(pico_llama_folder, allocate="uniform", rounds=rounds)
    assert found["masks"] == pytest.approx(sets * weights / 8 / 1e3, abs=0.1)


def test_a_peak_of_pruning_has_the_masks_in_it(pico_llama_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("ecoflap.core.needs.memory.LIBRARIES", 0)
    (tmp_path / "text.txt").write_text("word1 word2 the of and in " * 40)
    text = {"use": "text", "path": str(tmp_path / "text.txt"), "sequence_length": 16, "samples": 3}
    found = in_memory(pico_llama_folder, allocate="uniform", calibration=text, prune="sparsegpt")
    parts = (
        "weights", "the largest block's statistics", "those of a span of batches", "recorded activations", "masks"
    )  # fmt: skip
    assert all(found[part] > 1 for part in parts)
    assert found[""] == pytest.approx(sum(found[part] for part in parts), abs=50)  # it is said in megabytes


def test_what_a_layer_is_solved_with_is_counted_where_it_is_more(pico_llama_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Alps, "held_numbers", lambda self, outputs, inputs: 10**6)
    (tmp_path / "text.txt").write_text("word1 word2 the of and in " * 40)
    text = {"use": "text", "path": str(tmp_path / "text.txt"), "sequence_length": 16, "samples": 3}
    found = in_memory(pico_llama_folder, allocate="uniform", calibration=text, prune="alps")
    assert found["what a layer is solved with"] == pytest.approx(4000, rel=0.01)


@pytest.mark.parametrize("joint", [False, True])
def test_directions_of_a_scorer_are_counted(pico_llama, pico_llama_folder, tmp_path, joint):
    (tmp_path / "text.txt").write_text("word1 word2 the of and in " * 40)
    text = {"use": "text", "path": str(tmp_path / "text.txt"), "sequence_length": 16, "samples": 3}
    score = {"use": "zeroth_order", "joint": joint}
    found = in_memory(pico_llama_folder, calibration=text, score=score, allocate="ecoflap")
    sizes = [one.numel() for one in pico_llama().model.layers[0].parameters() if one.dim() == 2]
    expected = 4 * ((sum(sizes) if joint else max(sizes)) + max(sizes)) / 1e3
    assert found["what the scorer holds"] == pytest.approx(expected, abs=0.1)
    assert "what the scorer holds" not in in_memory(pico_llama_folder, allocate="uniform")


def test_what_an_export_holds_is_counted_with_the_masks(pico_llama_folder, monkeypatch):
    monkeypatch.setattr("ecoflap.core.needs.memory.LIBRARIES", 0)
    pytest.importorskip("onnx")
    found = in_memory(pico_llama_folder, allocate="uniform", export=[{"use": "onnx", "views": ["decoder"]}])
    assert found["exporting onnx"] > found["weights"]
    assert found[""] == pytest.approx(found["weights"] + found["masks"] + found["exporting onnx"], abs=0.3)
    assert not any(name.startswith("exporting") for name in in_memory(pico_llama_folder, allocate="uniform"))


@pytest.mark.parametrize("part", [{"use": "onnx"}, {"use": "torchscript"}, {"use": "openvino", "activations": "float"}])
def test_a_recipe_whose_export_does_not_fit_is_told_so(part, pico_llama_folder, monkeypatch):
    pytest.importorskip({"torchscript": "torch"}.get(part["use"], part["use"]))
    monkeypatch.setattr("ecoflap.core.needs.memory.LIBRARIES", 0)
    exports = [{**part, "views": ["decoder"]}]
    found = in_memory(pico_llama_folder, allocate="uniform", export=exports)

    def said(there: float) -> str:
        monkeypatch.setattr("ecoflap.core.cli.needs_table.available_memory", lambda: round(there))
        return needs_of(pico_llama_folder, allocate="uniform", export=exports)["memory free here"]

    assert "the recipe as it is does not fit" in said(950 * found[""])
    assert "the recipe as it is" not in said(1050 * found[""])


@LEAVES_WEIGHTS
def test_a_model_that_stays_on_the_disk_takes_less_to_export_and_room_there(pico_llama_folder):
    pytest.importorskip("onnx")
    found = {}
    for offload in (None, "disk"):
        keys = {"model": {"source": str(pico_llama_folder), "offload": offload}}
        needs = needs_of(pico_llama_folder, allocate="uniform", export=[{"use": "onnx"}], **keys)
        found[offload] = needs["disk meanwhile"]
    assert "while a view is exported" not in found[None]
    assert re.search(r"later, while a view is exported, \d", found["disk"])


def test_an_exporter_of_the_whole_model_is_asked_once(tmp_path):
    sizes = predicted(recipe_for("clip", tmp_path, {"use": "hugging_face"}, {"use": "safetensors"}))
    assert sizes["hugging_face"] == sizes["model/"] > sizes["safetensors"]


def test_where_the_record_is_not_known_what_is_predicted_is_called_the_least(pico_llama_folder, tmp_path):
    """Without samples a dataset is read to its end. What is kept on the disk takes no memory."""
    (tmp_path / "text.txt").write_text("word1 word2 the of and in " * 40)
    peaks = {}
    for samples in (3, None):
        text = {"use": "text", "path": str(tmp_path / "text.txt"), "sequence_length": 16, "samples": samples}
        keys = {"order": "consecutive"} if samples is None else {}
        for keep in ("memory", "disk"):
            calibration = {**text, **keys, "keep": keep}
            found = rows_of(pico_llama_folder, allocate="uniform", prune="wanda", calibration=calibration)
            rows = {row[0]: row for row in found}
            peaks[samples, keep] = rows["peak memory"][1].startswith("at least ")
            other, elsewhere = ("all in memory", "memory") if keep == "disk" else ("calibration.keep: disk", "disk")
            for what in ("memory", "disk"):  # of the other place, if the record were there
                takes = "at least " if samples is None and elsewhere == what else ""
                assert re.search(rf"(^|; ){other} takes {takes}\d", rows[f"{what} free here"][2])
            is_least = samples is None and keep == "disk"
            assert rows["disk meanwhile"][1].startswith("at least ") is is_least
            assert ("recorded activations not known" in rows["disk meanwhile"][2]) is is_least
    assert peaks == {(3, "memory"): False, (3, "disk"): False, (None, "memory"): True, (None, "disk"): False}


def test_what_is_remembered_of_the_dense_model_takes_what_was_predicted(pico_llama_folder, tmp_path):
    (tmp_path / "text.txt").write_text("word1 word2 the of and in " * 40)
    text = {"use": "text", "path": str(tmp_path / "text.txt"), "sequence_length": 16, "samples": 3}
    recipe = {
        "version": 1,
        "model": str(pico_llama_folder),
        "sparsity": 0.5,
        "allocate": "uniform",
        "prune": "magnitude",
        "evaluate": [{"use": "kl", "data": text, "positions": 4}, {"use": "agreement", "data": text}],
    }
    assert "remembered of the dense model at most" in in_memory(pico_llama_folder, evaluate=recipe["evaluate"])
    assert predicted(recipe)["dense/ at most"] == pytest.approx(3 * 4 * 64 * 4, rel=0.02)
    (file,) = (run(recipe, folder=tmp_path / "run").folder / "dense").glob("kl-*")
    with open_sealed(file, None) as inside:
        tensors = [inside.read(name) for name in inside.hashes]
    assert sum(tensor.nbytes for tensor in tensors if tensor.is_floating_point()) == 3 * 4 * 64 * 4
    assert "dense/ at most" not in predicted({**recipe, "evaluate": recipe["evaluate"][1:]})


@pytest.mark.parametrize("wrong", [{"memory": -1}, {"memory": 1, "disk": -3}])
def test_what_an_exporter_takes_is_a_number_of_bytes(wrong):
    with pytest.raises(ValueError, match="bytes are whole numbers of at least 0, not -"):
        Meanwhile(**wrong)


@LEAVES_WEIGHTS
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "llama"])
def test_experts_that_the_library_puts_together_are_counted(name, tmp_path):
    """As many bytes as the weights have that no file holds under a name of theirs once the model is mapped."""
    recipe = recipe_for(name, tmp_path)
    source = open_source(recipe["model"], tmp_path)
    with mapped_beside(tmp_path) as mapped:
        model = MODELS[name].adapter().load(replace(source, mapped=mapped), None, "cpu")
    state = model.state_dict()
    made = sum(state[weight].nbytes for weight, place in mapped.places.items() if place.name_on_disk is None)
    assert (made > 0) == (name == "mixtral")
    registry = load_registry()
    found = {}
    for offload in (None, "disk"):
        keys = {**recipe, "model": {"source": recipe["model"], "offload": offload}}
        prepared = prepare(parse_recipe(keys, registry=registry), registry)
        found[offload] = disk_needs(prepared, Places.asked(prepared.recipe))
    assert found[None].put_together == 0
    assert found["disk"].put_together == made
    assert found["disk"].meanwhile == found["disk"].blocks + 2 * made


@LEAVES_WEIGHTS
def test_each_choice_is_told_with_its_disk_and_what_does_not_fit(pico_llama_folder, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("word1 word2 the of and in " * 40)
    text = {"use": "text", "path": str(tmp_path / "text.txt"), "sequence_length": 16, "samples": 3}
    free = {"": 1 << 40}
    monkeypatch.setattr("ecoflap.core.cli.needs_table.free_for", lambda path: free[""])

    def row() -> tuple[float, dict[str, float], str]:
        rows = {
            what: (size, told) for what, size, told in rows_of(pico_llama_folder, calibration=text, prune="sparsegpt")
        }
        asked = in_bytes(rows["disk"][0]) + in_bytes(rows["disk meanwhile"][0])
        told = rows["disk free here"][1]
        takes = re.findall(r"(?:^|; )(\w[^;]*?) takes ([\d.]+ \w+)", told)
        return asked, {choice: in_bytes(size) for choice, size in takes}, told

    asked, takes, told = row()
    assert takes.keys() == {
        "calibration.keep: disk",
        "model.offload: disk",
        "model.offload: disk and calibration.keep: disk",
    }
    assert "fit" not in told
    assert takes["model.offload: disk"] < asked < takes["calibration.keep: disk"]
    free[""] = round(asked) - 2000
    assert row()[2].startswith("the recipe as it is does not fit; ")
    assert re.search(r"calibration.keep: disk takes [\d.]+ kB, which does not fit; model.offload", row()[2])


def in_bytes(size: str) -> float:
    number, unit = size.split()
    return float(number) * UNITS[unit]


def test_where_nothing_tells_the_type_before_weights_are_read_the_plan_says_why_it_is_float32(plain, monkeypatch):
    monkeypatch.setattr("ecoflap.core.preparing.prepared.Prepared._stored", None)
    monkeypatch.setattr("ecoflap.core.preparing.prepared.slow_types", lambda: ["bfloat16"])
    registry = load_registry()
    needs = prepared_tables(prepare(parse_recipe(plain(), registry=registry), registry))[-1].rows
    told = [row[1:] for row in needs if row[0] == "arithmetic"]
    assert told == [("products in float32", "this CPU is slow in a type that weights are in, or may be")]
