"""The packed file gives back what was put in, bit by bit, or refuses."""

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file, save_file
from torch import nn

from ecoflap.core.bits import pack_mask
from ecoflap.core.errors import EcoflapError, FormatError
from ecoflap.core.model.parameter_masks import ParameterMasks
from ecoflap.core.packed import save_packed as writing
from ecoflap.core.packed.read_packed import inspect_packed, load_packed, masks_in, stream_packed
from ecoflap.core.packed.save_packed import save_packed
from ecoflap.core.pruning.masks import PackedMasks
from ecoflap.core.sealing import sealed

BITS = {torch.float32: np.uint32, torch.float16: np.uint16, torch.bfloat16: np.uint16, torch.float64: np.uint64}
FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def raw(tensor):
    row = tensor.clone(memory_format=torch.contiguous_format).reshape(-1)
    return row.view(torch.uint8).numpy().tobytes()


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)


def drawn(*shape, keep=0.5, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < keep
    return torch.randn(shape, generator=generator).to(dtype).masked_fill(~mask, 0), mask


@st.composite
def weights(draw):
    dtype = draw(st.sampled_from(list(BITS)))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9))
    bits = draw(hnp.arrays(BITS[dtype], shape))
    mask = draw(hnp.arrays(bool, shape) | st.booleans().map(lambda all_: np.full(shape, all_)))
    bits = np.where(mask, bits, 0).astype(BITS[dtype])
    signed = bits.view(f"i{bits.itemsize}")
    return torch.from_numpy(signed.copy()).view(dtype), torch.from_numpy(mask.copy())


@FOLDER
@given(weights())
def test_any_bit_pattern_comes_back(tmp_path, case):
    weight, mask = case
    path = tmp_path / "x.safetensors"
    save_packed(path, {"w": weight}, {"w": mask})
    assert same(load_packed(path)["w"], weight)
    assert inspect_packed(path).tensors["w"].kept == int(mask.sum())


@pytest.mark.parametrize("dtype", BITS)
def test_special_values_at_kept_places(tmp_path, dtype):
    signed = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    inf = torch.tensor([float("inf")], dtype=dtype).view(signed)
    # Zero, minus zero, the smallest subnormals, infinities, a quiet and a signalling NaN with payloads.
    tricky = torch.cat([torch.tensor([0, 1, 3], dtype=signed), inf, inf + 1, inf | (inf >> 1) | 1])
    tricky = torch.cat([tricky, tricky ^ torch.iinfo(signed).min]).view(dtype)
    weight = torch.cat([tricky, torch.zeros(50, dtype=dtype)])
    mask = torch.arange(len(weight)) < len(tricky)
    save_packed(tmp_path / "x", {"w": weight}, {"w": mask})
    assert inspect_packed(tmp_path / "x").tensors["w"].packed
    assert same(load_packed(tmp_path / "x")["w"], weight)


@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_minus_zero_at_a_pruned_place_reads_back_as_zero(tmp_path, keep):
    weight, mask = drawn(10, 10, keep=keep)
    mask[0, 0] = False
    weight[0, 0] = -0.0
    save_packed(tmp_path / "x", {"w": weight}, {"w": mask})
    weight[0, 0] = 0.0
    assert same(load_packed(tmp_path / "x")["w"], weight)


@pytest.mark.parametrize("value", [float("nan"), 1e-30, float("-inf")])
@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_a_pruned_weight_that_is_not_zero_is_refused_by_name(tmp_path, value, keep):
    weight, mask = drawn(10, 10, keep=keep)
    mask[3, 4], weight[3, 4] = False, value
    with pytest.raises(EcoflapError, match=r"layers\.0\.q: 1 weights that its mask prunes are not zero"):
        save_packed(tmp_path / "x", {"layers.0.q": weight}, {"layers.0.q": mask})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("dtype", sealed.NAMES)
def test_everything_else_is_stored_as_it_is(tmp_path, dtype):
    tensor = (torch.arange(12) % 2).to(torch.uint8).repeat(8).view(dtype).clone()
    state = {"x": tensor, "empty": tensor[:0], "scalar": tensor[3].clone(), "2d": tensor[:8].clone().reshape(2, 4)}
    save_packed(tmp_path / "x", state, {})
    back = load_packed(tmp_path / "x")
    assert list(back) == list(state)
    assert all(same(back[name], state[name]) for name in state)


def test_weights_that_are_not_contiguous(tmp_path):
    weight, mask = drawn(9, 7)
    state = {
        "t": weight.T,
        "part": weight[:, ::2],
        "whole": weight,
        "one": torch.ones(1).expand(5),
        "1": torch.ones(9)[::9],
    }
    save_packed(tmp_path / "x", state, {"t": mask.T, "part": mask[:, ::2]})
    back = load_packed(tmp_path / "x")
    assert all(same(back[name], state[name]) for name in state)


def test_tied_tensors_are_stored_once_and_tied_again(tmp_path):
    weight, mask = drawn(40, 30)
    bias = torch.ones(100)
    state = {"embed": weight, "b": bias, "head": weight.detach(), "b2": bias, "other": weight.clone()}
    save_packed(tmp_path / "x", state, {"head": mask})
    back = load_packed(tmp_path / "x")
    assert list(back) == list(state)
    assert back["embed"] is back["head"]
    assert back["b"] is back["b2"]
    assert back["other"] is not back["embed"]
    assert all(same(back[name], state[name]) for name in state)
    assert set(load_file(tmp_path / "x")) == {"embed.values", "embed.mask", "b", "other"}
    assert [name for name, _ in stream_packed(tmp_path / "x")] == ["embed", "b", "other"]


def test_two_masks_of_one_tensor_must_agree(tmp_path):
    weight, mask = drawn(10, 10)
    save_packed(tmp_path / "x", {"a": weight, "b": weight}, {"a": mask, "b": mask.clone()})
    with pytest.raises(EcoflapError, match="b and a are one tensor with two masks that differ"):
        save_packed(tmp_path / "x", {"a": weight, "b": weight}, {"a": mask, "b": ~mask})


def test_no_second_set_of_masks_is_held_while_a_file_is_written(tmp_path):
    shape, count = (256, 1024), 128
    weight, mask = drawn(*shape)
    masks = PackedMasks()
    for number in range(count):
        masks.put(f"w{number}", pack_mask(mask), shape)
    state = {name: weight.clone() for name in masks}
    tracemalloc.start()  # which sees what NumPy makes, as bits and unpacked masks are
    try:
        save_packed(tmp_path / "x", state, masks)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < sum(map(len, masks.bits.values())) * 0.75
    assert all(same(one, weight) for one in load_packed(tmp_path / "x").values())


@pytest.mark.parametrize(
    ("shape", "layers"), [((2048, 2048), ("w",)), ((4, 1024, 1024), ("w[0]", "w[1]", "w[2]", "w[3]"))]
)
@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_no_mask_of_a_byte_for_each_weight_is_made_of_a_large_tensor(tmp_path, shape, layers, keep):
    """Beside what is written of it, a piece of 2 MB: its mask would be 4 MB, and its masked copies more."""
    model = nn.Module()
    weight, mask = drawn(*shape, keep=keep)
    model.register_parameter("w", nn.Parameter(weight))
    masks = PackedMasks()
    for layer, part in zip(layers, mask if len(layers) > 1 else (mask,), strict=True):
        masks.put(layer, pack_mask(part), tuple(part.shape))
    tracemalloc.start()  # which sees what NumPy makes
    try:
        save_packed(tmp_path / "x", {"w": weight}, ParameterMasks(model, masks))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    entry = inspect_packed(tmp_path / "x").tensors["w"]
    assert (entry.kept, entry.packed) == (int(mask.sum()), keep < 0.9)
    assert most < entry.bytes_packed + 2 * 2**20
    assert same(load_packed(tmp_path / "x")["w"], weight)


def test_all_problems_are_said_at_once(tmp_path):
    weight, mask = drawn(10, 10)
    state = {
        "weight": weight,
        "ids": torch.zeros(3, dtype=torch.int64),
        "meta": torch.empty(2, device="meta"),
        "complex": torch.zeros(2, dtype=torch.complex64),
        "weight.mask": torch.zeros(1),
    }
    masks = {"weigth": mask, "weight": mask[:5], "ids": torch.ones(3) > 0}
    with pytest.raises(EcoflapError) as caught:
        save_packed(tmp_path / "x", state, masks)
    text = str(caught.value)
    assert text.startswith("6 problems")
    for words in ("Did you mean 'weight'", "(5, 10)", "torch.int64", "meta device", "complex64", "in the way"):
        assert words in text


@pytest.mark.parametrize("sparsity", [0.0625, 0.25, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("shape", [(1024, 1024), (1000, 999)])
def test_the_size_that_is_promised(tmp_path, sparsity, shape):
    weight, mask = torch.ones(shape, dtype=torch.float16), torch.ones(shape, dtype=torch.bool)
    mask.view(-1)[: int(weight.numel() * sparsity)] = False
    save_packed(tmp_path / "x", {"w": weight * mask}, {"w": mask})
    size = (tmp_path / "x").stat().st_size
    assert size <= (1 - sparsity + 1 / 16) * 1.01 * weight.numel() * 2
    manifest = inspect_packed(tmp_path / "x")
    assert manifest.bytes_dense == weight.numel() * 2
    assert 0 < size - manifest.bytes_packed < 2000


def test_a_weight_that_packing_would_not_shrink_stays_dense_with_its_count(tmp_path):
    weight, mask = drawn(100, 100, keep=0.99)
    save_packed(tmp_path / "x", {"w": weight}, {"w": mask})
    entry = inspect_packed(tmp_path / "x").tensors["w"]
    assert (entry.packed, entry.kept) == (False, int(mask.sum()))
    assert same(load_packed(tmp_path / "x")["w"], weight)


def test_metadata_and_equal_bytes(tmp_path):
    weight, mask = drawn(10, 10)
    for name in ("a", "b"):
        save_packed(str(tmp_path / name), {"w": weight}, {"w": mask}, {"recipe": "é", "model": "x"})
    assert inspect_packed(tmp_path / "a").metadata == {"recipe": "é", "model": "x"}
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_is_loaded_does_not_depend_on_the_file(tmp_path):
    weight, mask = drawn(100, 100)
    save_packed(tmp_path / "x", {"w": weight, "b": weight}, {"w": mask})
    back = load_packed(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"")
    back["w"].add_(0)
    assert same(back["w"], weight)


# Damage


def small(path, seed=0):
    """One of everything: packed, dense with a count, tied, plain, scalar, empty."""
    weight, mask = drawn(5, 7, seed=seed)
    full, almost = drawn(3, 3, keep=1.0)
    state = {"w": weight, "tied": weight, "f": full, "bias": torch.randn(4), "n": torch.tensor(3), "e": torch.ones(0)}
    save_packed(path, state, {"w": mask, "f": almost}, {"note": "x"})
    return state


def refused_or_equal(path, state):
    try:
        back = load_packed(path)
    except FormatError:
        return
    assert list(back) == list(state)
    assert all(same(back[name], state[name]) for name in state)


@settings(parent=FOLDER, max_examples=300)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_any_flipped_byte_is_noticed(tmp_path, place, flip):
    path = tmp_path / "x.safetensors"
    state = small(path)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= flip
    path.write_bytes(data)
    refused_or_equal(path, state)


def test_every_flipped_byte_of_the_data_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    small(path)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for place in range(start, len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x80]) + data[place + 1 :])
        with pytest.raises(FormatError, match=r"the tensor '(w\.values|w\.mask|f|bias|n)' is damaged"):
            load_packed(path)


@settings(parent=FOLDER, max_examples=100)
@given(st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_noticed(tmp_path, place):
    path = tmp_path / "x.safetensors"
    small(path)
    os.truncate(path, int(place * path.stat().st_size))
    with pytest.raises(FormatError, match=r"x\.safetensors"):
        load_packed(path)


def test_bytes_after_the_end_are_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    small(path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(FormatError):
        load_packed(path)


def test_foreign_and_missing_files_are_refused(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "plain", {"format": "pt"})
    (tmp_path / "text").write_text("hello, world, this is no safetensors file")
    for name, words in {"plain": "says 'pt'", "text": "not a safetensors file", "no": "no such file"}.items():
        with pytest.raises(FormatError, match=words):
            load_packed(tmp_path / name)
        with pytest.raises(FormatError, match=words):
            inspect_packed(tmp_path / name)


def test_two_tensors_that_changed_places_are_noticed(tmp_path):
    path = tmp_path / "x"
    save_packed(path, {"a": torch.zeros(64), "b": torch.ones(64)}, {})
    data = path.read_bytes()
    path.write_bytes(data[:-512] + data[-256:] + data[-512:-256])
    with pytest.raises(FormatError, match="'a' is damaged"):
        load_packed(path)


# An attacker who recomputes the hashes


class Forger:
    """Reads a file apart, lets a test change it, and signs it again as the writer would."""

    def __init__(self, path: Path) -> None:
        with sealed.open_sealed(path, "ecoflap.packed") as file:
            self.manifest = json.loads(file.manifest)
            self.tensors = {name: file.read(name) for name in file.hashes}
        self.path = path

    def sign(self) -> None:
        parts = {
            name: sealed.SealedTensor(tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: tensor)
            for name, tensor in self.tensors.items()
        }
        sealed.write_sealed(self.path, "ecoflap.packed", json.dumps(self.manifest), parts)


@pytest.fixture
def forger(tmp_path):
    small(tmp_path / "x.safetensors")
    return Forger(tmp_path / "x.safetensors")


def test_the_forger_itself_is_sound(forger):
    state = load_packed(forger.path)
    forger.sign()
    back = load_packed(forger.path)
    assert all(same(back[name], state[name]) for name in state)


def extra_bit(f):
    zero = next(i for i in range(8) if not int(f.tensors["w.mask"][0]) >> i & 1)
    f.tensors["w.mask"][0] |= 1 << zero


def padding(f):
    one = next(i for i in range(8) if int(f.tensors["w.mask"][0]) >> i & 1)
    f.tensors["w.mask"][0] ^= 1 << one
    f.tensors["w.mask"][-1] |= 0x80


FORGERIES = {
    "popcount": (extra_bit, "mask of 'w' keeps"),
    "padding": (padding, "bits after a mask's last weight"),
    "short mask": (lambda f: f.tensors.update({"w.mask": f.tensors["w.mask"][:-1]}), "'w.mask' is"),
    "huge shape": (lambda f: f.manifest["tensors"]["w"].update(shape=[10**9, 10**9]), "'(w.mask|tied)'|same as"),
    "other shape": (lambda f: f.manifest["tensors"]["bias"].update(shape=[2, 2]), "'bias' is"),
    "negative shape": (lambda f: f.manifest["tensors"]["bias"].update(shape=[-2, -2]), "manifest is damaged"),
    "other dtype": (lambda f: f.manifest["tensors"]["bias"].update(dtype="I32"), "'bias' is"),
    "no dtype": (lambda f: f.manifest["tensors"]["bias"].update(dtype="F7"), "manifest is damaged"),
    "kept": (lambda f: f.manifest["tensors"]["f"].update(kept=2), "'f' has more weights than the 2"),
    "kept too many": (lambda f: f.manifest["tensors"]["f"].update(kept=10), "cannot keep 10 of 9"),
    "kept none": (lambda f: f.manifest["tensors"]["w"].update(kept=None), "cannot keep None|same as"),
    "missing": (lambda f: f.tensors.pop("bias"), r"missing tensors: \['bias'\]"),
    "extra": (lambda f: f.tensors.update(x=torch.ones(1)), r"nobody announced: \['x'\]"),
    "alias of nothing": (lambda f: f.manifest["tensors"]["tied"].update(same_as="?"), r"same as '\?'"),
    "alias of itself": (lambda f: f.manifest["tensors"]["tied"].update(same_as="tied"), "same as 'tied'"),
    "alias of another": (lambda f: f.manifest["tensors"]["tied"].update(same_as="f"), "same as 'f'"),
    "unknown key": (lambda f: f.manifest["tensors"]["f"].update(scale=2), "manifest is damaged"),
    "no manifest": (lambda f: f.manifest.clear(), "manifest is damaged"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_signed_forgery_is_refused(forger, forgery):
    change, words = FORGERIES[forgery]
    change(forger)
    forger.sign()
    with pytest.raises(FormatError, match=words) as caught:
        load_packed(forger.path)
    assert str(forger.path) in str(caught.value)


def test_an_edited_manifest_breaks_the_seal(tmp_path):
    path = tmp_path / "x"
    small(path)
    path.write_bytes(path.read_bytes().replace(rb"\"shape\":[5,7]", rb"\"shape\":[7,5]"))
    with pytest.raises(FormatError, match="its header is damaged"):
        inspect_packed(path)


# Interruptions


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    state = small(path)
    monkeypatch.setattr(writing, "nonzeros_pruned", lambda weight, bits: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        small(path, seed=1)
    assert os.listdir(tmp_path) == ["x"]
    refused_or_equal(path, state)


KILLED = """
import sys, time
import torch
from ecoflap.core.packed import save_packed as writing
def wait(*_):
    print("half", flush=True)
    time.sleep(60)
writing.nonzeros_pruned = wait
weight = torch.zeros(1000, 1000)
writing.save_packed(sys.argv[1], {"w": weight}, {"w": weight > 0})
"""


def test_a_process_killed_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    small(path)
    before = path.read_bytes()
    with subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / ".x.partial").exists()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "claim", "words"),
    [
        ("f", {"shape": [10**6, 10**6], "kept": 10**12}, r"'f' is torch\.b?float\d+ \(3, 3\) where .*1000000, 1000000"),
        ("w", {"shape": [10**6, 10**6], "kept": 10**11}, "'w.values' is"),
        ("bias", {"shape": [10**9], "kept": 10**9}, "'bias' is"),
    ],
)
def test_nothing_is_allocated_for_what_the_file_cannot_hold(forger, name, claim, words, monkeypatch):
    """A header may announce tensors of any size: it is held to what the file has before room is made for one."""
    for entry in forger.manifest["tensors"].values():
        if entry.get("same_as") == name:
            entry.update(claim)
    forger.manifest["tensors"][name].update(claim)
    forger.sign()
    monkeypatch.setattr(torch, "ones", None)
    monkeypatch.setattr(torch, "empty", None)
    monkeypatch.setattr(torch, "full", None)
    for read in (inspect_packed, load_packed, masks_in):
        with pytest.raises(FormatError, match=words):
            read(forger.path)
