"""Make a model of OpenVINO of a view, by way of ONNX: the graph that the exporter ``onnx`` writes, before it packs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.contracts.records import View
from ecoflap.core.errors import ModelError
from ecoflap.exporters.onnx.graph import Graph, graph_of
from ecoflap.exporters.onnx.view import EXTERNAL_ABOVE, names_by_identity
from ecoflap.exporters.openvino.openvino_core import last_line

OPSET = 20


@dataclass(frozen=True, eq=False)
class Converted:
    """Holds a model of OpenVINO in float32.

    :param model: An ``openvino.Model``.
    :param names: Matrices of the torch model, by the names of their constants.
    :param lost: Pruned matrices that became part of another constant.
    """

    model: Any
    names: Mapping[str, str]
    lost: tuple[str, ...]


def converted(view: View, inputs: Mapping[str, Tensor], pruned: PrunedModel, folder: Path) -> Converted:
    """Convert a view.

    :param inputs: Its example, in float32.
    :param folder: Where the graph lies. It stays until the model is written: weights of a large one are read late.
    :raises ModelError: Where torch cannot export it, or OpenVINO cannot read it.
    """
    names = names_by_identity(pruned.model, pruned.parameter_masks)
    graph = graph_of(view, inputs, names, OPSET)
    lost = tuple(name for name in graph.lost if name in pruned.parameter_masks)
    try:
        return Converted(_read(view, graph, folder), graph.names, lost)
    finally:
        graph.release()


def _read(view: View, graph: Graph, folder: Path) -> Any:
    import onnx_ir as ir
    import openvino

    size = sum(value.const_value.nbytes for value in graph.model.graph.initializers.values())
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # Windows deletes no file that is mapped
    path = folder / "view.onnx"
    ir.save(graph.model, path, external_data="weights" if size > EXTERNAL_ABOVE else None)
    try:
        return core.read_model(path)
    except RuntimeError as error:
        raise ModelError(
            f"view {view.name!r}: OpenVINO {openvino.__version__} cannot read its graph: {last_line(error)}. "
            f"Export other views, or use the exporter onnx."
        ) from error
