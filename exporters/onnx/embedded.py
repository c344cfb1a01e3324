"""Write an ONNX file with its weights inside, one at a time, to the bytes that protobuf makes of the whole model.

Protobuf writes a message of all of its parts in memory, twice over: as objects and as bytes. What it writes is the
fields in the order of their numbers, and of a message of which some fields were left out the same without those. So the
graph is written in two halves, with its weights between them: a tag, a length, the tensor without its data, the data.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ecoflap.exporters.onnx.scratch import rows_of

_GRAPH, _INITIALIZER, _SPARSE, _RAW = 7, 5, 15, 9
"""Numbers of fields: of the graph in a model, of both kinds of weights in a graph, and of the bytes in a tensor."""

_STREAMED = 1 << 16
"""Bytes from which on a tensor is written apart from the rest."""

Piece: TypeAlias = bytes | memoryview


class _Message:
    """Is a message in pieces, whose length is known before they are there."""

    def __init__(self, length: int, pieces: Callable[[], Iterator[Piece]]) -> None:
        self.length, self.pieces = length, pieces

    def inside(self, field: int) -> "_Message":
        """Make it a field of another message."""
        head = _head(field, self.length)

        def pieces() -> Iterator[Piece]:
            yield head
            yield from self.pieces()

        return _Message(len(head) + self.length, pieces)


def save_embedded(model: Any, path: Path, sparse: Mapping[str, NDArray[np.uint8]] | None = None) -> None:
    """Write a model.

    :param model: An ``onnx_ir.Model``, which is afterwards what it was.
    :param sparse: By the names of initializers the ``SparseTensorProto`` in their places, as bytes.
    """
    sparse = sparse or {}
    proto = without_data(model, list(model.graph.initializers))
    tensors = [_tensor(value) for name, value in model.graph.initializers.items() if name not in sparse]
    graph = _joined(
        [
            _whole(_only(proto.graph, range(_INITIALIZER))),
            *(tensor.inside(_INITIALIZER) for tensor in tensors),
            _whole(_only(proto.graph, range(_INITIALIZER + 1, _SPARSE))),
            *(_of_bytes(data).inside(_SPARSE) for data in sparse.values()),
            _whole(_only(proto.graph, range(_SPARSE + 1, 1 << 16))),
        ]
    )
    before, behind = _only(proto, range(_GRAPH)), _only(proto, range(_GRAPH + 1, 1 << 16))
    with path.open("wb") as file:
        for piece in _joined([_whole(before), graph.inside(_GRAPH), _whole(behind)]).pieces():
            file.write(piece)


def without_data(model: Any, names: Iterable[str]) -> Any:
    """Give a model as a ``ModelProto`` without the initializers of these names."""
    import onnx_ir as ir

    values = [model.graph.initializers[name] for name in names]
    tensors = [value.const_value for value in values]
    for value in values:
        value.const_value = ir.tensor(np.zeros(0, np.uint8), name=value.name)
    try:
        proto = ir.to_proto(model)
    finally:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = tensor
    left_out = {value.name for value in values}
    for number in [n for n, tensor in enumerate(proto.graph.initializer) if tensor.name in left_out][::-1]:
        del proto.graph.initializer[number]
    return proto


def _tensor(value: Any) -> _Message:
    """Describe an initializer as it is written."""
    import onnx
    import onnx_ir as ir

    tensor = value.const_value
    tensor.name = value.name
    if tensor.nbytes < _STREAMED:
        return _whole(ir.to_proto(tensor))
    size = tensor.nbytes
    proto = onnx.TensorProto(dims=tensor.shape.numpy(), data_type=int(tensor.dtype), name=tensor.name)
    return _joined([_whole(proto), _Message(size, lambda: _data(tensor)).inside(_RAW)])


def _data(tensor: Any) -> Iterator[Piece]:
    for rows in rows_of(tensor.numpy()):
        yield np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data


def _joined(messages: Sequence[_Message]) -> _Message:
    def pieces() -> Iterator[Piece]:
        for message in messages:
            yield from message.pieces()

    return _Message(sum(message.length for message in messages), pieces)


def _whole(proto: Any) -> _Message:
    data: bytes = proto.SerializeToString()
    return _Message(len(data), lambda: iter([data]))


def _of_bytes(data: NDArray[np.uint8]) -> _Message:
    return _Message(len(data), lambda: iter([data.data]))


def _only(proto: Any, numbers: range) -> Any:
    """Copy a message with those of its fields that have these numbers."""
    copy = type(proto)()
    copy.CopyFrom(proto)
    for field, _ in proto.ListFields():
        if field.number not in numbers:
            copy.ClearField(field.name)
    return copy


def _head(field: int, length: int) -> bytes:
    """Write what stands before a field that has a length."""
    return _varint(field << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    groups = []
    while number >= 1 << 7:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])
