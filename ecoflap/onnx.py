"""Run packed ONNX models: ``load_session`` in less memory than onnxruntime alone, ``densify`` for every other runtime.

``onnxruntime.InferenceSession(path)`` runs a packed model as it is, with no help from here, but needs about 30 bytes of
memory for each packed weight while it loads it. Of a model that was exported with ``weights: packed_op`` matrices stay
packed where ``library`` is registered with it, as ``load_session`` does. Nothing here imports torch.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecoflap.core.contracts.answers import shown
from ecoflap.core.disk.paths import from_here
from ecoflap.core.errors import FormatError, KernelError, one_line
from ecoflap.core.kernel import library_file
from ecoflap.exporters.onnx.decode import Multiplied, Packed, packed_in, unpacked
from ecoflap.exporters.onnx.dense import without, write_dense
from ecoflap.exporters.onnx.tensors import Opened, opened
from ecoflap.exporters.onnx.tensors import library as needed

__all__ = ["densify", "library", "load_session"]

_REFUSAL = "ecoflap: "
"""What stands before the words of the library in those of onnxruntime."""

_TWICE = "already set in registry"
"""What onnxruntime says where a library's operators are registered and come again."""

_OF_A_FILE = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf")
"""Classes of onnxruntime's errors about what stands in a file."""

_FOLDER = "session.model_external_initializers_file_folder_path"


def load_session(
    path: str | os.PathLike[str], *, providers: Sequence[Any] | None = None, options: Any | None = None
) -> Any:
    """Make a session of onnxruntime for a packed model, whose weights are checked here.

    Matrices that the library of kernels multiplies stay packed; it is registered here. Without it they are decoded too,
    with a warning that says what is missing. All other weights are decoded, and outputs are those of onnxruntime's own
    session, bit by bit. A model without packed weights is given to onnxruntime as it is.

    :param providers: As for ``onnxruntime.InferenceSession``.
    :param options: An ``onnxruntime.SessionOptions`` for this session alone: the weights are added to it.
    :return: An ``onnxruntime.InferenceSession``.
    :raises FormatError: Where a weight is damaged, or the file is no ONNX model that onnxruntime takes.
    :raises KernelError: Where the library is there and cannot be used, ``ECOFLAP_KERNEL`` names no path that can, or
        ``options`` are none of onnxruntime's.
    """
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions() if options is None else options
    if not isinstance(options, runtime.SessionOptions):
        raise KernelError(f"options is {shown(options)}; give an onnxruntime.SessionOptions that has them")
    if not isinstance(path, str | os.PathLike):
        raise FormatError(f"the path of a model is wanted, and not {shown(path)}: the weights may lie beside it")
    # What was read of the file is let go before onnxruntime reads it; what was decoded stays until it has been copied.
    model, _weights = _prepared(runtime, from_here(path), options)
    try:
        return runtime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # onnxruntime has a dozen classes of its own, with no common base
        if said := str(error).partition(_REFUSAL)[2]:
            raise KernelError(f"{path}: {said}") from error
        if _TWICE in str(error):
            raise KernelError(
                f"{path}: the options have the library of kernels already. Give load_session options without it, for "
                f"it registers it itself; or make an onnxruntime.InferenceSession of them."
            ) from error
        if type(error).__name__ in _OF_A_FILE:
            raise FormatError(
                f"{path}: onnxruntime does not take it: {one_line(error)}. It may be damaged, lack a file beside it, "
                f"or need a newer onnxruntime, other operators, or other providers and options."
            ) from error
        raise


def _prepared(runtime: Any, path: Path, options: Any) -> tuple[str | bytes, list[Any]]:
    """Check all weights and decode those that no kernel multiplies.

    :return: What onnxruntime is to read, and the decoded weights, which the options point at.
    """
    source = opened(path)
    found = packed_in(source)
    multiplied = [one for one in found if isinstance(one, Multiplied)]
    if multiplied and (reason := library_file.why_library_absent()):
        text = f"{path}: its matrices are decoded, and take the memory of dense ones: {reason}."
        warnings.warn(text, stacklevel=3)  # for who calls load_session
    elif multiplied:
        for matrix in multiplied:
            matrix.check()
        _register(options)
        found = [one for one in found if not isinstance(one, Multiplied)]
    return _decoded(runtime, source, found, options) if found else (str(path), [])


def _decoded(runtime: Any, source: Opened, found: Sequence[Packed], options: Any) -> tuple[bytes, list[NDArray[Any]]]:
    """Take weights out of a model and into the options, decoded."""
    weights = unpacked(found, np.zeros)
    without(source, found)
    for packed in found:
        _announce(source, packed)
    values = [_value(runtime, weights[one.name], one) for one in found]
    try:
        options.add_external_initializers(list(weights), values)
    except RuntimeError as error:
        raise KernelError(
            f"{source.where}: the options do not take its weights: {one_line(error)}. Give load_session options of "
            "its own for each session."
        ) from error
    options.add_session_config_entry(_FOLDER, str(Path(source.where).parent.absolute()))
    return source.proto.SerializeToString(), list(weights.values())


def library() -> str:
    """Give the path of the library of kernels, for ``SessionOptions.register_custom_ops_library``, by which a session
    takes its operators.

    :raises KernelError: Where there is none, or it is for another CPU, of another version or cut off.
    """
    if isinstance(reason := library_file.opened_at(library_file.LIBRARY_FILE), str):
        raise KernelError(reason)
    return str(library_file.LIBRARY_FILE)


def densify(path: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Write a packed model as an ordinary ONNX file, whole or not at all; any runtime of ONNX reads it.

    A model of more than 1 GB has its weights in ``target``.data beside it.

    :return: The target.
    :raises FormatError: Where a weight is damaged, or none is packed.
    """
    return write_dense(from_here(path), from_here(target))


def _register(options: Any) -> None:
    file = library()
    try:
        options.register_custom_ops_library(file)
    except Exception as error:  # onnxruntime has a dozen classes of its own, with no common base
        raise KernelError(f"{file} cannot be used by onnxruntime: {error}. Install ecoflap again") from error


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
