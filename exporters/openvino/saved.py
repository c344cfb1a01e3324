"""Save a model of OpenVINO: under the same names in every process, and with the disk's own word where it cannot be."""

import os
from pathlib import Path
from re import fullmatch
from tempfile import TemporaryFile
from typing import Any

PIECE = 1 << 20
"""Bytes that are written at a time to find out what a disk takes."""


def save(model: Any, file: Path) -> None:
    """Write ``NAME.xml`` and ``NAME.bin``, or neither; nodes of the model have other names then.

    :raises OSError: Where the disk takes no more.
    """
    import openvino

    _name_by_place(model)
    try:
        openvino.save_model(model, file, compress_to_fp16=False)
    except RuntimeError:
        for half in (file, file.with_suffix(".bin")):  # whose room is asked for, too
            half.unlink(missing_ok=True)
        _ask_the_disk(file.parent, _bytes_of(model))
        raise


def _name_by_place(model: Any) -> None:
    """Number by their place those nodes that OpenVINO has numbered over the whole life of the process.

    These numbers are written into the file, and would tell what was converted before in the same process. A name that
    somebody gave in that form is numbered too.
    """
    for place, node in enumerate(model.get_ordered_ops()):
        if fullmatch(rf"{node.get_type_name()}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{place}")


def _bytes_of(model: Any) -> int:
    """Give the bytes of a model's numbers, which are nearly all of what is written."""
    return sum(node.get_byte_size() for node in model.get_ordered_ops() if node.get_type_name() == "Constant")


def _ask_the_disk(folder: Path, size: int) -> None:
    """Write as much as OpenVINO could not, and a piece for its graph: it says that it failed, and the system says why.

    :raises OSError: Where that cannot be written either.
    """
    with TemporaryFile(dir=folder) as probe:
        for _ in range(0, size + PIECE, PIECE):
            probe.write(bytes(PIECE))
        probe.flush()  # to the last byte: the system may take some of them and refuse the rest
        os.fsync(probe.fileno())
