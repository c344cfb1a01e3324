"""Run packed ONNX models: ``load_session`` in less memory than onnxruntime alone, ``densify`` for every other runtime.

``onnxruntime.InferenceSession(path)`` runs a packed model as it is, with no help from here, but needs about 30 bytes of
memory for each packed weight while it loads it. Nothing here imports torch.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecoflap.exporters.onnx.decode import Packed, packed_in, unpacked
from ecoflap.exporters.onnx.dense import without, write_dense
from ecoflap.exporters.onnx.tensors import Opened, library, opened

__all__ = ["densify", "load_session"]

_FOLDER = "session.model_external_initializers_file_folder_path"


def load_session(
    path: str | os.PathLike[str], *, providers: Sequence[Any] | None = None, options: Any | None = None
) -> Any:
    """Make a session of onnxruntime for a packed model, whose weights are decoded and checked here.

    Its outputs are those of onnxruntime's own session, bit by bit. A model without packed weights is given to
    onnxruntime as it is.

    :param providers: As for ``onnxruntime.InferenceSession``.
    :param options: An ``onnxruntime.SessionOptions`` for this session alone: the weights are added to it.
    :return: An ``onnxruntime.InferenceSession``.
    :raises FormatError: Where a weight is damaged, or the file is no ONNX model.
    """
    runtime = library("onnxruntime")
    source = opened(Path(path))
    options = runtime.SessionOptions() if options is None else options
    found = packed_in(source)
    if not found:
        return runtime.InferenceSession(os.fspath(path), options, providers=providers)
    weights = unpacked(found, np.zeros)
    without(source, found)
    for packed in found:
        _announce(source, packed)
    options.add_external_initializers(list(weights), [_value(runtime, weights[one.name], one) for one in found])
    options.add_session_config_entry(_FOLDER, str(Path(path).parent.absolute()))
    return runtime.InferenceSession(source.proto.SerializeToString(), options, providers=providers)


def densify(path: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Write a packed model as an ordinary ONNX file, whole or not at all; any runtime of ONNX reads it.

    A model of more than 1 GB has its weights in ``target``.data beside it.

    :return: The target.
    :raises FormatError: Where a weight is damaged, or none is packed.
    """
    return write_dense(Path(path), Path(target))


def _announce(source: Opened, packed: Packed) -> None:
    """Announce an initializer that onnxruntime is given apart, as one whose data are in a file; no file is opened."""
    tensor = source.proto.graph.initializer.add(name=packed.name, data_type=packed.data_type, dims=packed.shape)
    tensor.data_location = tensor.EXTERNAL
    tensor.external_data.add(key="location", value="unpacked")


def _value(runtime: Any, weight: NDArray[Any], packed: Packed) -> Any:
    if weight.dtype.name == "bfloat16":
        # numpy has no bfloat16 of its own, and onnxruntime looks at numpy's own types only
        return runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(weight.view(np.uint16), packed.data_type)
    return runtime.OrtValue.ortvalue_from_numpy(weight)
