"""Keep a tensor on a disk rather than in memory, for as long as anybody holds it."""

import os
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from jaxtyping import Shaped
from torch import Tensor

from ecoflap.core.disk.write_errors import explained


def on_disk(tensor: Shaped[Tensor, "..."], folder: Path) -> Shaped[Tensor, "..."]:
    """Copy a tensor into a file without a name, and give it as the file has it: the system keeps in memory what it can.

    The file is gone with the tensor, and with the process, however that ends.

    :param folder: On the disk that is meant. It is made where it is not there.
    :raises RunError: Where the disk is full, or the folder cannot be written.
    """
    if not tensor.numel():
        return tensor
    with explained(folder, folder):
        folder.mkdir(parents=True, exist_ok=True)
        # By its name a later process deletes it, should this one be killed between the next lines.
        with NamedTemporaryFile(dir=folder, prefix=".kept-", suffix=".partial") as file:
            _make_room(file.fileno(), tensor.nbytes)
            storage = torch.UntypedStorage.from_file(file.name, shared=True, nbytes=tensor.nbytes)
    kept: Tensor = torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape)  # type: ignore[call-overload]
    kept.copy_(tensor.detach())
    return kept


def _make_room(descriptor: int, size: int) -> None:
    """Take the space at once: a disk that fills while a mapped file is written would end the process by a signal."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)
