"""Load TorchScript files that were exported, after every byte of them was checked.

``torch.jit.load(path)`` reads them as they are, with no help from here, and takes most damaged bytes for weights.
"""

import os
from os.path import lexists
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from ecoflap.core.disk.paths import from_here
from ecoflap.core.disk.reading import files_in, refuse_folder
from ecoflap.core.errors import FormatError
from ecoflap.core.sealing.sums import SUMS, check_sums

__all__ = ["load"]

ENDING = ".pt"
"""Ends the names of files that the exporter writes."""


def load(path: str | os.PathLike[str], map_location: Any = None) -> Any:
    """Check a file against the ``SHA256SUMS`` beside it, and load it.

    :param map_location: As for ``torch.jit.load``.
    :return: What ``torch.jit.load`` returns.
    :raises FormatError: Where the file is none of TorchScript, is not what was written, or lies beside no list, as one
        that was moved away from its export's folder: then ``torch.jit.load`` reads it unchecked.
    """
    import torch

    from ecoflap.exporters.torchscript.store import quiet

    file = from_here(path)
    refuse_folder(file, ENDING)
    if not file.is_file():
        raise FormatError(f"{file}: there is no such file. Give the path of a {ENDING} file of an export.")
    if not lexists(file.parent / SUMS):
        raise FormatError(
            f"{file}: no {SUMS} lies beside it, which says what was written: it was moved out of the folder of its "
            f"export. Move it back or export it again; or load it unchecked, by torch.jit.load."
        )
    way_out = f"Export it again, or move it back beside its {SUMS}."
    check_sums(file.parent, way_out, only=lambda name: name == file.name, required=True)
    if not _is_torchscript(file):
        found = files_in(file.parent, ENDING)
        raise FormatError(f"{file} is no TorchScript file; beside it {f'such is {found}' if found else 'is none'}.")
    with quiet():
        return torch.jit.load(file, map_location=map_location)


def _is_torchscript(file: Path) -> bool:
    """Say whether a file holds a program of TorchScript; tensors that ``torch.save`` wrote are in a zip without one."""
    try:
        with ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except BadZipFile:
        return False
