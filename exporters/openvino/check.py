"""Compare a model of OpenVINO, run on its CPU, with the view of the torch model that it was made from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ecoflap.core.contracts.records import View
from ecoflap.core.errors import ModelError
from ecoflap.exporters.openvino.openvino_core import last_line, openvino_core
from ecoflap.exporters.shared.comparison import Comparison, sizes_text

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""OpenVINO computes in 16 bits where the CPU can, and rounds inputs by itself; neither is the file's doing.

Who runs the file gets both unless these are set, so that a manifest says in the name of each comparison: in float32.
"""


def comparison(model: Any, view: View, examples: tuple[Mapping[str, Tensor], ...], what: str) -> Comparison:
    """Hold what a model computes against what torch computes.

    :param model: An ``openvino.Model``, or the path of one.
    :param examples: Inputs by name, in the types that the model takes.
    :param what: What of it is compared, for the manifest and messages, such as ``OpenVINO in float32``.
    :raises ModelError: Where OpenVINO cannot compile it, and later where it cannot run it.
    """
    return Comparison(
        view,
        examples,
        model=lambda inputs: view.module(*inputs.values()),
        file=_Run(model, view),
        runtime=what,
    )


def with_inputs_in_floats(file: Path) -> Any:
    """Read a model whose matrices are in eight bits, and leave out what rounds their inputs."""
    model = openvino_core().read_model(file)
    for node in model.get_ordered_ops():
        if node.get_type_name() == "FakeQuantize":
            for target in node.output(0).get_target_inputs():
                target.replace_source_output(node.input_value(0))
    model.validate_nodes_and_infer_types()
    return model


class _Run:
    """Runs a compiled model."""

    def __init__(self, model: Any, view: View) -> None:
        import openvino

        self._view = view
        try:
            self._compiled = openvino_core().compile_model(model, "CPU", EXACT)
        except RuntimeError as error:
            raise ModelError(
                f"view {view.name!r}: OpenVINO {openvino.__version__} cannot compile it: {last_line(error)}. Export "
                f"other views, or use the exporter onnx."
            ) from error

    def __call__(self, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        try:
            found = self._compiled({name: tensor.numpy() for name, tensor in inputs.items()})
        except RuntimeError as error:
            raise ModelError(
                f"view {self._view.name!r}: OpenVINO cannot run it on inputs of sizes {sizes_text(inputs)}: "
                f"{last_line(error)}"
            ) from error
        return [torch.from_numpy(found[number].copy()) for number in range(len(self._view.outputs))]
