"""A packed file in several: nothing is lost in dividing, and what is missing or exchanged is refused."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from killing import in_a_fork

from ecoflap.core.disk.whole_files import removed_leftovers
from ecoflap.core.errors import EcoflapError, FormatError
from ecoflap.core.packed import save_packed as writing
from ecoflap.core.packed import shards as packed_shards
from ecoflap.core.packed.contents import Contents
from ecoflap.core.packed.read_packed import inspect_packed, load_packed, masks_in, stream_packed
from ecoflap.core.packed.save_packed import save_packed
from ecoflap.core.packed.shards import divide
from ecoflap.core.sealing.sealed import flat, open_sealed

FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
NAME = "model.packed.safetensors"
INDEX = f"{NAME}.index.json"


def same(a, b):
    raw = [flat(tensor).view(torch.uint8) for tensor in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)


def weights(seed=0, count=6):
    """Of several types and sizes, some pruned, one tied and one empty."""
    generator = torch.Generator().manual_seed(seed)
    state, masks = {}, {}
    for number in range(count):
        dtype = (torch.float32, torch.bfloat16, torch.float16)[number % 3]
        weight = torch.randn(8 + number, 16, generator=generator).to(dtype)
        if number % 2:
            masks[f"layer.{number}"] = mask = torch.rand(weight.shape, generator=generator) < 0.5
            weight = weight.masked_fill(~mask, 0)
        state[f"layer.{number}"] = weight
    state["tied"] = state["layer.1"]
    state["empty"] = torch.zeros(0, 3)
    state["ids"] = torch.arange(7)
    return state, masks


@pytest.fixture
def shards(tmp_path):
    """A set of four, and what is in it."""
    state, masks = weights()
    files = save_packed(tmp_path / NAME, state, masks, {"run": "x"}, shard_bytes=600)
    assert len(files) >= 4
    return tmp_path, state, masks


@FOLDER
@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.integers(1, 60))
def test_dividing_keeps_order_and_fills_no_shard_above_its_limit(sizes, limit):
    named = {str(number): size for number, size in enumerate(sizes)}
    divided = divide(named, limit)
    assert [name for shard in divided for name in shard] == list(named)
    for shard, following in zip(divided, [*divided[1:], None], strict=True):
        total = sum(named[name] for name in shard)
        assert total <= limit or len(shard) == 1
        assert following is None or total + named[following[0]] > limit


def test_without_a_limit_all_is_in_one():
    assert divide({"a": 10**12, "b": 10**12}, None) == [["a", "b"]]
    assert divide({}, 5) == [[]]


@FOLDER
@given(st.integers(0, 9), st.integers(1, 4000), st.integers(2, 8))
def test_any_number_of_shards_gives_the_state_back(tmp_path, seed, limit, count):
    state, masks = weights(seed, count)
    files = save_packed(tmp_path / NAME, state, masks, {"run": "x"}, shard_bytes=limit)
    assert sorted(files) == sorted(file for file in tmp_path.iterdir() if file.is_file())
    assert sorted(os.listdir(tmp_path)) == sorted(file.name for file in files)
    for path in (tmp_path / NAME, tmp_path, files[-1]):
        back = load_packed(path)
        assert list(back) == list(state)
        assert all(same(back[name], state[name]) for name in state)
    assert back["tied"] is back["layer.1"]
    manifest = inspect_packed(tmp_path)
    assert manifest.metadata == {"run": "x"}
    assert list(manifest.tensors) == list(state)
    assert {name: entry.kept for name, entry in manifest.tensors.items() if entry.kept is not None} == {
        name: int(mask.sum()) for name, mask in {**masks, "tied": masks["layer.1"]}.items()
    }
    assert {name: tensor.shape for name, tensor in stream_packed(tmp_path)} == {
        name: tensor.shape for name, tensor in state.items() if name != "tied"
    }
    found = masks_in(tmp_path)
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())


def test_each_shard_is_within_the_limit_or_holds_one_tensor(shards):
    folder, _, _ = shards
    for file in folder.glob("*-of-*.safetensors"):
        with open_sealed(file, "ecoflap.packed") as sealed:
            own = Contents.model_validate_json(sealed.manifest)
        assert own.bytes_packed <= 600 or sum(entry.same_as is None for entry in own.tensors.values()) == 1


def test_the_index_is_as_transformers_has_it(shards):
    folder, state, _ = shards
    index = json.loads((folder / INDEX).read_text())
    assert list(index["weight_map"]) == list(state)
    assert set(index["weight_map"].values()) <= {file.name for file in folder.glob("*.safetensors")}
    assert index["metadata"]["total_size"] == inspect_packed(folder).bytes_packed
    count = len(index["seals"])
    assert list(index["seals"]) == [f"model.packed-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    assert index["weight_map"]["tied"] == index["weight_map"]["layer.1"]


def test_a_small_one_is_one_file_as_ever(tmp_path):
    state, masks = weights()
    (file,) = save_packed(tmp_path / NAME, state, masks, shard_bytes=10**9)
    save_packed(tmp_path / "other", state, masks)
    assert file.read_bytes() == (tmp_path / "other").read_bytes()


def test_masks_of_a_tensor_that_is_stored_dense(tmp_path):
    """All kept: the mask is known. Some kept and stored dense: it is where there is a weight."""
    whole, nearly = torch.zeros(4, 4), torch.ones(40, dtype=torch.float16)
    nearly[3] = 0
    masks = {"whole": torch.ones(4, 4, dtype=torch.bool), "nearly": nearly != 0}
    save_packed(tmp_path / NAME, {"whole": whole, "nearly": nearly}, masks)
    assert not any(entry.packed for entry in inspect_packed(tmp_path).tensors.values())
    found = masks_in(tmp_path)
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())


# What is missing, cut or exchanged


def test_a_missing_shard_is_named_before_anything_is_read(shards):
    folder, _, _ = shards
    last = sorted(folder.glob("*-of-*.safetensors"))[-1]
    last.unlink()
    for read in (load_packed, inspect_packed, masks_in, lambda path: next(stream_packed(path))):
        with pytest.raises(FormatError, match=f"lacks 1 of .* shards: {last.name}"):
            read(folder)


def test_shards_without_their_index_are_an_export_that_was_cut_off(shards):
    folder, _, _ = shards
    (folder / INDEX).unlink()
    with pytest.raises(FormatError, match="without the index that belongs to it"):
        load_packed(folder)
    with pytest.raises(FormatError, match="no such file"):
        load_packed(folder / NAME)


def test_a_shard_alone_is_not_taken_for_the_whole(shards):
    folder, _, _ = shards
    first = min(folder.glob("*-of-*.safetensors"))
    with pytest.raises(FormatError, match=r"is shard 1 of \d+ and holds a part"):
        load_packed(first)


def test_a_shard_of_another_export_is_refused(shards, tmp_path):
    """The same names and shapes, and sound by itself."""
    folder, _, _ = shards
    (tmp_path / "other").mkdir()
    state, masks = weights(seed=1)
    save_packed(tmp_path / "other" / NAME, state, masks, {"run": "x"}, shard_bytes=600)
    both = [file for file in folder.glob("*-of-*.safetensors") if (tmp_path / "other" / file.name).is_file()]
    assert both
    for file in both:
        before = file.read_bytes()
        shutil.copy(tmp_path / "other" / file.name, file)
        with pytest.raises(FormatError, match=f"{file.name} is not the shard that its index was written with"):
            load_packed(folder)
        file.write_bytes(before)
    load_packed(folder)


def test_two_shards_that_changed_places_are_noticed(shards):
    folder, _, _ = shards
    one, two = sorted(folder.glob("*-of-*.safetensors"))[:2]
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)
    with pytest.raises(FormatError, match="is not the shard"):
        load_packed(folder)


@FOLDER
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), data=st.data())
def test_a_flipped_bit_anywhere_is_refused(tmp_path, place, bit, data):
    state, masks = weights()
    files = save_packed(tmp_path / NAME, state, masks, shard_bytes=600)
    file = data.draw(st.sampled_from(files))
    raw = bytearray(file.read_bytes())
    raw[int(place * len(raw))] ^= 1 << bit
    file.write_bytes(bytes(raw))
    try:
        back = load_packed(tmp_path)
    except FormatError:
        return
    # Blanks in the JSON of an index or a header are not covered by anything, and hold nothing.
    assert list(back) == list(state)
    assert all(same(back[name], state[name]) for name in state)


@FOLDER
@given(place=st.floats(0, 1, exclude_max=True), data=st.data())
def test_a_file_cut_anywhere_is_refused(tmp_path, place, data):
    state, masks = weights()
    files = save_packed(tmp_path / NAME, state, masks, shard_bytes=600)
    file = data.draw(st.sampled_from(files))
    whole = file.read_bytes().rstrip()  # the index ends with a line feed
    file.write_bytes(whole[: int(place * len(whole))])
    with pytest.raises(FormatError):
        load_packed(tmp_path)


def signed(index):
    """As whoever edits an index would sign it."""
    changed = packed_shards.Index.model_validate({**index, "seal": ""})
    return json.dumps({**index, "seal": changed.expected_seal})


FORGERIES = {
    "out of the folder": (
        lambda i: i.update(seals={f"../{name}": seal for name, seal in i["seals"].items()}),
        "names other files than its shards",
    ),
    "no shards": (lambda i: i.update(seals={}, weight_map={"a": "b"}), "names other files"),
    "a name elsewhere": (lambda i: i["weight_map"].update(tied=list(i["seals"])[-1]), "is not the shard"),
    "a name more": (lambda i: i["weight_map"].update(more=next(iter(i["seals"]))), "is not the shard"),
    "a name less": (lambda i: i["weight_map"].pop("tied"), "is not the shard"),
    "another seal": (lambda i: i["seals"].update({next(iter(i["seals"])): "0" * 64}), "is not the shard"),
    "another key": (lambda i: i.update(scale=2), "no index of packed files"),
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_signed_forgery_of_the_index_is_refused(shards, forgery):
    folder, _, _ = shards
    change, words = FORGERIES[forgery]
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index) if "scale" in index else signed(index))
    with pytest.raises(FormatError, match=words):
        load_packed(folder)


def test_an_edited_index_breaks_its_seal(shards):
    folder, _, _ = shards
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace('"layer.0"', '"layer.9"'))
    with pytest.raises(FormatError, match="is damaged"):
        load_packed(folder)


def test_two_packed_files_in_a_folder_are_one_too_many(shards):
    folder, state, masks = shards
    save_packed(folder / "other.packed.safetensors", state, masks)
    with pytest.raises(FormatError, match=f"several packed files: name one of {INDEX}, other"):
        load_packed(folder)
    assert list(load_packed(folder / INDEX)) == list(state)
    (folder / "empty").mkdir()
    with pytest.raises(FormatError, match="holds no packed file"):
        load_packed(folder / "empty")


def test_of_a_run_the_export_is_named_that_has_the_file(shards, tmp_path):
    folder, *_ = shards
    for name in ("onnx", "safetensors"):
        (tmp_path / "run" / "exports" / name).mkdir(parents=True)
    whole = tmp_path / "run" / "exports" / "safetensors"
    for file in folder.glob(f"{NAME.removesuffix('.safetensors')}*"):
        shutil.copy(file, whole)
    with pytest.raises(FormatError, match=rf"run holds no packed file: .*its exports have: name {whole}$"):
        load_packed(tmp_path / "run")


def test_a_name_that_is_taken(tmp_path):
    with pytest.raises(EcoflapError, match="'shard' is what a shard says of itself"):
        save_packed(tmp_path / NAME, {"a": torch.zeros(3)}, {}, {"shard": "1 of 2"})


# Whole or not at all


def test_a_failed_write_leaves_what_was_there(shards, monkeypatch):
    folder, state, _ = shards
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    counted, nonzeros_pruned = [], writing.nonzeros_pruned

    def full(weight, bits):
        counted.append(weight)
        if len(counted) == 3:  # each tensor is held to its mask once
            raise OSError(28, "No space left on device")
        return nonzeros_pruned(weight, bits)

    monkeypatch.setattr(writing, "nonzeros_pruned", full)
    other, masks = weights(seed=1)
    with pytest.raises(EcoflapError, match="the disk is full"):
        save_packed(folder / NAME, other, masks, shard_bytes=500)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(load_packed(folder)) == list(state)


def test_who_is_stopped_between_two_renames_leaves_nothing_that_is_taken_for_whole(shards, monkeypatch):
    folder, _, _ = shards
    renamed = []
    replace = os.replace

    def stopped(source, target):
        if "-of-" in str(target) and Path(target).parent == folder:
            renamed.append(target)
            if len(renamed) == 2:
                raise KeyboardInterrupt
        replace(source, target)

    state, masks = weights(seed=1)
    with monkeypatch.context() as patched:
        patched.setattr(packed_shards.os, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            save_packed(folder / NAME, state, masks, shard_bytes=600)
    for path in (folder, folder / NAME):
        with pytest.raises(FormatError):
            load_packed(path)
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]
    save_packed(folder / NAME, state, masks, shard_bytes=600)
    back = load_packed(folder)
    assert all(same(back[name], state[name]) for name in state)
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


def test_who_is_killed_between_two_renames_leaves_what_is_deleted_as_a_leftover(shards):
    folder, _, _ = shards
    state, masks = weights(seed=1)

    def killed():
        replace = os.replace

        def second(source, target):
            replace(source, target)
            if "-of-" in str(target) and Path(target).parent == folder:
                os.kill(os.getpid(), signal.SIGKILL)

        packed_shards.os.replace = second
        save_packed(folder / NAME, state, masks, shard_bytes=600)

    assert in_a_fork({}, killed) == -signal.SIGKILL
    assert len(removed_leftovers(folder)) == 1
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize(("before", "after"), [(600, None), (None, 600), (600, 1500), (1500, 600)])
def test_what_was_there_is_replaced_whatever_it_was(tmp_path, before, after):
    old, masks = weights(seed=1)
    save_packed(tmp_path / NAME, old, masks, shard_bytes=before)
    (tmp_path / "notes-00001-of-00002.safetensors").write_text("not ours")
    state, masks = weights()
    files = save_packed(tmp_path / NAME, state, masks, shard_bytes=after)
    assert {file.name for file in tmp_path.iterdir()} == {
        *(file.name for file in files),
        "notes-00001-of-00002.safetensors",
    }
    assert all(same(tensor, state[name]) for name, tensor in load_packed(tmp_path / NAME).items())


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    state, masks = weights()
    with pytest.raises(EcoflapError, match="a part of its path is a file"):
        save_packed(tmp_path / "file" / NAME, state, masks, shard_bytes=600)
    assert Path(tmp_path / "file").read_text() == ""
