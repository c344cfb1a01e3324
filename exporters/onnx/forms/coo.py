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
from ecoflap.exporters.onnx.forms.form import COO
from ecoflap.exporters.onnx.scratch import Keep, in_memory

_OVERHEAD = 64
"""Bytes that a sparse initializer takes beside its values and indices, and a dense one does not."""

_TOGETHER = 1 << 20
"""Indices that are numbers of Python at a time, which take 40 bytes each."""

_MOST = 2**31 - 2**26
"""Bytes that protobuf can write, less room for the graph."""


def to_coo(
    model: Any, names: Mapping[str, str], keep: Keep = in_memory
) -> tuple[list[StoredTensor], dict[str, NDArray[np.uint8]]]:
    """Make sparse initializers of pruned weights, each only where it gets smaller so.

    :param model: An ``onnx_ir.Model`` with its weights, which stays as it is.
    :param names: Initializers of the graph, and for each the pruned layer's name.
    :param keep: Keeps what was made until all of it is written.
    :return: One for each of ``names``, in their order; and by the name of its initializer each
        ``onnx.SparseTensorProto`` as bytes, for :func:`ecoflap.exporters.onnx.embedded.save_embedded`.
    """
    graph, layers = model.graph, list(names.values())
    if problems := [
        f"{layer}: the graph has {unknown('initializer', name, list(graph.initializers))}"
        for name, layer in names.items()
        if name not in graph.initializers
    ]:
        raise EcoflapError(*problems)
    stored, sparse = [], {}
    for name, layer in names.items():
        value = graph.initializers[name]
        weight = value.const_value.numpy()
        size, nonzeros = _size(weight), int(np.count_nonzero(weight))
        shrinks = weight.ndim > 0 and not value.is_graph_input() and size + _OVERHEAD < weight.nbytes
        called = layer if layers.count(layer) == 1 else name
        taken, form = (size, COO) if shrinks else (weight.nbytes, "dense")
        stored.append(StoredTensor(called, form, weight.shape, nonzeros, weight.nbytes, taken))
        if shrinks:
            data = _encoded(name, int(value.const_value.dtype), weight).SerializeToString()
            sparse[name] = keep(np.frombuffer(data, np.uint8))
    if (total := sum(one.stored_bytes for one in stored if one.form == COO)) > _MOST:
        raise EcoflapError(
            f"sparse initializers would take {total / 1e9:.1f} GB, and they have to fit into one file of 2 GB. Use "
            f"'weights: bitmask', which can lie in a file of its own."
        )
    return stored, sparse


def _encoded(name: str, data_type: int, weight: NDArray[Any]) -> Any:
    """Make the ``onnx.SparseTensorProto``."""
    from onnx import SparseTensorProto, TensorProto

    places = np.flatnonzero(weight)
    values = np.ascontiguousarray(weight.reshape(-1)[places])
    sparse = SparseTensorProto(dims=weight.shape)
    raw = values.tobytes()
    sparse.values.CopyFrom(TensorProto(name=name, data_type=data_type, dims=[len(values)], raw_data=raw))
    sparse.indices.CopyFrom(TensorProto(name=f"{name}.indices", data_type=TensorProto.INT64, dims=[len(values)]))
    for first in range(0, len(places), _TOGETHER):
        sparse.indices.int64_data.extend(places[first : first + _TOGETHER].tolist())
    return sparse


def _size(weight: NDArray[Any]) -> int:
    """Count the bytes of values and indices: protobuf takes one more byte for an index with every 7 bits it has."""
    flat, nonzeros = weight.reshape(-1), int(np.count_nonzero(weight))
    bounds = [2**bits for bits in range(7, 35, 7) if 2**bits < prod(weight.shape)]
    return nonzeros * (weight.itemsize + 1) + sum(int(np.count_nonzero(flat[bound:])) for bound in bounds)
