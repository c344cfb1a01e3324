"""Write one view of a model for OpenVINO: converted, its pruned matrices rounded, saved, compared with the model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import floor, isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.contracts.records import Check, Exported, StoredTensor, View
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.placement import tensors_of
from ecoflap.core.machine.arithmetic import lacks_eight_bits
from ecoflap.exporters.onnx.check import Examples
from ecoflap.exporters.onnx.view import PLACED, as_computed
from ecoflap.exporters.openvino.check import comparison, with_inputs_in_floats
from ecoflap.exporters.openvino.convert import Converted, converted
from ecoflap.exporters.openvino.int8 import Inputs, rounded
from ecoflap.exporters.openvino.matrices import Int8Writer, constants_of, narrow, product_of
from ecoflap.exporters.openvino.saved import save
from ecoflap.exporters.shared.pruned_weights import some

SPARSITY = ("ecoflap", "sparsity")
"""Where a file says how much of each of its matrices of eight bits is zero at least."""

AS_IT_IS = "OpenVINO in float32"
"""What a manifest calls a comparison of a file as it is: whoever runs it may get other sums, as those of bfloat16."""
UNROUNDED, IN_FLOATS = f"{AS_IT_IS} before rounding", f"{AS_IT_IS} with inputs in floats"
"""The same of those that show whether a view was converted right, and rounded right."""

SATURATES = " This CPU has no VNNI, without which OpenVINO cuts off large sums: with it, less may be off."
"""What its own pages call saturation."""

WAY_OUT = "Set a larger tolerance, if that is near enough."

FLOAT_TOLERANCE = 1e-4
"""How far a view may be off of which nothing is rounded, in shares of an output's largest magnitude."""
CONVERTED_TOLERANCE = 1e-3
"""The same of one that is to be rounded: sums come in another order, which makes 1.7e-4 of SmolLM2's logits."""


@dataclass(frozen=True)
class Settings:
    """Says how a view is written.

    :param weights: ``int8`` or ``float``.
    :param inputs: How the inputs of each parameter are rounded; empty where they stay floats.
    :param tolerance: How far an output may be from torch's with inputs in floats, in shares of its largest magnitude.
    """

    weights: str
    inputs: Mapping[str, Inputs]
    tolerance: float


def write_view(view: View, pruned: PrunedModel, folder: Path, settings: Settings) -> Exported:
    """Write ``NAME.xml`` and ``NAME.bin``; the model is afterwards what it was.

    :raises ModelError: Where the view cannot be converted or differs in OpenVINO; then there is no file.
    """
    files = folder / f"{view.name}.xml", folder / f"{view.name}.bin"
    own = {name: parameter.dtype for name, parameter in pruned.model.named_parameters(remove_duplicate=False)}
    try:
        with PLACED.held(list(tensors_of(view.module))), torch.no_grad():
            return _write(view, pruned, files, settings, own)
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise


def _write(
    view: View,
    pruned: PrunedModel,
    files: tuple[Path, Path],
    settings: Settings,
    own: Mapping[str, torch.dtype],
) -> Exported:
    examples = as_computed(view.inputs), as_computed(view.other)
    checks = []
    with TemporaryDirectory(dir=files[0].parent) as inside:
        made = converted(view, examples[0], pruned, Path(inside))
        if settings.weights == "int8":
            unrounded = comparison(made.model, view, examples, UNROUNDED)
            checks.append(unrounded.check(files[0].name, CONVERTED_TOLERANCE, WAY_OUT))
            del unrounded
        stored = _stored(made, pruned, settings, own)
        _save(made.model, files[0], [tensor for tensor in stored if tensor.form == "int8"])
        del made  # OpenVINO is about to read the weights from the file
    checks.append(_check_file(files[0], view, examples, settings))
    notes = [*_notes(files[0].name, stored, settings), *_inputs_note(files[0], view, examples, settings)]
    saved = sum(tensor.dense_bytes - tensor.stored_bytes for tensor in stored)
    size = sum(file.stat().st_size for file in files)
    return Exported(files, tuple(stored), tuple(checks), size + saved, tuple(notes))


def _check_file(file: Path, view: View, examples: Examples, settings: Settings) -> Check:
    """Hold a file to the model, with the inputs of its matrices in floats.

    How far it is off with inputs rounded is no matter of right and wrong: examples are made up, and what layers are fed
    of them may be many times as large as what calibration showed.
    """
    model, what = (with_inputs_in_floats(file), IN_FLOATS) if settings.inputs else (file, AS_IT_IS)
    return comparison(model, view, examples, what).check(file.name, settings.tolerance, WAY_OUT)


def _inputs_note(file: Path, view: View, examples: Examples, settings: Settings) -> Iterator[str]:
    """Run a file as it is, and say how far it is off."""
    if not settings.inputs:
        return
    worst = comparison(file, view, examples, AS_IT_IS).worst()
    if not isfinite(worst.largest):
        raise ModelError(f"{file.name}: output {worst.output!r} in {AS_IT_IS} is no number. The file was removed.")
    yield (
        f"{file.name}: with inputs in eight bits too, output {worst.output!r} is up to {worst.share:.2g} of its "
        f"largest magnitude from the model's, on made-up examples. Measure what that costs on data of yours; "
        f"activations: float costs less.{SATURATES if lacks_eight_bits() else ''}"
    )


def _stored(
    made: Converted, pruned: PrunedModel, settings: Settings, own: Mapping[str, torch.dtype]
) -> list[StoredTensor]:
    """Round the pruned matrices that linear layers read, narrow all others, and say how each pruned one is stored."""
    constants, masks = constants_of(made.model, made.names), pruned.parameter_masks
    ours = {name: constant for name, constant in constants.items() if name in masks}
    found = {tensor.name: tensor for tensor in _round(ours, settings, own)} if settings.weights == "int8" else {}
    others = {name: constant for name, constant in constants.items() if name not in found}
    narrowed = set(narrow(others, own))
    for name in [name for name in masks if name in others or name in made.lost]:
        weight = pruned.model.get_parameter(name)
        size = weight.numel() * (own[name].itemsize if name in narrowed else 4)
        found[name] = StoredTensor(name, "dense", tuple(weight.shape), int(weight.count_nonzero()), size, size)
    return [found[name] for name in masks if name in found]


def _round(constants: Mapping[str, Any], settings: Settings, own: Mapping[str, torch.dtype]) -> Iterator[StoredTensor]:
    """Put matrices of eight bits in the places of those constants that linear layers alone read."""
    writer = Int8Writer()
    products = {name: product_of(constant) for name, constant in constants.items()}
    for name, product in products.items():
        if product is not None:
            inputs = settings.inputs.get(name)
            matrix = rounded(torch.from_numpy(np.array(product.weight)), inputs)
            writer.put(product, matrix, inputs)
            size, kept = matrix.weight.size, int(np.count_nonzero(matrix.weight))
            dense, stored = size * own[name].itemsize, size + matrix.scale.nbytes
            yield StoredTensor(name, "int8", matrix.weight.shape, kept, dense, stored)


def _save(model: Any, file: Path, rounded: list[StoredTensor]) -> None:
    if rounded:
        # Down, because OpenVINO leaves those dense that have less.
        least = min(1 - tensor.nonzeros / torch.Size(tensor.shape).numel() for tensor in rounded)
        model.set_rt_info(str(floor(least * 1e4) / 1e4), list(SPARSITY))
    model.validate_nodes_and_infer_types()
    save(model, file)


def _notes(file: str, stored: list[StoredTensor], settings: Settings) -> Iterator[str]:
    if settings.weights != "int8":
        return
    if dense := [tensor.name for tensor in stored if tensor.form == "dense"]:
        yield f"{file}: in floats, because they are not the matrix of linear layers alone: {some(dense)}"
    whole = [tensor.name for tensor in stored if tensor.form == "int8" and tensor.name not in settings.inputs]
    if whole and settings.inputs:
        yield f"{file}: no calibration token reached {some(whole)}, whose inputs are not rounded"
