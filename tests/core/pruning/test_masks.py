"""Masks as bits, and in files."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ecoflap.core.bits import pack_mask
from ecoflap.core.errors import FormatError
from ecoflap.core.model.parameter_masks import ParameterMasks
from ecoflap.core.pruning import masks
from ecoflap.core.pruning.masks import (
    PackedMasks,
    bits_in,
    popcount,
    read_masks,
    save_masks,
    shape_in,
    unpack,
)
from ecoflap.core.sealing import sealed

SHAPES = st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)


def drawn(shape, seed, share=0.5):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


@given(SHAPES, st.integers(0, 2**31), st.sampled_from([0.0, 0.3, 1.0]))
def test_pack_and_unpack(shape, seed, share):
    mask = drawn(shape, seed, share)
    bits = pack_mask(mask)
    assert bits.tolist() == np.packbits(mask.numpy(), bitorder="little").tolist()
    assert popcount(bits) == int(mask.sum())
    back = unpack(bits, shape)
    assert back.dtype == torch.bool
    assert torch.equal(back, mask)


def test_older_numpy_counts_by_a_table(monkeypatch):
    every = torch.arange(256, dtype=torch.uint8)
    monkeypatch.setattr(masks, "_count_ones", masks._ONES.__getitem__)
    assert popcount(every) == sum(number.bit_count() for number in range(256))


def test_many_are_counted_a_piece_at_a_time(monkeypatch):
    monkeypatch.setattr(masks, "_PIECE", 3)
    mask = drawn((100,), 5)
    assert popcount(pack_mask(mask)) == int(mask.sum())


class Parts(nn.Module):
    """Has parameters whose parts begin with a byte of a packed mask, and within one."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 4, 2))
        self.uneven = nn.Parameter(torch.randn(3, 3, 3))
        self.rows = nn.Parameter(torch.randn(7, 8))
        self.plain = nn.Parameter(torch.randn(3, 5))


LAYERS = {
    "experts[0]": (4, 2),
    "experts[2]": (4, 2),
    "uneven[1]": (3, 3),
    "rows[1:3]": (2, 8),
    "rows[3:7]": (4, 8),
    "plain": (3, 5),
}


@pytest.mark.parametrize("are_packed", [True, False])
def test_packed_masks_are_put_together_as_the_masks_are(are_packed):
    drawn_ones = {name: drawn(shape, seed) for seed, (name, shape) in enumerate(LAYERS.items())}
    by_layer = PackedMasks()
    for name, mask in drawn_ones.items():
        by_layer.put(name, pack_mask(mask), tuple(mask.shape))
    plain = ParameterMasks(Parts(), drawn_ones)
    wanted = {name: (pack_mask(plain[name]).tolist(), tuple(plain[name].shape)) for name in plain}
    whole = ParameterMasks(Parts(), by_layer) if are_packed else plain
    assert {name: (bits_in(whole, name).tolist(), shape_in(whole, name)) for name in whole} == wanted


def test_packed_masks_are_written_as_others_are(tmp_path):
    mask = drawn((16, 9), 1)
    packed = PackedMasks()
    packed.put("w", pack_mask(mask), (16, 9))
    save_masks(tmp_path / "packed", packed)
    save_masks(tmp_path / "plain", {"w": mask})
    assert (tmp_path / "packed").read_bytes() == (tmp_path / "plain").read_bytes()


def test_the_first_weight_is_the_lowest_bit():
    assert pack_mask(torch.tensor([[True, False, False], [False, False, False], [True, True, True]])).tolist() == [
        193,
        1,
    ]


def test_pack_reads_a_transposed_mask_in_its_own_order():
    mask = drawn((5, 7), 0)
    assert torch.equal(unpack(pack_mask(mask.T), (7, 5)), mask.T)


@pytest.mark.parametrize("bits", [[], [1, 2], [8]])
def test_unpack_refuses_bits_that_do_not_fit(bits):
    with pytest.raises(FormatError):
        unpack(torch.tensor(bits, dtype=torch.uint8), (3,))


def test_files_hold_one_bit_a_weight(tmp_path):
    masks = {
        "b": drawn((64, 1000), 1),
        "a.weight": drawn((3, 5), 2),
        "none": drawn((0, 4), 3),
        "3d": drawn((2, 3, 5), 4),
    }
    path = tmp_path / "masks.safetensors"
    save_masks(path, masks)
    back = read_masks(path)
    assert list(back) == list(masks)
    assert all(torch.equal(back[name], masks[name]) for name in masks)
    assert path.stat().st_size < 64 * 1000 / 8 + 2000
    before = path.read_bytes()
    save_masks(path, masks)
    assert path.read_bytes() == before


def test_no_masks_are_a_file_too(tmp_path):
    save_masks(tmp_path / "x", {})
    assert dict(read_masks(tmp_path / "x")) == {}


@pytest.mark.parametrize("change", ["shape", "kept", "bit", "cut"])
def test_a_changed_file_is_refused(tmp_path, change):
    path = tmp_path / "masks.safetensors"
    save_masks(path, {"a": drawn((16, 4), 0)})
    data = bytearray(path.read_bytes())
    if change == "shape":
        data = data.replace(b"[16,4]", b"[8,8] ")
    elif change == "kept":
        at = data.index(b"kept") + 8
        data[at] ^= 1
    elif change == "bit":
        data[-1] ^= 1
    else:
        del data[-1]
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"masks\.safetensors"):
        read_masks(path)


FORGERIES = {
    "padding": ({"shape": [3], "kept": 1}, [8], "after a mask's last weight"),
    "length": ({"shape": [30], "kept": 1}, [1], "takes 4 bytes; it has 1"),
    "count": ({"shape": [3], "kept": 2}, [1], "keeps 1 weights where 2 are announced"),
    "shape": ({"shape": [-3], "kept": 1}, [1], "list of masks is damaged"),
    "bytes": ({"shape": [3], "kept": 1}, [[1]], "not a row of bytes"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forgery_with_hashes_of_its_own_is_refused(tmp_path, forgery):
    entry, numbers, words = FORGERIES[forgery]
    tensor = torch.tensor(numbers, dtype=torch.uint8)
    bits = sealed.SealedTensor(tensor.dtype, tuple(tensor.shape), lambda: tensor)
    sealed.write_sealed(tmp_path / "x", "ecoflap.masks", json.dumps({"masks": {"a": entry}}), {"a": bits})
    with pytest.raises(FormatError, match=words):
        read_masks(tmp_path / "x")


def test_another_format_is_refused_by_name(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "plain.safetensors")
    with pytest.raises(FormatError, match=r"plain\.safetensors is not in the format 'ecoflap\.masks'"):
        read_masks(tmp_path / "plain.safetensors")


def test_any_safetensors_library_reads_the_bits(tmp_path):
    mask = drawn((3, 5), 0)
    save_masks(tmp_path / "x", {"a": mask})
    with safe_open(tmp_path / "x", framework="np") as file:
        assert np.unpackbits(file.get_tensor("a"), count=15, bitorder="little").tolist() == mask.reshape(-1).tolist()
