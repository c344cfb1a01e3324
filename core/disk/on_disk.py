"""Keep a tensor on a disk rather than in memory, for as long as anybody holds it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from jaxtyping import Shaped
from torch import Tensor

from ecoflap.core.disk.write_errors import explained
from ecoflap.core.errors import RunError
from ecoflap.core.strides import axes_as_they_lie, in_their_places


@dataclass(frozen=True)
class OnDisk:
    """A tensor that lies in a file, and the device that it was on before."""

    tensor: Shaped[Tensor, "..."]
    device: torch.device

    def brought(self) -> Shaped[Tensor, "..."]:
        """Give it on the device that it was on; on the CPU that is what lies in the file."""
        return self.tensor.to(self.device)


def on_disk(tensor: Shaped[Tensor, "..."], folder: Path) -> Shaped[Tensor, "..."]:
    """Copy a tensor into a file without a name, and give it as the file has it: the system keeps in memory what it can.

    Its numbers lie there in the order in which they lay before. The file is gone with the tensor, and with the process,
    however that ends.

    :param folder: On the disk that is meant. It is made where it is not there.
    :raises RunError: Where the disk is full, or the folder cannot be written.
    """
    if not tensor.numel():
        return tensor
    once = _once(tensor.detach())
    axes = axes_as_they_lie(once)
    laid_out = once.permute(axes)
    kept = zeros_on_disk(laid_out.shape, tensor.dtype, folder)
    kept.copy_(laid_out)
    return in_their_places(kept, axes).expand(tensor.shape)


def _once(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Give what a tensor repeats, as a mask that is one for all texts of a batch, once."""
    for axis, stride in enumerate(tensor.stride()):
        if stride == 0:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def zeros_on_disk(shape: Sequence[int], dtype: torch.dtype, folder: Path) -> Shaped[Tensor, "..."]:
    """Give zeros to be written to that lie in a file as :func:`on_disk` has it, and have its room on the disk already.

    :param shape: Of one number or more.
    :raises RunError: Where the disk is full, or the folder cannot be written.
    """
    size = prod(shape) * dtype.itemsize
    with explained(folder, folder):
        folder.mkdir(parents=True, exist_ok=True)
        # By its name a later process deletes it, should this one be killed between the next lines.
        with NamedTemporaryFile(dir=folder, prefix=".kept-", suffix=".partial") as file:
            _make_room(file.fileno(), size)
            storage = _mapped(file.name, size)
    zeros: Tensor = torch.empty(0, dtype=dtype).set_(storage, 0, tuple(shape))  # type: ignore[call-overload]
    return zeros


def _mapped(file: str, size: int) -> torch.UntypedStorage:
    try:
        return torch.UntypedStorage.from_file(file, shared=True, nbytes=size)  # type: ignore[return-value]
    except RuntimeError as error:  # torch has no other for what the system refuses
        raise RunError(
            f"{Path(file).parent}: the system maps no further file ({error}). Linux has a limit of how many there are, "
            f"which sysctl vm.max_map_count=1000000 raises"
        ) from error


def matrix_on_disk(tensor: Shaped[Tensor, "..."], folder: Path | None) -> Shaped[Tensor, "..."]:
    """Put a matrix, or a stack of them, on the disk of a folder, unless it lies in a file already.

    What has one axis stays in memory, where it takes less than a file of its own would.

    :param folder: None leaves all of them where they are.
    """
    if folder is None or tensor.dim() < 2 or lies_on_disk(tensor):
        return tensor
    return on_disk(tensor, folder)


def lies_on_disk(tensor: Shaped[Tensor, "..."]) -> bool:
    """Say whether a tensor lies in a file as :func:`on_disk` has it, or is a part of one that does."""
    is_here = tensor.device.type == "cpu" and tensor.layout is torch.strided
    return is_here and tensor.untyped_storage().filename is not None


def _make_room(descriptor: int, size: int) -> None:
    """Take the space at once: a disk that fills while a mapped file is written would end the process by a signal."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)
