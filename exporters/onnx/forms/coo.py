"""Define the coo form: ONNX's own sparse initializers, each non-zero value with the number of its place.

Indices are written as ``int64_data``, where protobuf gives a number as few bytes as it needs: 3 up to 2²¹ elements, 4
up to 2²⁸. As raw bytes they take 8, and at 50 % of zeros the file would be larger than the dense one. Values and
indices lie in the ``.onnx`` file itself: tools of onnx know no external data for them, so it has to stay under 2 GB.
Onnxruntime makes such a weight dense when it loads the model; OpenVINO refuses it, and so does onnx's strict shape
inference.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecoflap.core.contracts.records import StoredTensor
from ecoflap.core.errors import EcoflapError, unknown
from ecoflap.exporters.onnx.tensors import Opened, read

_OVERHEAD = 64
"""Bytes that a sparse initializer takes beside its values and indices, and a dense one does not."""

_MOST = 2**31 - 2**26
"""Bytes that protobuf can write, less room for the graph."""


def to_coo(proto: Any, names: Mapping[str, str]) -> list[StoredTensor]:
    """Make pruned weights sparse initializers, in place, each only where it gets smaller so.

    :param proto: An ``onnx.ModelProto`` with its weights in it: ``onnx_ir.to_proto(model)``. It is written by
        ``onnx.save_model(..., save_as_external_data=True)`` where the rest of it is large.
    :param names: Initializers of the graph, and for each the pruned layer's name.
    :return: One for each of ``names``, in their order.
    """
    graph, source, layers = proto.graph, Opened(proto, None), list(names.values())
    numbers = {tensor.name: number for number, tensor in enumerate(graph.initializer)}
    inputs = {value.name for value in graph.input}
    if problems := [
        f"{layer}: the graph has {unknown('initializer', name, list(numbers))}"
        for name, layer in names.items()
        if name not in numbers
    ]:
        raise EcoflapError(*problems)
    stored, sparse = [], []
    for name, layer in names.items():
        weight = read(source, graph.initializer[numbers[name]])
        encoded = None if name in inputs else _encoded(graph.initializer[numbers[name]], weight)
        called = layer if layers.count(layer) == 1 else name
        size = weight.nbytes if encoded is None else _size(weight)
        form = "dense" if encoded is None else "coo"
        stored.append(StoredTensor(called, form, weight.shape, int(np.count_nonzero(weight)), weight.nbytes, size))
        if encoded is not None:
            sparse.append(encoded)
    if (total := sum(one.stored_bytes for one in stored if one.form == "coo")) > _MOST:
        raise EcoflapError(
            f"sparse initializers would take {total / 1e9:.1f} GB, and they have to fit into one file of 2 GB. Use "
            f"'weights: bitmask', which can lie in a file of its own."
        )
    for one in sparse:
        del graph.initializer[next(n for n, tensor in enumerate(graph.initializer) if tensor.name == one.values.name)]
    graph.sparse_initializer.extend(sparse)
    return stored


def _encoded(tensor: Any, weight: NDArray[Any]) -> Any:
    """Make the ``onnx.SparseTensorProto``; None where it would not be smaller."""
    from onnx import SparseTensorProto, TensorProto

    if weight.ndim == 0 or _size(weight) + _OVERHEAD >= weight.nbytes:
        return None
    places = np.flatnonzero(weight)
    values = np.ascontiguousarray(weight.reshape(-1)[places])
    sparse = SparseTensorProto(dims=weight.shape)
    raw = values.tobytes()
    sparse.values.CopyFrom(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[len(values)], raw_data=raw))
    sparse.indices.CopyFrom(TensorProto(name=f"{tensor.name}.indices", data_type=TensorProto.INT64, dims=[len(values)]))
    sparse.indices.int64_data.extend(places.tolist())
    return sparse


def _size(weight: NDArray[Any]) -> int:
    """Count the bytes of values and indices: protobuf takes one more byte for an index with every 7 bits it has."""
    flat, nonzeros = weight.reshape(-1), int(np.count_nonzero(weight))
    bounds = [2**bits for bits in range(7, 35, 7) if 2**bits < prod(weight.shape)]
    return nonzeros * (weight.itemsize + 1) + sum(int(np.count_nonzero(flat[bound:])) for bound in bounds)
