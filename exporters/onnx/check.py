"""Compare an exported ONNX file, run in onnxruntime, with the view of the torch model that it was made from."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ecoflap.core.contracts.records import Check, StoredTensor, View
from ecoflap.core.errors import ModelError, one_line
from ecoflap.core.kernel.library_file import why_library_absent
from ecoflap.exporters.onnx.dense import write_apart
from ecoflap.exporters.onnx.forms.bitmask import BITMASK
from ecoflap.exporters.onnx.forms.form import COO
from ecoflap.exporters.onnx.forms.pattern import PATTERN
from ecoflap.exporters.onnx.forms.product import EXACT, FORMS, INT8
from ecoflap.exporters.onnx.settings import Settings
from ecoflap.exporters.shared.comparison import Comparison, sizes_text

Examples: TypeAlias = tuple[Mapping[str, Tensor], ...]
"""Inputs of a view by name, of different sizes."""

ALONE = "onnxruntime"
"""What a manifest calls the runtime that a file is compared in, where nothing is added to it."""

WITH_KERNELS = "onnxruntime with ecoflap's kernels"
"""The same where the library of kernels multiplies its packed matrices."""

DECODED = "onnxruntime with decoded weights"
"""The same of rounded weights that were written out dense, where no run of the file alone shows that they are right."""

ROUNDED = ", weights rounded in torch too"
"""Ends what a manifest calls the comparison that shows whether weights in int8 were written right."""

ROUNDED_TOLERANCE = 1e-3
"""How far an output may be off then, in shares of its largest magnitude, unless a user allows more."""

KERNELS_TOLERANCE = 0.25
"""The same where kernels round x too, to int16: that makes 0.07 of SmolLM2's logits on made-up keys and values, and
what is wrong altogether is farther off."""

UNPACKING = {BITMASK.name: 30, PATTERN.name: 15, EXACT.form: 45, INT8.form: 45}
"""Bytes of memory that onnxruntime takes for a weight of a form while it loads a file."""

UNPACKED_AT_MOST = 4 * 10**9
"""Bytes that a reader's machine is likely to have for that."""


class Checked(NamedTuple):
    """Holds what came of comparing a file.

    :param checks: Each comparison that it was held to.
    :param rounding: How far an output is from the model's at most, in shares of its largest magnitude, where weights
        are rounded to int8; None where none are.
    """

    checks: tuple[Check, ...]
    rounding: float | None


@dataclass(frozen=True)
class Computed:
    """Says what a view computes in torch.

    :param examples: Inputs by name, in the types that the file takes.
    :param outputs: Of each what the model makes of it.
    :param rounded: What it makes of it with those weights rounded that are int8 in the file; None where none are.
    """

    examples: Examples
    outputs: Sequence[Sequence[Tensor]]
    rounded: Sequence[Sequence[Tensor]] | None = None


def check_view(
    path: Path,
    view: View,
    computed: Computed,
    stored: Sequence[StoredTensor],
    settings: Settings,
    folder: Path | None,
) -> Checked:
    """Hold a file to the format's rules and to the model's outputs, in each way that it can be run here.

    What weights lose by being rounded to int8 is told, and refused only where a user has set a tolerance: on made-up
    keys and values it may be most of an output, as of SmolLM2, of whose perplexity it costs nothing.

    :param folder: Where weights may lie while the file is run; None where memory takes them.
    :raises ModelError: Where an output is out of its tolerance, or onnxruntime cannot run the file.
    """
    _check_rules(path, view, settings)
    ways = _runtimes(path, view, stored, folder)
    with ExitStack() as stack:
        if computed.rounded is not None and ALONE not in ways:  # kernels, which round x, are no proof of an order
            inside = Path(stack.enter_context(TemporaryDirectory(dir=folder or path.parent)))
            ways = {DECODED: partial(_mapped_session, path, view, inside, False), **ways}
        found = [_checked(path.name, view, computed, settings, runtime, opened()) for runtime, opened in ways.items()]
    rounding = [one.rounding for one in found if one.rounding is not None]
    return Checked(tuple(check for one in found for check in one.checks), max(rounding, default=None))


def _check_rules(path: Path, view: View, settings: Settings) -> None:
    import onnx

    try:
        # ONNX cannot tell the shapes of a graph with sparse initializers.
        onnx.checker.check_model(str(path), full_check=settings.storage.weights != COO)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"view {view.name!r}: what torch {torch.__version__} wrote is against the rules of ONNX: "
            f"{one_line(error)[:300]}. Export other views, or use the exporter torchscript or safetensors."
        ) from error


def _checked(file: str, view: View, computed: Computed, settings: Settings, runtime: str, session: Any) -> Checked:
    """Hold one way to run a file to the model, or where the file has rounded weights to the model with those."""
    numbers = {id(inputs): number for number, inputs in enumerate(computed.examples)}
    run = cache(lambda number: _run(session, view, computed.examples[number]))

    def compared(outputs: Sequence[Sequence[Tensor]], what: str) -> Comparison:
        def model(inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
            return outputs[numbers[id(inputs)]]

        return Comparison(view, computed.examples, model, lambda inputs: run(numbers[id(inputs)]), what)

    way_out, whole = "Set a larger tolerance, if that is near enough", compared(computed.outputs, runtime)
    if computed.rounded is None:
        way_out += "" if settings.storage.values in (None, torch.float32) else ", or values: auto"
        return Checked((whole.check(file, settings.allowed, f"{way_out}."),), None)
    way_out += ", or values: auto, embeddings: dense."
    usual = KERNELS_TOLERANCE if runtime == WITH_KERNELS else ROUNDED_TOLERANCE
    close = compared(computed.rounded, f"{runtime}{ROUNDED}")
    checks = [replace(close.check(file, max(usual, settings.tolerance or 0.0), way_out), is_rounded=True)]
    if settings.tolerance is not None:
        checks.append(whole.check(file, settings.tolerance, way_out))
    return Checked(tuple(checks), whole.worst().share)


def _runtimes(
    path: Path, view: View, stored: Sequence[StoredTensor], folder: Path | None
) -> Mapping[str, Callable[[], Any]]:
    """Name the ways to run a file that there are here, and what opens it for each."""
    from ecoflap.onnx import load_session

    multiplied = not why_library_absent() and any(tensor.form in FORMS for tensor in stored)
    if folder is not None:
        return {WITH_KERNELS if multiplied else ALONE: partial(_mapped_session, path, view, folder, multiplied)}
    alone = {ALONE: partial(_session, path, view, stored)}
    if not multiplied:
        return alone
    with_kernels = {WITH_KERNELS: partial(load_session, path)}
    return with_kernels if needs_own_loader(stored) else {**alone, **with_kernels}


def unpacking_bytes(stored: Sequence[StoredTensor]) -> int:
    """Estimate the memory that onnxruntime takes for packed weights, while it loads a file."""
    return sum(UNPACKING.get(tensor.form, 0) * torch.Size(tensor.shape).numel() for tensor in stored)


def needs_own_loader(stored: Sequence[StoredTensor]) -> bool:
    """Say whether that is more than a reader's machine is likely to have."""
    return unpacking_bytes(stored) > UNPACKED_AT_MOST


def _session(path: Path, view: View, stored: Sequence[StoredTensor]) -> Any:
    import onnxruntime

    if needs_own_loader(stored):
        from ecoflap.onnx import load_session

        return load_session(path)
    return _opened(path, view, onnxruntime.SessionOptions())


def _mapped_session(path: Path, view: View, folder: Path, multiplied: bool) -> Any:
    """Run a file whose weights onnxruntime maps, decoded, from another one, and copies none of them.

    :param multiplied: Whether matrices that kernels multiply stay as they are.
    """
    import onnxruntime

    from ecoflap.onnx import library

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # which folds constants
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    if multiplied:
        options.register_custom_ops_library(str(library()))
    return _opened(write_apart(path, folder, decode_all=not multiplied), view, options)


def _opened(path: Path, view: View, options: Any) -> Any:
    import onnxruntime

    options.log_severity_level = 3  # errors, which are raised too
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as where it lacks an operator for a type
        raise ModelError(
            f"view {view.name!r}: onnxruntime cannot load it: {error}. Export other views, or use the exporter "
            f"torchscript or safetensors."
        ) from error


def _run(session: Any, view: View, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    try:
        outputs = session.run(list(view.outputs), {name: tensor.numpy() for name, tensor in inputs.items()})
    except Exception as error:  # onnxruntime has a dozen classes of its own, with no common base
        raise ModelError(
            f"view {view.name!r}: onnxruntime cannot run it on inputs of sizes {sizes_text(inputs)}: {error}"
        ) from error
    return [torch.from_numpy(output) for output in outputs]
