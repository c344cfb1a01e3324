"""Make an ordinary ONNX file of a packed one: standard operators and dense initializers, written weight by weight."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ecoflap.core.disk.whole_files import whole_file
from ecoflap.core.errors import EcoflapError, FormatError
from ecoflap.exporters.onnx.decode import Multiplied, Packed, packed_in
from ecoflap.exporters.onnx.forms.form import DOMAIN
from ecoflap.exporters.onnx.forms.rows import look_up
from ecoflap.exporters.onnx.tensors import Opened, is_external, numpy_type, opened, place_of, size_of

_EMBEDDED = 1_000_000_000  # bytes: a model of more has its weights in a file beside it, for protobuf ends at 2 GB
_SMALL = 1024  # bytes: what stays in the model, so that shapes can be inferred without the other file
_ALIGNED = 64
_PIECE = 1 << 24  # bytes copied at a time


def write_dense(path: Path, target: Path) -> Path:
    """Write the model at ``path`` to ``target`` with every weight dense.

    Weights of a large model go into ``target``.data beside it. The target is written whole or not at all: what was
    there stays until all of the new one is on the disk.

    :return: The target.
    :raises FormatError: Where a weight is damaged, or none is packed.
    :raises EcoflapError: Where the target is a file of the model that is read.
    """
    source = opened(path)
    found = packed_in(source)
    if not found:
        raise FormatError(f"{path}: no weight in it is packed: it is an ordinary ONNX file already. Use it as it is.")
    data = target.with_name(f"{target.name}.data")
    _check_target(source, (target, data))
    without(source, found)
    with ExitStack() as stack:
        # Left in the opposite order: the weights are in place before the model that needs them.
        model = stack.enter_context(whole_file(target))
        if _bytes(source, found) > _EMBEDDED:
            weights = stack.enter_context(whole_file(data))
            with weights.open("wb") as file:
                _write_beside(source, found, file, data.name)
            model.write_bytes(source.proto.SerializeToString())
            # An old model would be wrong beside new weights, if this process were killed between the two.
            target.unlink(missing_ok=True)
        else:
            _embed(source, found)
            model.write_bytes(source.proto.SerializeToString())
    return target


def write_apart(path: Path, folder: Path, *, decode_all: bool) -> Path:
    """Write the model at ``path`` with its weights in a file beside it, from where a runtime maps them.

    :param folder: An empty one.
    :param decode_all: Write matrices dense too that are multiplied as they are; otherwise they are checked.
    :return: The model.
    :raises FormatError: Where a weight is damaged.
    """
    source, target = opened(path), folder / path.name
    found, data = packed_in(source), folder / f"{path.name}.data"
    if not decode_all:
        for matrix in found:
            if isinstance(matrix, Multiplied):
                matrix.check()
        found = [packed for packed in found if not isinstance(packed, Multiplied)]
    without(source, found)
    with data.open("wb") as file:
        _write_beside(source, found, file, data.name)
    target.write_bytes(source.proto.SerializeToString())
    return target


def without(source: Opened, found: Sequence[Packed]) -> None:
    """Take packed weights out of a model: their nodes, the initializers and functions that nothing else uses.

    What is left needs dense initializers of the weights' names.
    """
    proto, weights = source.proto, {packed.name for packed in found}
    for packed in found:
        if isinstance(packed, Multiplied):
            _multiply_dense(proto.graph.node, packed)
    dropped = {number for packed in found for number in packed.nodes}
    inner = {output for number in dropped for output in proto.graph.node[number].output}
    lookups = {number: one.name for one in found if isinstance(one, Multiplied) for number in one.lookups}
    _look_up_dense(proto.graph.node, lookups, dropped)
    needed = {*_used(proto.graph.node), *(output.name for output in proto.graph.output)}
    unused = {name for packed in found for name in packed.initializers} - needed
    _drop(proto.graph.initializer, _numbers(proto.graph.initializer, unused))
    _drop(proto.graph.value_info, _numbers(proto.graph.value_info, weights | unused | inner))
    del proto.graph.sparse_initializer[:]
    called = {node.op_type for node in proto.graph.node if node.domain == DOMAIN}
    functions, imports = proto.functions, proto.opset_import
    _drop(functions, {n for n, one in enumerate(functions) if one.domain == DOMAIN and one.name not in called})
    if not called:
        _drop(imports, {n for n, one in enumerate(imports) if one.domain == DOMAIN})


def _multiply_dense(nodes: Any, packed: Multiplied) -> None:
    """Have a matrix product in the place of each one with a packed matrix."""
    for node in (nodes[number] for number in packed.products):
        x = node.input[0]
        del node.input[:], node.attribute[:]
        node.input.extend([x, packed.name])
        node.op_type, node.domain = "MatMul", ""


def _look_up_dense(nodes: Any, lookups: Mapping[int, str], dropped: Collection[int]) -> None:
    """Have standard operators in the places of lookups, each by its number with its matrix; and drop nodes."""
    for number in sorted({*lookups, *dropped}, reverse=True):  # those before it keep their numbers
        node = nodes.pop(number)
        if number in lookups:
            for one in reversed(look_up(node.input[0], lookups[number], node.output[0])):
                nodes.insert(number, one)


def _numbers(field: Any, names: set[str]) -> set[int]:
    return {number for number, entry in enumerate(field) if entry.name in names}


def _drop(field: Any, numbers: set[int]) -> None:
    """Delete from a list in place: copying what stays would copy its data."""
    for number in sorted(numbers, reverse=True):
        del field[number]


def _used(nodes: Sequence[Any]) -> Iterator[str]:
    """Yield the names that nodes read, those in the branches of conditions and loops too."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                yield from _used(graph.node)
                yield from (output.name for output in graph.output)


def _check_target(source: Opened, targets: tuple[Path, ...]) -> None:
    tensors = [tensor for tensor in source.proto.graph.initializer if is_external(tensor)]
    own = {source.path, *(place_of(source, tensor)[0] for tensor in tensors)}
    for target in targets:
        if target.exists() and any(os.path.samefile(target, path) for path in own if path):
            raise EcoflapError(f"{target} belongs to the model that is read. Choose another name for the dense one.")


def _bytes(source: Opened, found: Sequence[Packed]) -> int:
    dense = sum(prod(packed.shape) * numpy_type(packed.data_type, packed.name).itemsize for packed in found)
    return dense + sum(size_of(source, tensor) for tensor in _plain(source))


def _plain(source: Opened) -> Iterator[Any]:
    """Yield the initializers that are bytes; the others, texts and lists of numbers, are small and stay as they are."""
    return (one for one in source.proto.graph.initializer if is_external(one) or one.HasField("raw_data"))


def _embed(source: Opened, found: Sequence[Packed]) -> None:
    for tensor in _plain(source):
        if is_external(tensor):
            tensor.raw_data = b"".join(_pieces(source, tensor))
            del tensor.external_data[:]
            tensor.ClearField("data_location")
    for packed in found:
        dense = packed.fill(np.zeros)
        source.proto.graph.initializer.add(
            name=packed.name, data_type=packed.data_type, dims=packed.shape, raw_data=dense.tobytes()
        )


def _write_beside(source: Opened, found: Sequence[Packed], file: BinaryIO, name: str) -> None:
    for tensor in _plain(source):
        if is_external(tensor) or len(tensor.raw_data) > _SMALL:
            _point(tensor, name, _append(file, _pieces(source, tensor)))
    for packed in found:
        dense = packed.fill(np.zeros).reshape(-1).view(np.uint8)
        tensor = source.proto.graph.initializer.add(name=packed.name, data_type=packed.data_type, dims=packed.shape)
        _point(tensor, name, _append(file, iter([dense.data])))


def _append(file: BinaryIO, pieces: Iterator[bytes | memoryview]) -> tuple[int, int]:
    """Write at a place that every type is aligned to; return that place, and how much was written."""
    start = file.seek(-(-file.tell() // _ALIGNED) * _ALIGNED)
    return start, sum(file.write(piece) for piece in pieces)


def _pieces(source: Opened, tensor: Any) -> Iterator[bytes | memoryview]:
    if not is_external(tensor):
        yield tensor.raw_data
        return
    (path, offset), left = place_of(source, tensor), size_of(source, tensor)
    with path.open("rb") as file:
        file.seek(offset)
        while left and (piece := file.read(min(left, _PIECE))):
            left -= len(piece)
            yield piece


def _point(tensor: Any, name: str, place: tuple[int, int]) -> None:
    """Say that a tensor's data are in another file."""
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = tensor.EXTERNAL
    for key, value in (("location", name), ("offset", place[0]), ("length", place[1])):
        tensor.external_data.add(key=key, value=str(value))
