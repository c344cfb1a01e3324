"""Write models for OpenVINO, one a view, with pruned matrices and what they are fed in eight bits."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Exporter, PrunedModel
from ecoflap.core.contracts.records import Exported, Meanwhile, ViewSize
from ecoflap.core.errors import ModelError
from ecoflap.exporters.openvino.inputs import fed_to
from ecoflap.exporters.openvino.int8 import Inputs, rounding_of
from ecoflap.exporters.openvino.view import FLOAT_TOLERANCE, Settings, write_view
from ecoflap.exporters.shared.comparison import tolerance_problems
from ecoflap.exporters.shared.pruned_weights import require_masks, require_zeros, width_problems
from ecoflap.exporters.shared.views import export_views, plan_notes, plan_problems, plan_written

LIBRARIES = ("onnx", "onnxscript", "openvino")

ROUNDED_TOLERANCE = 0.25
"""How far an output may be off that is computed of matrices in eight bits: what is wrong altogether is farther off."""

USUAL_SMOOTHING = 0.8
"""α as it is where nothing is said."""

TIMES = 4
"""How often a view is in memory at once: 3.9 times, of a LLaMA of 404 million weights."""

_NO_DATA = (
    "activations: int8 needs to know how large inputs get, and there is no calibration data. Leave inputs in floats by "
    "activations: float; or add calibration: to the recipe, and prune by it in a new folder where this one is finished."
)


@dataclass(frozen=True)
class OpenVino:
    """Writes ``NAME.xml`` and ``NAME.bin`` for each view that the family has; run again by OpenVINO on a CPU.

    Pruned matrices are rounded to eight bits, a scale for each output, and what was zero is zero. Their inputs are
    rounded too, by how large they got on the run's calibration data: then OpenVINO multiplies in eight bits, and on a
    CPU with AMX it can do so from packed weights, which ``ecoflap.openvino.compile_model`` asks for. All other weights
    stay as they are in the model.

    :param views: Names of the views that are exported; all by default.
    :param weights: ``int8`` rounds pruned matrices, ``float`` writes the whole model as it is.
    :param activations: ``float`` leaves the inputs of those matrices alone, and needs no calibration data.
    :param smoothing: How much of what makes some inputs larger than others is moved into the weights before both are
        rounded, as α in SmoothQuant; ``null`` moves nothing.
    :param tolerance: How far an output may be from torch's, in shares of the largest magnitude of that output, over
        two batch sizes and lengths, with inputs of matrices in floats. By default 0.25 with ``int8``, where the view is
        held to 1e-3 before it is rounded, and 1e-4 with ``float``.
    """

    views: tuple[str, ...] | None = None
    weights: Literal["int8", "float"] = "int8"
    activations: Literal["int8", "float"] = "int8"
    smoothing: float | None = USUAL_SMOOTHING
    tolerance: float | None = None

    def predicted_bytes(self, view: ViewSize) -> int:
        """Tell the size of one view's files; a weight that several views share is in those of each."""
        others = (view.parameters - view.prunable) * view.width
        return others + view.prunable * (1 if self.weights == "int8" else view.width)

    def meanwhile(self, view: ViewSize) -> Meanwhile:
        """Tell what a view takes: in torch, in ONNX, in OpenVINO and as that runs it, :data:`TIMES` in float32.

        OpenVINO reads ONNX from a file, which lies beside the export until that is written.
        """
        return Meanwhile(TIMES * 4 * view.parameters, 4 * view.parameters)

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say what of the parameters, of the libraries here, and of the model keeps it from exporting."""
        yield from self._own_problems()
        if self._rounds_inputs and context.recipe.calibration is None:
            yield _NO_DATA
        # What torch cannot put into an ONNX graph it cannot put into this one.
        yield from plan_problems(self.views, context, "onnx")
        if context.recipe.model.dtype == "auto":
            yield from width_problems({layer.name: layer.weight for _, layer in context.anatomy.layers()}, "openvino")

    def views_written(self, context: PlanContext) -> list[str]:
        """Name those of its views that the model has and that can be written."""
        return plan_written(self.views, context, "onnx")

    def notes(self, context: PlanContext) -> Iterator[str]:
        """Say which views will be left out."""
        return plan_notes(self.views, context, "onnx")

    @property
    def _rounds_inputs(self) -> bool:
        return self.weights == self.activations == "int8"

    def _own_problems(self) -> Iterator[str]:
        if absent := [name for name in LIBRARIES if find_spec(name) is None]:
            yield f"the exporter openvino needs {', '.join(absent)}: pip install 'ecoflap[openvino]'."
        if self.smoothing is not None and not 0 <= self.smoothing <= 1:
            yield f"smoothing {self.smoothing} is no share: write 0 to 1, such as 0.8, or null for none."
        if not self._rounds_inputs and self.smoothing not in (None, USUAL_SMOOTHING):
            floats = "weights" if self.weights == "float" else "activations"
            yield f"smoothing {self.smoothing} is of inputs that are rounded; by {floats}: float none is. Take it out."
        if self.tolerance is not None:
            yield from tolerance_problems(self.tolerance)

    def __call__(self, pruned: PrunedModel, folder: Path) -> Exported:
        """Write the files.

        :raises ModelError: Where the family has no such view, or a file differs from the model; no file is left then.
        """
        require_masks(pruned)
        weights = {name: pruned.model.get_parameter(name) for name in pruned.parameter_masks}
        problems = [*self._own_problems(), *width_problems(weights, "openvino")]
        if self._rounds_inputs and pruned.calibration is None:
            problems.append(_NO_DATA)
        if problems:
            raise ModelError(*problems)
        require_zeros(pruned, "openvino")
        usual = ROUNDED_TOLERANCE if self.weights == "int8" else FLOAT_TOLERANCE
        tolerance = usual if self.tolerance is None else self.tolerance
        settings = Settings(self.weights, self._inputs(pruned), tolerance)
        return export_views(
            pruned,
            self.views,
            "openvino",
            lambda view: write_view(view, pruned, folder, settings),
            by_way_of="onnx",
        )

    def _inputs(self, pruned: PrunedModel) -> dict[str, Inputs]:
        """Run the calibration data through the model, and say how the inputs of each parameter are rounded."""
        if not self._rounds_inputs or pruned.calibration is None:
            return {}
        fed = fed_to(pruned, pruned.calibration())
        made = {id(one): rounding_of(one, self.smoothing) for one in fed.values()}
        return {name: made[id(one)] for name, one in fed.items()}


@hookimpl
def ecoflap_register_exporters() -> Mapping[str, Callable[..., Exporter]]:
    return {"openvino": OpenVino}
