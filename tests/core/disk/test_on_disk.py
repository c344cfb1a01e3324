"""Tensors that are kept on a disk: the same bits, no file that stays, and a full disk that is said."""

import errno
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoflap.core.disk.on_disk import lies_on_disk, on_disk, zeros_on_disk
from ecoflap.core.errors import RunError

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), max_size=4), st.sampled_from(TYPES), st.booleans())
def test_a_tensor_comes_back_as_it_was(tmp_path_factory, shape, dtype, turned):
    folder = tmp_path_factory.mktemp("kept")
    tensor = torch.randint(-9, 9, shape).to(dtype)
    tensor = tensor.T if turned and tensor.ndim == 2 else tensor
    kept = on_disk(tensor, folder)
    assert kept.dtype == tensor.dtype
    assert torch.equal(kept, tensor)
    assert list(folder.iterdir()) == []
    assert kept.data_ptr() != tensor.data_ptr() or not tensor.numel()


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 0, 1)])
def test_its_numbers_lie_as_they_lay(order, tmp_path):
    """A sum over the channels of a transposed hidden state is taken in the same order, and has the same bits."""
    tensor = torch.randn(3, 4, 5).permute(order)
    assert on_disk(tensor, tmp_path).stride() == tensor.stride()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system has no call for it")
def test_what_a_tensor_repeats_is_written_once(tmp_path):
    """A mask that is one for all texts of a batch has them in its shape, and in memory once."""
    mask = torch.rand(1, 1, 8, 8).expand(16, 1, 8, 8)
    kept = on_disk(mask, tmp_path)
    assert torch.equal(kept, mask)
    assert kept.untyped_storage().nbytes() == 4 * 64
    assert lies_on_disk(kept[2:3])
    assert not lies_on_disk(mask)


def test_zeros_have_their_room_on_the_disk_before_they_are_written_to(tmp_path, monkeypatch):
    rooms, take = [], os.posix_fallocate

    def taken(descriptor, begin, size):
        take(descriptor, begin, size)
        rooms.append(512 * os.fstat(descriptor).st_blocks)

    monkeypatch.setattr(os, "posix_fallocate", taken)
    zeros = zeros_on_disk((300, 500), torch.float32, tmp_path / "new")
    assert not zeros.any()
    assert rooms[0] >= zeros.nbytes == 600_000
    zeros.add_(1)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(RunError, match=r"could not be written: the disk is full .* what is finished is kept"):
        on_disk(torch.ones(4), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_system_without_that_call_makes_room_otherwise(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    assert torch.equal(on_disk(torch.arange(5), tmp_path), torch.arange(5))
