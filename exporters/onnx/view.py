"""Write one view of a model as an ONNX file: exported, its pruned weights packed, saved, compared with the model."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.contracts.records import Exported, StoredTensor, View
from ecoflap.core.forward.placement import Placement, tensors_of
from ecoflap.exporters.onnx.check import check_view, needs_own_loader, unpacking_bytes
from ecoflap.exporters.onnx.forms.coo import to_coo
from ecoflap.exporters.onnx.forms.product import FORM
from ecoflap.exporters.onnx.graph import graph_of
from ecoflap.exporters.onnx.pack_graph import GraphPacker
from ecoflap.exporters.onnx.settings import Settings

EXTERNAL_ABOVE = 10**9  # bytes of weights; protobuf ends at 2 GB
PLACED = Placement(torch.float32, torch.device("cpu"))


def write_view(view: View, pruned: PrunedModel, folder: Path, settings: Settings) -> Exported:
    """Write ``NAME.onnx``, and ``NAME.onnx.data`` above 1 GB; the model is afterwards what it was.

    :raises ModelError: Where the view cannot be exported or differs in onnxruntime; then there is no file.
    """
    files = folder / f"{view.name}.onnx", folder / f"{view.name}.onnx.data"
    types = {id(parameter): parameter.dtype for parameter in view.module.parameters()}
    try:
        with PLACED.held(list(tensors_of(view.module))), torch.no_grad():
            examples = as_computed(view.inputs), as_computed(view.other)
            packer = _packed(view, examples[0], pruned, types, settings)
            stored = _save(packer, *files)
            lost = packer.lost
            del packer  # its graph holds the weights, which onnxruntime is about to hold too
            checks = check_view(files[0], view, examples, stored, settings)
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
    written = tuple(file for file in files if file.exists())
    saved = sum(tensor.dense_bytes - tensor.stored_bytes for tensor in stored)
    size = sum(file.stat().st_size for file in written)
    return Exported(written, tuple(stored), checks, size + saved, tuple(_notes(files[0].name, stored, lost)))


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
) -> GraphPacker:
    """Export the view's graph and pack its pruned weights.

    :param types: The type that each parameter has in the model, by its identity.
    """
    names = names_by_identity(pruned.model, pruned.parameter_masks)
    graph = graph_of(view, inputs, names, settings.opset)
    own = {names[key]: dtype for key, dtype in types.items() if key in names}
    packer = GraphPacker(graph, pruned.parameter_masks, own, settings.storage)
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
    if packer.storage.form == "coo":
        return _save_coo(model, packer.pruned, packer.stored, path, data)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    ir.save(model, path, external_data=data.name if size > EXTERNAL_ABOVE else None)
    return packer.stored


def _save_coo(
    model: Any, names: Mapping[str, str], stored: list[StoredTensor], path: Path, data: Path
) -> list[StoredTensor]:
    """Save by way of onnx, since onnx_ir has no sparse initializers."""
    import onnx
    import onnx_ir as ir

    proto: Any = ir.to_proto(model)
    sparse = {tensor.name: tensor for tensor in to_coo(proto, names)}
    size = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    onnx.save_model(proto, str(path), save_as_external_data=size > EXTERNAL_ABOVE, location=data.name)
    return [replace(sparse[tensor.name], shape=tensor.shape) if tensor.name in sparse else tensor for tensor in stored]


def _notes(file: str, stored: list[StoredTensor], lost: list[str]) -> Iterator[str]:
    if needs_own_loader(stored):
        yield (
            f"{file}: a plain onnxruntime takes some {unpacking_bytes(stored) / 1e9:.0f} GB of memory to load it. Load "
            f"it with ecoflap.onnx.load_session, or make an ordinary file of it with: ecoflap densify {file}"
        )
    if any(tensor.form == FORM for tensor in stored):
        yield (
            f"{file}: its linear layers are multiplied from packed weights by ecoflap's library of kernels, which "
            f"ecoflap.onnx.load_session registers. An onnxruntime without it makes them dense when it loads the file."
        )
    if lost:
        yield f"{file}: stored dense, as parts of other constants of the graph: {', '.join(lost)}"
    if any(tensor.form == "coo" for tensor in stored):
        yield f"{file}: its weights are sparse initializers, which OpenVINO does not read. weights: bitmask is smaller."
