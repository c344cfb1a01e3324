"""Models that stay in their files while they are pruned: the same bits as in memory, by the names on disk, resumed."""

import errno
import gc
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import in_a_fork
from offloaded import assert_alike, in_memory, pico_model, recipe_of, stopping_behind, weights_in
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

import ecoflap
from ecoflap.core.contracts.events import LayerPruned, Progress, StageStarted
from ecoflap.core.errors import FormatError, RecipeError, RunError
from ecoflap.core.forward.paused import PausedForwards
from ecoflap.core.machine.memory import MemoryWatch, held
from ecoflap.core.model.anatomy import Block, Layer
from ecoflap.core.model.mapped_weights import MappedWeights, Place, mapped_beside
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.pruning.finished_weights import FinishedWeights, _write_made
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.registry.registry import load_registry
from ecoflap.core.sealing.sealed import sealed, write_safetensors
from ecoflap.core.verifying.verify import verify
from ecoflap.exporters import hugging_face

pytest.importorskip("transformers", minversion="5.0", reason="it leaves weights on the disk from version 5 on")
pytest.importorskip("accelerate")

SLOW = pytest.mark.slow


@pytest.fixture(params=["llama-tied", "gpt_oss", *(pytest.param(kind, marks=SLOW) for kind in ("llama", "mixtral"))])
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """A recipe of a model in several files."""
    return recipe_of(request.param, tmp_path)


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_the_library_cuts_out_of_one_weight_is_put_together_again(tmp_path):
    """Sarvam's files have query, key and value as one weight, which all three are to be written at once for."""
    recipe = recipe_of("sarvam_moe", tmp_path)
    names = weights_in(tmp_path / "dense").keys()
    assert "model.layers.0.attention.query_key_value.weight" in names
    ecoflap.run(recipe, folder=tmp_path / "disk")
    ecoflap.run(in_memory(recipe), folder=tmp_path / "memory")
    assert_alike(tmp_path / "disk", tmp_path / "memory")
    assert weights_in(tmp_path / "disk" / "model").keys() == names


def test_weights_that_share_names_on_the_disk_by_way_of_each_other_are_written_at_once(tmp_path):
    """The first and the last share none; in between stands one that shares one with each."""
    stored = {"a": ["x", "u"], "b": ["z"], "c": ["y", "w"], "d": ["u", "y"]}

    def write(weights: Mapping[str, torch.Tensor], folder: Path) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for one, weight in weights.items():
            for name in stored[one]:
                tensors[name] = tensors.get(name, 0) + weight
        save_file({name: one.clone() for name, one in tensors.items()}, folder / "model.safetensors")

    _write_made({name: torch.tensor([2.0**number]) for number, name in enumerate("abcd")}, tmp_path, write)
    found = {path.parent.name: load_file(path) for path in tmp_path.rglob("*.safetensors")}
    assert found.keys() == {"a", "b"}
    assert {name: float(one) for name, one in found["a"].items()} == {"x": 1.0, "u": 9.0, "y": 12.0, "w": 4.0}
    assert {name: float(one) for name, one in found["b"].items()} == {"z": 2.0}


@pytest.mark.parametrize("prune", ["wanda", "sparsegpt"])
def test_what_stays_on_the_disk_is_pruned_to_the_same_bits(recipe, prune, tmp_path):
    before = bytes_in(tmp_path / "dense")
    recipe = {**recipe, "prune": prune}
    ecoflap.run(recipe, folder=tmp_path / "disk")
    ecoflap.run(in_memory(recipe), folder=tmp_path / "memory")
    assert_alike(tmp_path / "disk", tmp_path / "memory")
    assert weights_in(tmp_path / "disk" / "model").keys() == weights_in(tmp_path / "dense").keys()
    assert bytes_in(tmp_path / "dense") == before
    left = {path.name for path in (tmp_path / "disk").iterdir()}
    assert not {name for name in left if name.endswith(".partial") or name == "blocks"}


def test_layers_pruned_in_turn_are_the_same_and_forwards_wait_as_they_do_in_memory(recipe, tmp_path, monkeypatch):
    """What waits is of the calibration: ``keep: disk`` takes it out of memory, and not where the weights are."""
    waited = []

    def finish(paused):
        waited.append(finished(paused))
        return waited[-1]

    finished = PausedForwards.finish
    monkeypatch.setattr(PausedForwards, "finish", finish)
    recipe = {**recipe, "sequential": True}
    spilled = {**recipe, "calibration": {**recipe["calibration"], "keep": "disk"}}
    found = {}
    for name, keys in (("memory", in_memory(recipe)), ("disk", recipe), ("spilled", spilled)):
        waited.clear()
        ecoflap.run(keys, folder=tmp_path / name)
        found[name] = any(waited)
    assert_alike(tmp_path / "disk", tmp_path / "memory")
    assert_alike(tmp_path / "spilled", tmp_path / "memory")
    can_wait = "experts" not in " ".join(weights_in(tmp_path / "dense"))
    assert found == {"memory": can_wait, "disk": can_wait, "spilled": False}


@pytest.mark.parametrize("each", ["block", "subblock"])
def test_refined_blocks_and_kept_records_are_the_same(recipe, each, tmp_path):
    recipe = {**recipe, "prune": "wanda", "refine": {"use": "reconstruct", "steps": 2, "each": each}}
    on_disk = {**recipe, "calibration": {**recipe["calibration"], "keep": "disk"}}
    ecoflap.run(on_disk, folder=tmp_path / "disk")
    ecoflap.run(in_memory(recipe), folder=tmp_path / "memory")
    assert_alike(tmp_path / "disk", tmp_path / "memory")
    assert not list((tmp_path / "disk").glob(".kept*"))


def test_numbers_of_weights_and_their_gradients_are_the_same(recipe, tmp_path):
    score = {"use": "weight_metric", "metric": "magnitude_gradient", "samples": 2}
    recipe = {**recipe, "score": score, "allocate": "threshold", "prune": "magnitude", "evaluate": None}
    on_disk = {**recipe, "calibration": {**recipe["calibration"], "keep": "disk"}}
    ecoflap.run(on_disk, folder=tmp_path / "disk")
    ecoflap.run(in_memory(recipe), folder=tmp_path / "memory")
    assert_alike(tmp_path / "disk", tmp_path / "memory")
    assert (tmp_path / "disk/scores.jsonl").read_bytes() == (tmp_path / "memory/scores.jsonl").read_bytes()
    assert not list((tmp_path / "disk").glob(".kept*"))


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=SLOW)])
def test_another_type_than_the_files_have(recipe, dtype, tmp_path):
    """In float16 transformers keeps gpt_oss's norms in float32."""
    as_asked = {**recipe, "model": {**recipe["model"], "dtype": dtype}, "score": None, "allocate": "uniform"}
    ecoflap.run(as_asked, folder=tmp_path / "disk")
    ecoflap.run(in_memory(as_asked), folder=tmp_path / "memory")
    assert_alike(tmp_path / "disk", tmp_path / "memory")


def test_a_run_that_was_cut_off_goes_on_behind_its_finished_blocks(recipe, heard_by, tmp_path):
    ecoflap.run(recipe, folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        ecoflap.run(recipe, folder=tmp_path / "cut", registry=heard_by(stopping_behind("layers.1.self_attn.o_proj")))
    assert [path.name for path in (tmp_path / "cut" / "blocks").glob("*.safetensors")] == ["000.safetensors"]
    ecoflap.run(recipe, folder=tmp_path / "cut")
    assert_alike(tmp_path / "cut", tmp_path / "whole")


@pytest.fixture
def cut(recipe, heard_by, tmp_path):
    """A run of which one block is finished."""
    with pytest.raises(KeyboardInterrupt):
        ecoflap.run(recipe, folder=tmp_path / "cut", registry=heard_by(stopping_behind("layers.1.self_attn.o_proj")))
    return tmp_path / "cut"


@pytest.mark.parametrize("recipe", ["llama"], indirect=True)
def test_a_finished_block_that_was_damaged_is_refused_and_can_be_pruned_again(recipe, cut, tmp_path):
    ecoflap.run(recipe, folder=tmp_path / "whole")
    shard = cut / "blocks" / "shards" / "000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(FormatError, match=r"shards/000\.safetensors: the weight .* is not what was written"):
        verify(cut)
    with pytest.raises(FormatError, match=r"000\.safetensors: the weight .* is not what was written .* Delete it"):
        ecoflap.run(recipe, folder=cut)
    shard.unlink()
    with pytest.raises(FormatError, match=r"000\.safetensors is missing or damaged"):
        ecoflap.run(recipe, folder=cut)
    (cut / "blocks" / "000.safetensors").unlink()
    ecoflap.run(recipe, folder=cut)
    assert_alike(cut, tmp_path / "whole")


@pytest.mark.parametrize("recipe", ["llama"], indirect=True)
@pytest.mark.parametrize("hidden", [False, True])
def test_a_checkpoint_that_changes_meanwhile_is_named_and_nothing_is_lost(recipe, heard_by, tmp_path, hidden):
    file = tmp_path / "dense" / "model-00001-of-00005.safetensors"
    original, stamp = file.read_bytes(), file.stat()

    def change(event: Any) -> None:
        if not isinstance(event, LayerPruned) or "layers.1.self_attn.o_proj" not in event.name:
            return
        if hidden:  # other weights, and a time of writing that says nothing of it
            with file.open("r+b") as stream:
                stream.write(save({name: 3 * tensor for name, tensor in load_file(file).items()}, {"format": "pt"}))
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns) if hidden else (0, 0))

    with pytest.raises(RunError, match=r"model-00001-of-00005\.safetensors changed while the model was read"):
        ecoflap.run(recipe, folder=tmp_path / "changed", registry=heard_by(change))
    file.write_bytes(original)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert (tmp_path / "changed" / "blocks" / "000.safetensors").is_file()
    ecoflap.run(recipe, folder=tmp_path / "changed")
    ecoflap.run(recipe, folder=tmp_path / "whole")
    assert_alike(tmp_path / "changed", tmp_path / "whole")


@pytest.mark.parametrize("recipe", ["llama"], indirect=True)
@pytest.mark.parametrize("stage", ["check", "evaluate dense", "score"])
def test_nothing_is_recorded_of_a_checkpoint_that_changes_while_it_is_looked_at(recipe, stage, heard_by, tmp_path):
    folder, original = tmp_path / "changed", weights_in(tmp_path / "dense")
    files, recorded = sorted((tmp_path / "dense").glob("*.safetensors")), []

    def found() -> list[bytes]:
        there = RunFolder(folder)
        return [file.read_bytes() for file in (there.scores, there.evaluations, there.plan) if file.is_file()]

    def change(event: Any) -> None:
        begun = isinstance(event, StageStarted) and event.stage == stage != "score"
        scored = isinstance(event, Progress) and (event.stage, event.done) == (stage, 3)
        if (begun or scored) and not recorded:
            recorded.append(found())
            for file in files:
                wrong = save({name: 3 * original[name] for name in load_file(file)}, {"format": "pt"})
                with file.open("r+b") as stream:
                    stream.write(wrong)

    with pytest.raises(RunError, match=r"model-00001-of-00005\.safetensors.* changed while the model was read"):
        ecoflap.run(recipe, folder=folder, registry=heard_by(change))
    assert [found()] == recorded


@pytest.mark.parametrize("recipe", ["llama"], indirect=True)
@pytest.mark.parametrize("harm", ["overwrite", *(pytest.param(one, marks=SLOW) for one in ("cut off", "delete"))])
def test_once_the_pruned_model_is_saved_nothing_reads_its_source(recipe, harm, heard_by, tmp_path):
    """Neither the evaluation nor an export of what is in no block, as the embedding and the head."""
    ecoflap.run(recipe, folder=tmp_path / "whole")

    def change(event: Any) -> None:
        if isinstance(event, StageStarted) and event.stage == "evaluate pruned":
            for file in (tmp_path / "dense").glob("*.safetensors"):
                if harm == "delete":
                    file.unlink()
                    continue
                wrong = {name: 3 * tensor for name, tensor in load_file(file).items()}
                with file.open("r+b") as stream:
                    stream.write(save(wrong, {"format": "pt"})) if harm == "overwrite" else stream.truncate(100)

    ecoflap.run(recipe, folder=tmp_path / "changed", registry=heard_by(change))
    assert_alike(tmp_path / "changed", tmp_path / "whole")
    exports = [tmp_path / name / "exports" / "safetensors" for name in ("changed", "whole")]
    packed = [(folder / "model.packed.safetensors").read_bytes() for folder in exports]
    assert packed[0] == packed[1]


@pytest.mark.parametrize("recipe", ["llama"], indirect=True)
def test_a_disk_that_fills_while_blocks_are_written_is_said_and_the_run_goes_on_later(recipe, monkeypatch, tmp_path):
    from ecoflap.core.pruning import finished_weights

    write, written = finished_weights.write_safetensors, []

    def full(path: Path, tensors: Any) -> dict[str, str]:
        written.append(path)
        if len(written) == 2:
            raise RunError(f"{path} could not be written: {os.strerror(errno.ENOSPC)}")
        return write(path, tensors)

    monkeypatch.setattr(finished_weights, "write_safetensors", full)
    with pytest.raises(RunError, match="could not be written"):
        ecoflap.run(recipe, folder=tmp_path / "full")
    monkeypatch.undo()
    assert (tmp_path / "full" / "blocks" / "000.safetensors").is_file()
    ecoflap.run(recipe, folder=tmp_path / "full")
    ecoflap.run(recipe, folder=tmp_path / "whole")
    assert_alike(tmp_path / "full", tmp_path / "whole")


@pytest.mark.parametrize("recipe", ["llama"], indirect=True)
def test_a_shard_that_is_missing_or_cut_off_is_named_by_the_plan_and_the_run(recipe, tmp_path):
    (tmp_path / "dense" / "model-00002-of-00005.safetensors").unlink()
    os.truncate(tmp_path / "dense" / "model-00003-of-00005.safetensors", 1000)
    said = r"lacks 1 of .*: model-00002-of-00005\.safetensors\.(.|\n)*model-00003-of-00005\.safetensors is cut off"
    registry = load_registry()
    with pytest.raises(RecipeError, match=said):
        prepare(parse_recipe(recipe, registry=registry), registry, planning=True)
    with pytest.raises(RecipeError, match=said):
        ecoflap.run(recipe, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["llama"], indirect=True)
def test_an_onnx_file_has_the_same_bytes_also_where_it_is_written_later(recipe, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    onnx = {"use": "onnx", "views": ["decoder"], "tolerance": 1e-3}
    recipe = {**recipe, "score": None, "allocate": "uniform", "prune": "wanda", "export": [onnx]}
    recipe.pop("evaluate")
    ecoflap.run(recipe, folder=tmp_path / "disk")
    ecoflap.run(in_memory(recipe), folder=tmp_path / "memory")
    files = [folder / "exports" / "onnx" / "decoder.onnx" for folder in (tmp_path / "disk", tmp_path / "memory")]
    written = files[0].read_bytes()
    assert written == files[1].read_bytes()
    ecoflap.export_run(tmp_path / "disk", onnx, overwrite=True)
    assert files[0].read_bytes() == written
    assert not list((tmp_path / "disk").rglob(".weights-*"))


@pytest.mark.parametrize("recipe", ["llama-tied", pytest.param("mixtral", marks=pytest.mark.slow)], indirect=True)
def test_a_dense_export_is_read_back_from_files_and_is_that_of_a_model_in_memory(recipe, tmp_path, monkeypatch):
    """What is mapped lies in the export, or where the library makes it of several, as mixtral's experts, beside it."""
    mapped = []

    @contextmanager
    def noted(folder):
        with mapped_beside(folder) as weights:
            mapped.append(weights)
            yield weights

    monkeypatch.setattr(hugging_face, "mapped_beside", noted)
    recipe = {**recipe, "score": None, "allocate": "uniform", "prune": "wanda", "export": ["hugging_face"]}
    recipe.pop("evaluate")
    done = ecoflap.run(recipe, folder=tmp_path / "disk")
    (weights,) = mapped
    assert set(weights.places) == {name for name, _ in done.model.named_parameters()}
    in_export = {name for name, place in weights.places.items() if place.file.name == "model.safetensors"}
    assert set(weights.places) - in_export == {name for name in weights.places if ".experts." in name}
    ecoflap.run(in_memory(recipe), folder=tmp_path / "memory")
    assert len(mapped) == 1
    exports = [tmp_path / name / "exports" / "hugging_face" for name in ("disk", "memory")]
    assert len({(folder / "model.safetensors").read_bytes() for folder in exports}) == 1
    assert not list((tmp_path / "disk").rglob(".weights-*"))


@pytest.mark.parametrize("recipe", ["llama"], indirect=True)
def test_other_files_than_safetensors_are_refused(recipe, tmp_path):
    torch.save(weights_in(tmp_path / "dense"), tmp_path / "pytorch_model.bin")
    for file in (tmp_path / "dense").glob("model*"):
        file.unlink()
    shutil.move(tmp_path / "pytorch_model.bin", tmp_path / "dense")
    with pytest.raises(RecipeError, match=r"has its weights in pytorch_model\.bin"):
        ecoflap.run(recipe, folder=tmp_path / "run")


@pytest.mark.parametrize("recipe", ["llama"], indirect=True)
def test_a_model_in_memory_is_refused(recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"model\.offload: disk is for a model that is read from its files"):
        ecoflap.run(recipe, model=pico_model("llama"), folder=tmp_path / "run")


@pytest.mark.parametrize("recipe", ["llama", pytest.param("mixtral", marks=pytest.mark.slow)], indirect=True)
def test_what_was_begun_elsewhere_is_taken_over(recipe, tmp_path):
    ecoflap.run(in_memory(recipe), folder=tmp_path / "memory")
    kept = {**recipe["calibration"], "keep": "disk"}
    ecoflap.run({**recipe, "calibration": kept, "reuse": [str(tmp_path / "memory")]}, folder=tmp_path / "disk")
    assert sorted(RunFolder(tmp_path / "disk").taken_over()) == ["dense evaluation", "scores"]
    assert_alike(tmp_path / "disk", tmp_path / "memory")


def test_the_names_in_an_index_are_those_in_the_files(recipe, tmp_path):
    import json

    ecoflap.run({**recipe, "score": None, "allocate": "uniform"}, folder=tmp_path / "run")
    folder = tmp_path / "run" / "model"
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found |= dict.fromkeys(opened.keys(), file.name)
    assert found == weight_map


@pytest.mark.parametrize("recipe", ["mixtral"], indirect=True)
def test_several_processes_hold_the_same_files(recipe, heard_by, tmp_path):
    from several import several

    ecoflap.run(recipe, folder=tmp_path / "alone")
    with pytest.raises(KeyboardInterrupt):
        ecoflap.run(recipe, folder=tmp_path / "run", registry=heard_by(stopping_behind("layers.1.self_attn.o_proj")))
    ended = several(2, lambda ranks: ecoflap.run(recipe, folder=tmp_path / "run", ranks=ranks), tmp_path)
    assert ended == [(0, "")] * 2
    assert_alike(tmp_path / "run", tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere what is held is not told apart from files")
def test_what_is_held_while_experts_are_moved_does_not_grow_with_the_model(tmp_path):
    from pico_causal import KINDS, build

    score = {"use": "zeroth_order", "samples": 1, "joint": True}
    recipe = recipe_of("gpt_oss", tmp_path, score=score, prune="magnitude", evaluate=None, export=None)
    ecoflap.run(recipe, folder=tmp_path / "first")  # libraries are imported

    def save() -> None:
        model = build("gpt_oss", 14, **{**KINDS["gpt_oss"], "hidden_size": 256, "intermediate_size": 384})
        model.save_pretrained(tmp_path / "dense")

    assert in_a_fork({}, save) == 0  # whose memory would be there to be taken here
    gc.collect()
    before, watch = held(), MemoryWatch()
    ecoflap.run(recipe, folder=tmp_path / "run")
    watch.stop()
    assert watch.most() - before < 0.5 * (tmp_path / "dense" / "model.safetensors").stat().st_size


def test_what_was_put_away_for_a_while_is_mapped_from_where_it_was(tmp_path):
    """Also its place is known again, and the files that it was put into may go."""
    layer = Layer("0.weight", torch.nn.Linear(3, 2, bias=False))
    model, block = torch.nn.Sequential(layer.module), Block("0", layer.module, "language")
    dense = layer.weight.detach().clone()
    write_safetensors(tmp_path / "model.safetensors", {"w": sealed(dense)})
    weights = MappedWeights(tmp_path / "scratch")
    place = Place(tmp_path / "model.safetensors", "w", "w")
    layer.parameter.data = mapped = weights.map("0.weight", place, torch.float32)
    finished_weights = FinishedWeights(model, weights, tmp_path / "trial")
    with finished_weights.putting_back():
        finished_weights.take_into_memory([layer])
        layer.parameter.data.zero_()
        finished_weights.put_away(0, block)
        assert weights.places["0.weight"].file.is_relative_to(tmp_path / "trial")
        assert not layer.weight.any()
    assert layer.parameter.data_ptr() == mapped.data_ptr()
    assert torch.equal(layer.weight, dense)
    assert weights.places == {"0.weight": place}
    shutil.rmtree(tmp_path / "trial")
    weights.refuse_changed()
