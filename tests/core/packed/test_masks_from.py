"""Masks of elsewhere, in each kind of file, held against the booleans that were written."""

import os

import pytest
import torch
from safetensors.torch import save_file

from ecoflap.core.errors import FormatError
from ecoflap.core.packed.masks_from import mask_files, masks_from
from ecoflap.core.packed.save_packed import save_packed
from ecoflap.core.pruning.masks import save_masks
from ecoflap.core.sealing.sums import write_sums


@pytest.fixture
def masks():
    generator = torch.Generator().manual_seed(7)
    shapes = {"a.weight": (5, 7), "b.weight": (3, 4), "experts.up": (2, 3, 5)}
    return {name: torch.rand(shape, generator=generator) < 0.4 for name, shape in shapes.items()}


def written(kind, masks, folder):
    """The folder or file in which masks are, written in one of the ways."""
    if kind == "run":
        save_masks(folder / "masks.safetensors", masks)
        return folder
    if kind == "packed":
        weights = {name: torch.randn(mask.shape) * mask for name, mask in masks.items()}
        save_packed(folder / "model.packed.safetensors", {**weights, "norm": torch.ones(4)}, masks)
        return folder
    if kind == "zeros":
        weights = {name: torch.where(mask, 0.5, 0.0).bfloat16() for name, mask in masks.items()}
        save_file({**weights, "norm": torch.ones(4)}, folder / "model.safetensors")
        return folder
    dtype = {"bool": torch.bool, "uint8": torch.uint8}[kind.removesuffix(" shards")]
    tensors = {name: mask.to(dtype) for name, mask in masks.items()}
    if kind.endswith("shards"):
        for number, (name, tensor) in enumerate(tensors.items()):
            save_file({name: tensor}, folder / f"{number}.safetensors")
        return folder
    save_file(tensors, folder / "masks-of-others.safetensors")
    return folder / "masks-of-others.safetensors"


@pytest.mark.parametrize("kind", ["run", "packed", "zeros", "bool", "uint8", "bool shards"])
def test_each_kind_of_file_gives_the_masks_that_were_written(kind, masks, tmp_path):
    found = masks_from(written(kind, masks, tmp_path), zeros=kind == "zeros")
    assert set(found.masks) == set(masks)
    for name, mask in masks.items():
        assert torch.equal(found.of(name), mask)
        assert found.kept(name) == (int(mask.sum()), mask.numel())


def test_a_layer_is_found_by_its_parameter_or_its_module(masks, tmp_path):
    modules = {"a": masks["a.weight"], "experts.up": masks["experts.up"]}
    found = masks_from(written("bool", modules, tmp_path))
    assert torch.equal(found.of("a.weight"), masks["a.weight"])
    assert torch.equal(found.of("experts.up[1]"), masks["experts.up"][1])
    assert torch.equal(found.of("experts.up[0:1]"), masks["experts.up"][:1])
    assert found.kept("experts.up[1]") == (int(masks["experts.up"][1].sum()), 15)
    assert found.of("b.weight") is None
    assert found.kept("b.weight") is None
    assert found.kept("experts.up[2]") != (0, 0)  # of another model: the whole mask, whose shape is refused


def test_a_part_with_a_mask_of_its_own(masks, tmp_path):
    found = masks_from(written("run", {"experts.up[1]": masks["a.weight"]}, tmp_path))
    assert torch.equal(found.of("experts.up[1]"), masks["a.weight"])
    assert found.of("experts.up[0]") is None


def test_a_file_that_changed_is_read_anew(masks, tmp_path):
    file = written("bool", masks, tmp_path)
    first = masks_from(file)
    assert masks_from(file) is first
    other = {name: ~mask for name, mask in masks.items()}
    written("bool", other, tmp_path)
    os.utime(file, ns=(1, 1))
    assert torch.equal(masks_from(file).of("a.weight"), other["a.weight"])


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.ones(2, 2), r"a\.weight is float32; a mask is bool, or uint8 .* set zeros: true"),
        (torch.full((2, 2), 255, dtype=torch.uint8), r"a\.weight has 255 in it; a mask in uint8 has zeros"),
    ],
)
def test_what_is_no_mask_is_refused_by_name(tensor, told, tmp_path):
    save_file({"a.weight": tensor, "b.weight": tensor.clone()}, tmp_path / "m.safetensors")
    with pytest.raises(FormatError, match=told) as caught:
        masks_from(tmp_path)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("zeros", [False, True])
def test_where_nothing_is_or_a_file_is_damaged(zeros, tmp_path):
    with pytest.raises(FormatError, match=r"no masks are there; name (a folder with the weights|the folder of a run)"):
        masks_from(tmp_path, zeros=zeros)
    assert mask_files(tmp_path / "nowhere", zeros=zeros) == []
    (tmp_path / "m.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(FormatError, match=r"m\.safetensors is truncated, damaged or not a safetensors file"):
        masks_from(tmp_path, zeros=zeros)


def test_a_damaged_mask_of_a_run_is_refused(masks, tmp_path):
    file = written("run", masks, tmp_path) / "masks.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(FormatError, match=r"masks\.safetensors.*SHA-256"):
        masks_from(tmp_path)


def test_a_checkpoint_without_a_matrix_has_no_zeros_to_take(tmp_path):
    save_file({"norm": torch.ones(4)}, tmp_path / "m.safetensors")
    with pytest.raises(FormatError, match="no tensor in it is a matrix of weights"):
        masks_from(tmp_path, zeros=True)


def test_zeros_of_what_a_run_wrote_are_held_to_its_list(masks, tmp_path):
    folder = written("zeros", masks, tmp_path)
    write_sums(folder)
    masks_from(folder, zeros=True)
    (file,) = folder.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 64
    file.write_bytes(data)
    with pytest.raises(FormatError, match=r"safetensors is not what was written: .* on purpose, delete SHA256SUMS"):
        masks_from(folder, zeros=True)


def test_a_checkpoint_that_is_no_masks_is_told_once(tmp_path):
    weights = {f"{i}.weight": torch.ones(2, 2) for i in range(5)}
    save_file({**weights, "own": torch.full((2,), 7, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    with pytest.raises(FormatError) as caught:
        masks_from(tmp_path)
    of_weights, of_numbers = caught.value.problems
    assert of_weights == (
        f"{tmp_path / 'model.safetensors'}: 5 of its tensors are no masks, such as 0.weight, which is float32; a mask "
        f"is bool, or uint8 of zeros and ones. For the zeros of weights, set zeros: true"
    )
    assert "own has 7 in it" in of_numbers
