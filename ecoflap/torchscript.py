"""Load TorchScript files that were exported, after every byte of them was checked.

``torch.jit.load(path)`` reads them as they are, with no help from here, and takes most damaged bytes for weights.
"""

import os
from typing import Any

from ecoflap.core.disk.paths import from_here
from ecoflap.core.disk.sums import SUMS, check_sums
from ecoflap.core.errors import FormatError

__all__ = ["load"]


def load(path: str | os.PathLike[str], map_location: Any = None) -> Any:
    """Check a file against the ``SHA256SUMS`` beside it, and load it.

    :param map_location: As for ``torch.jit.load``.
    :return: What ``torch.jit.load`` returns.
    :raises FormatError: Where the file is not what was written, or lies beside no list, as one that was moved away from
        its export's folder: then ``torch.jit.load`` reads it unchecked.
    """
    import torch

    from ecoflap.exporters.torchscript.store import quiet

    file = from_here(path)
    way_out = f"Export it again, or move it back beside its {SUMS}."
    if not file.is_file():
        raise FormatError(f"{file}: there is no such file. Give the path of a .pt file of an export.")
    check_sums(file.parent, way_out, only=lambda name: name == file.name, required=True)
    with quiet():
        return torch.jit.load(file, map_location=map_location)
