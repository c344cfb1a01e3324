"""Read arrays out of ONNX files: nothing that is not there, and nothing outside the model's folder."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecoflap.core.disk.reading import refuse_folder
from ecoflap.core.errors import EcoflapError, FormatError
from ecoflap.core.sealing.sums import SUMS, check_sums, read_sums

MOST = 2**31
"""Elements of one tensor at most: no weight has more, and a damaged shape soon does."""

_ANEW = "Export it again."
_INSTALL = "Install it: pip install 'ecoflap[onnx]'."


_REMARKS = ("doc_string", "metadata_props", "producer_name", "producer_version")
"""Fields with texts that nothing is looked up by."""


@dataclass(frozen=True)
class Opened:
    """Holds a model in memory, with the file whose folder its external data lie in.

    :param proto: An ``onnx.ModelProto``, without external data.
    :param path: None for a model that came from no file: then it has no external data.
    """

    proto: Any
    path: Path | None

    @property
    def where(self) -> str:
        return str(self.path) if self.path else "the model"


def opened(path: Path) -> Opened:
    """Read a model without its external data. Where an export lists it, its files are checked, external data too.

    :raises FormatError: Where it is not there, not what was written, truncated, or no ONNX model.
    """
    onnx, message = library("onnx"), library("google.protobuf.message")
    refuse_folder(path, ".onnx")
    if not path.is_file():
        raise FormatError(f"{path}: there is no such file. Give the path of an .onnx file.")
    listed = path.name in read_sums(path.parent) if (path.parent / SUMS).is_file() else False
    if listed:
        check_sums(path.parent, _ANEW, only=lambda name: name == path.name)
    try:
        proto = onnx.load_model(path, format="protobuf", load_external_data=False)
    except message.DecodeError as error:
        raise FormatError(f"{path}: this is no ONNX model, or it is truncated ({error}). Export it again.") from error
    if not proto.HasField("graph"):
        raise FormatError(f"{path}: this is no ONNX model: it has no graph. Export it again.")
    if any(isinstance(text, bytes) for text in _texts(proto)):
        raise FormatError(f"{path}: it is damaged: a name in it is no Unicode. Export it again.")
    beside = {
        entry.value for tensor in proto.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    if listed and beside:
        check_sums(path.parent, _ANEW, only=beside.__contains__)
    return Opened(proto, path)


def _texts(message: Any) -> Iterator[str | bytes]:
    """Yield the names in a message and in all within it; one that is no Unicode is in bytes."""
    if message.DESCRIPTOR.name == "TensorProto":  # to list its fields would copy the weight
        yield message.name
        yield from (text for entry in message.external_data for text in _texts(entry))
        return
    for field, value in message.ListFields():
        if field.name in _REMARKS:
            continue
        values = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
        if field.type == field.TYPE_STRING:
            yield from values
        elif field.type == field.TYPE_MESSAGE:
            for inner in values:
                yield from _texts(inner)


def library(name: str) -> Any:
    """Import a module of the extra ``onnx``; the error says how to get it."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise EcoflapError(f"{name} cannot be imported ({error}). {_INSTALL}") from error


def numpy_type(data_type: int, where: str) -> np.dtype[Any]:
    """Give the type of numpy, or of ml_dtypes, that a number of ``onnx.TensorProto.DataType`` stands for.

    :param where: The file and tensor, for the message.
    """
    from onnx import helper

    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(data_type))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{where}: there is no tensor type of number {data_type}") from error


def elements(shape: tuple[int, ...], where: str) -> int:
    """Count the elements of a shape; one with negative sizes, or with more than 2³¹ elements, is refused."""
    # Sizes of a dimension first: an empty tensor of an absurd shape is refused too.
    if any(size < 0 or size > MOST for size in shape) or prod(shape) > MOST:
        raise FormatError(f"{where}: the shape {list(shape)} is negative somewhere or has more than 2^31 elements")
    return prod(shape)


def size_of(opened: Opened, tensor: Any) -> int:
    """Count the bytes that a tensor's elements take."""
    where = f"{opened.where}: {tensor.name}"
    dtype = numpy_type(tensor.data_type, where)
    bits = 8 * dtype.itemsize
    if narrow := re.match(r"u?int([24])$|float(4)", dtype.name):
        bits = int(narrow[1] or narrow[2])
    return (elements(tuple(tensor.dims), where) * bits + 7) // 8


def is_external(tensor: Any) -> bool:
    """Say whether a tensor's data are in another file."""
    return bool(tensor.data_location == tensor.EXTERNAL)


def place_of(opened: Opened, tensor: Any) -> tuple[Path, int]:
    """Give the file that holds a tensor's external data, and where in it they begin.

    :raises FormatError: Where not all of them are there.
    """
    where = f"{opened.where}: {tensor.name}"
    expected = size_of(opened, tensor)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", expected))
    except ValueError as error:
        raise FormatError(f"{where}: the offset or length of its external data is no number") from error
    if offset < 0 or length != expected:
        raise FormatError(f"{where}: its external data are {length} bytes at {offset}; its shape takes {expected}")
    path = _beside(opened, entries.get("location", ""), where)
    if not path.is_file():
        raise FormatError(f"{where}: its external data are in {path}, which is not there. Put it beside the model.")
    if (size := path.stat().st_size) < offset + length:
        raise FormatError(f"{where}: {path} is truncated: it has {size} bytes, {offset + length} are needed")
    return path, offset


def _beside(opened: Opened, location: str, where: str) -> Path:
    if opened.path is None:
        raise FormatError(f"{where}: its data are in another file. Give the model's path, or load it with them.")
    readings = (PurePosixPath(location), PureWindowsPath(location))
    if not location or any(path.is_absolute() or path.drive or ".." in path.parts for path in readings):
        raise FormatError(f"{where}: its external data are said to be at {location!r}, outside the model's folder")
    return opened.path.parent / location


def read(opened: Opened, tensor: Any) -> NDArray[Any]:
    """Read a tensor's elements, in memory of their own or in the model's."""
    where = f"{opened.where}: {tensor.name}"
    dtype, shape = numpy_type(tensor.data_type, where), tuple(tensor.dims)
    size = elements(shape, where)
    if is_external(tensor):
        path, offset = place_of(opened, tensor)
        # Mapped and not read: half the time, and only while the array is used.
        raw = np.memmap(path, np.uint8, "r", offset, (size * dtype.itemsize,)) if size else np.empty(0, np.uint8)
        return np.asarray(raw).view(dtype).reshape(shape)
    if tensor.HasField("raw_data"):
        raw = tensor.raw_data
        if len(raw) != size * dtype.itemsize:
            raise FormatError(f"{where}: it has {len(raw)} bytes where its shape takes {size * dtype.itemsize}")
        return np.frombuffer(raw, dtype).reshape(shape)
    return _from_fields(tensor, where)


def _from_fields(tensor: Any, where: str) -> NDArray[Any]:
    """Read a tensor that was not written as bytes but as a list of numbers."""
    from onnx import numpy_helper

    try:
        found: NDArray[Any] = numpy_helper.to_array(tensor)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{where}: its data do not fit its shape and type ({error})") from error
    return found
