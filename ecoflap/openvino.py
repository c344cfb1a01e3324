"""Run models that were exported for OpenVINO: ``compile_model`` asks it to multiply from packed weights where it can.

``openvino.Core().compile_model(path, "CPU")`` runs them too, with dense weights. Nothing here imports torch.
"""

import os
import platform
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ecoflap.core.disk.paths import from_here
from ecoflap.core.disk.reading import refuse_folder
from ecoflap.core.errors import EcoflapError, FormatError
from ecoflap.core.sealing.sums import check_sums
from ecoflap.exporters.openvino.openvino_core import last_line, openvino_core

__all__ = ["compile_model"]

RATE = "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"
"""OpenVINO packs matrices of eight bits that are this much zero, where the CPU has AMX."""

_SPARSITY = ["ecoflap", "sparsity"]
_FLAGS = Path("/proc/cpuinfo")


def compile_model(path: str | os.PathLike[str], *, config: Mapping[str, Any] | None = None) -> Any:
    """Make a compiled model of OpenVINO for the CPU, from a file of the exporter ``openvino``.

    OpenVINO is asked to pack every matrix of eight bits, as all of them are at least as sparse as the file says. Where
    it is known that the CPU lacks AMX a warning says that nothing is gained in time: OpenVINO multiplies dense then.
    Any other model is compiled as it is.

    Unless it is told otherwise, OpenVINO multiplies in bfloat16 what is not in eight bits where the CPU does so (one
    with AVX-512 BF16 or AMX), which is faster and moves an output by hundredths of its size. The checks in
    ``manifest.json`` are made in float32, which ``config={"INFERENCE_PRECISION_HINT": "f32"}`` asks for.

    :param path: The ``.xml``, beside its ``.bin``. Both are held to the ``SHA256SUMS`` that lies with them, if there is
        one.
    :param config: OpenVINO's properties, by their names; they go before those here.
    :return: An ``openvino.CompiledModel``.
    :raises FormatError: Where the file is not there, is not what was written, or OpenVINO cannot read it.
    :raises EcoflapError: Where OpenVINO does not compile it, as with a property that it does not know.
    """
    core = _core()
    file = from_here(path)
    refuse_folder(file, ".xml")
    model = _model(core, file)
    settings: dict[str, Any] = {}
    if model.has_rt_info(_SPARSITY):
        settings[RATE] = str(_rate(model, file))
        if has_amx() is False:
            warnings.warn(
                f"{path}: this CPU has no AMX, without which OpenVINO multiplies with the zeros too: a pruned model "
                f"takes the time of a dense one in eight bits.",
                stacklevel=2,
            )
    try:
        return core.compile_model(model, "CPU", settings | dict(config or {}))
    except RuntimeError as error:
        own = f" It was given config={dict(config)}." if config else ""
        raise EcoflapError(f"{file}: OpenVINO does not compile it: {last_line(error)}.{own}") from error


def has_amx() -> bool | None:
    """Say whether the CPU multiplies tiles of eight bits; None where the system does not tell."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        return "amx_int8" in _FLAGS.read_text(encoding="utf-8").split()
    except OSError:
        return None


def _core() -> Any:
    try:
        return openvino_core()
    except ImportError as error:
        raise EcoflapError(
            f"openvino cannot be imported ({error}). Install it: pip install 'ecoflap[openvino]'."
        ) from error


def _model(core: Any, path: Path) -> Any:
    files = (path, path.with_suffix(".bin"))
    for file in files:
        if not file.is_file():
            raise FormatError(f"{file}: there is no such file. Give the path of an .xml with its .bin beside it.")
    check_sums(path.parent, "Export it again.", only={file.name for file in files}.__contains__)
    try:
        return core.read_model(path)
    except RuntimeError as error:
        raise FormatError(f"{path}: OpenVINO cannot read it: {last_line(error)}. Export it again.") from error


def _rate(model: Any, path: Path) -> float:
    said = model.get_rt_info(_SPARSITY).astype(str)
    try:
        rate = float(said)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise FormatError(f"{path}: it says that {said!r} of its weights are zero, which is no share. Export it again.")
    return rate
