"""Write one view of a model as an ONNX file: exported, its pruned weights packed, saved, compared with the model."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor, nn

from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.contracts.records import Exported, StoredTensor, View
from ecoflap.core.forward.placement import Placement, tensors_of
from ecoflap.core.kernel.whole_numbers import rounded_rows
from ecoflap.core.packed.packing import matrices_of, vocabulary_weights
from ecoflap.exporters.onnx.check import Checked, Computed, Examples, check_view, needs_own_loader, unpacking_bytes
from ecoflap.exporters.onnx.embedded import save_embedded, without_data
from ecoflap.exporters.onnx.forms.form import COO
from ecoflap.exporters.onnx.forms.product import FORM, FORMS
from ecoflap.exporters.onnx.graph import graph_of
from ecoflap.exporters.onnx.pack_graph import GraphPacker
from ecoflap.exporters.onnx.scratch import Keep, PlacedInFiles, Scratch, in_memory
from ecoflap.exporters.onnx.settings import Settings

ROWS_ROUNDED = 1 << 10  # at a time: it takes memory of 30 bytes for each of their weights
EXTERNAL_ABOVE = 10**9  # bytes of weights; protobuf ends at 2 GB
MESSAGE_AT_MOST = 2**31 - 2**26  # the same with sparse weights, which are part of the message in any case
PLACED = Placement(torch.float32, torch.device("cpu"))


def write_view(view: View, pruned: PrunedModel, folder: Path, settings: Settings) -> Exported:
    """Write ``NAME.onnx``, and ``NAME.onnx.data`` above 1 GB; the model is afterwards what it was.

    :raises ModelError: Where the view cannot be exported or differs in onnxruntime; then there is no file.
    """
    files = folder / f"{view.name}.onnx", folder / f"{view.name}.onnx.data"
    examples = as_computed(view.inputs), as_computed(view.other)
    try:
        with _scratch(pruned, folder) as scratch:
            packer, stored, computed = _written(view, examples, pruned, files, settings, scratch)
        with _scratch(pruned, folder) as scratch:
            checked = check_view(files[0], view, computed, stored, settings, scratch)
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
    written = tuple(file for file in files if file.exists())
    saved = sum(tensor.dense_bytes - tensor.stored_bytes for tensor in stored)
    size = sum(file.stat().st_size for file in written)
    notes = [*_notes(files[0].name, stored, packer), *_rounding_notes(files[0].name, checked)]
    return Exported(written, tuple(stored), checked.checks, size + saved, tuple(notes))


@contextmanager
def _scratch(pruned: PrunedModel, folder: Path) -> Iterator[Path | None]:
    """Make a folder for what is not to stay in memory; None where the model is there itself."""
    if not pruned.offloaded:
        yield None
        return
    with TemporaryDirectory(dir=folder) as inside:
        yield Path(inside)


def _written(
    view: View,
    examples: Examples,
    pruned: PrunedModel,
    files: tuple[Path, Path],
    settings: Settings,
    folder: Path | None,
) -> tuple[GraphPacker, list[StoredTensor], Computed]:
    """Write a view's files, and compute its outputs in torch.

    :param folder: Where weights lie that are not to stay in memory.
    :return: What packed the graph, which has no weights any more, how they are stored, and what torch computes.
    """
    scratch = None if folder is None else Scratch(folder)
    placed = PLACED if scratch is None else PlacedInFiles(PLACED.dtype, PLACED.device, scratch=scratch)
    keep = scratch.keep if scratch else in_memory
    types = {id(parameter): parameter.dtype for parameter in view.module.parameters()}
    with placed.held(list(tensors_of(view.module))), torch.no_grad():
        packer = _packed(view, examples[0], pruned, types, settings, keep)
        try:
            stored = _save(packer, *files)
        finally:
            packer.graph.release()
        outputs, rounded = [view.module(*inputs.values()) for inputs in examples], None
        if packer.rounded:
            with _rounded(pruned.model, packer.rounded, keep):
                rounded = [view.module(*inputs.values()) for inputs in examples]
        return packer, stored, Computed(examples, outputs, rounded)


@contextmanager
def _rounded(model: nn.Module, by_rows: Mapping[str, bool], keep: Keep) -> Iterator[None]:
    """Give parameters for a while the values that they have in int8, by torch alone: no order of a kernel is in them.

    :param by_rows: By name, whether a scale is one of a row, and not of a column.
    """
    parameters = {name: model.get_parameter(name) for name in by_rows}
    before = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = torch.from_numpy(keep(_rounded_weight(parameter.data, by_rows[name]).numpy()))
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = before[name]


def _rounded_weight(weight: Float32[Tensor, "rows columns"], by_rows: bool) -> Float32[Tensor, "rows columns"]:
    matrix, made = weight if by_rows else weight.T, torch.empty_like(weight)
    outputs = made if by_rows else made.T
    for first in range(0, len(matrix), ROWS_ROUNDED):
        some = slice(first, first + ROWS_ROUNDED)
        whole, scales = rounded_rows(matrix[some])
        outputs[some] = whole * scales[:, None]
    return made


def as_computed(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring inputs to the CPU, and narrower floats to float32, as weights are."""
    there = {name: tensor.detach().cpu() for name, tensor in inputs.items()}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in there.items()}


def _packed(
    view: View,
    inputs: Mapping[str, Tensor],
    pruned: PrunedModel,
    types: Mapping[int, torch.dtype],
    settings: Settings,
    keep: Keep,
) -> GraphPacker:
    """Export the view's graph and pack its pruned weights.

    :param types: The type that each parameter has in the model, by its identity.
    :param keep: Keeps arrays that are made of weights until all are written.
    """
    names = names_by_identity(pruned.model, pruned.parameter_masks)
    graph = graph_of(view, inputs, names, settings.opset)
    own = {names[key]: dtype for key, dtype in types.items() if key in names}
    parameters = dict(pruned.model.named_parameters(remove_duplicate=False))

    def known(weights: Iterable[str]) -> set[str]:
        return {names[id(parameters[name])] for name in weights if name in parameters}

    vocabulary = known(vocabulary_weights(pruned.model) if settings.storage.vocabulary_int8 else ())
    unpruned = known(matrices_of(pruned.model) if settings.storage.int8 else ()) - pruned.parameter_masks.keys()
    packer = GraphPacker(graph, pruned.parameter_masks, own, settings.storage, keep, vocabulary, unpruned)
    packer.pack()
    return packer


def names_by_identity(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[int, str]:
    """Name each tensor of the model by its identity; a weight with several names goes by that of its mask."""
    names = {id(tensor): name for name, tensor in (*model.named_buffers(), *model.named_parameters())}
    return names | {id(model.get_parameter(name)): name for name in masks}


def _save(packer: GraphPacker, path: Path, data: Path) -> list[StoredTensor]:
    """Save the graph, with its weights in a file beside it where they are large, and say how each is stored."""
    import onnx_ir as ir

    model = packer.graph.model
    stored, sparse = packer.sparse() if packer.storage.weights == COO else (packer.stored, {})
    initializers = model.graph.initializers.items()
    size = sum(value.const_value.nbytes for name, value in initializers if name not in sparse)
    whole = size + sum(map(len, sparse.values()))
    if size <= EXTERNAL_ABOVE and whole < MESSAGE_AT_MOST:
        save_embedded(model, path, sparse)
    elif sparse:
        _save_beside_sparse(model, sparse, path, data)
    else:
        ir.save(model, path, external_data=data.name)
    return stored


def _save_beside_sparse(model: Any, sparse: Mapping[str, NDArray[Any]], path: Path, data: Path) -> None:
    """Save by way of onnx, since onnx_ir has no sparse initializers."""
    import onnx

    proto = without_data(model, sparse)
    for message in sparse.values():
        proto.graph.sparse_initializer.add().ParseFromString(message.tobytes())
    onnx.save_model(proto, str(path), save_as_external_data=True, location=data.name)


def _notes(file: str, stored: list[StoredTensor], packer: GraphPacker) -> Iterator[str]:
    if needs_own_loader(stored):
        yield (
            f"{file}: a plain onnxruntime takes some {unpacking_bytes(stored) / 1e9:.0f} GB of memory to load it. Load "
            f"it with ecoflap.onnx.load_session, or make an ordinary file of it with: ecoflap densify {file}"
        )
    if any(tensor.form in FORMS for tensor in stored):
        yield (
            f"{file}: its linear layers are multiplied from packed weights by ecoflap's library of kernels, which "
            f"ecoflap.onnx.load_session registers. An onnxruntime without it makes them dense when it loads the file."
        )
    elif stored and packer.storage.weights == FORM:
        yield (
            f"{file}: nothing of it is multiplied as it is packed, as weights: {FORM} asks: no pruned matrix of its "
            f"graph is one of a linear layer, at least 35 % zeros and read by nothing else."
        )
    if packer.lost:
        yield f"{file}: stored dense, as parts of other constants of the graph: {', '.join(packer.lost)}"
    if packer.left:
        yield (
            f"{file}: not rounded by embeddings: int8, too small or too large for it or read by something else too: "
            f"{', '.join(packer.left)}"
        )
    if packer.not_finite:
        yield f"{file}: not rounded by values: int8, as a weight of each is not finite: {', '.join(packer.not_finite)}"
    if any(tensor.form == COO for tensor in stored):
        yield f"{file}: its weights are sparse initializers, which OpenVINO does not read. weights: bitmask is smaller."


def _rounding_notes(file: str, checked: Checked) -> Iterator[str]:
    """Say how far a file with weights in int8 is off."""
    if checked.rounding is not None:
        yield (
            f"{file}: with weights in int8 an output is up to {checked.rounding:.2g} of its largest magnitude from the "
            f"model's, on made-up examples. Measure what that costs on data of yours; values: auto and embeddings: "
            f"dense round nothing."
        )
