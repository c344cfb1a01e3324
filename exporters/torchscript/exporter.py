"""Write TorchScript files, one a view: smaller on disk, dense again once plain ``torch.jit.load`` has read them.

There is no ``.pt2`` beside them: what ``torch.export`` saves is a graph and its tensors, and nothing of it runs once
when it is loaded. A graph that unpacks does so at every call, which took twenty times as long as the dense model (four
layers of 1024 × 1024, a batch of four, one core); to fold it is left to the reader, through private functions of torch.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Exporter, PrunedModel
from ecoflap.core.contracts.records import Exported, Meanwhile, View, ViewSize
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.placement import Placement, tensors_of
from ecoflap.exporters.shared.comparison import tolerance_problems
from ecoflap.exporters.shared.pruned_weights import require_masks, require_zeros
from ecoflap.exporters.shared.views import export_views, plan_notes, plan_problems, plan_written
from ecoflap.exporters.torchscript.check import check_file
from ecoflap.exporters.torchscript.store import stored
from ecoflap.exporters.torchscript.trace import unchanged, write_view

_ON_CPU = Placement(None, torch.device("cpu"))
"""Where a view is traced and run: its examples are there, and constants of a graph stay where they were traced."""


@dataclass(frozen=True)
class TorchScript:
    """Writes ``NAME.pt`` for each view that the family has, with all the weights it needs; ``torch.jit.load`` reads it.

    Pruned weights are stored bit by bit as they are, and unpacked once, when the file is loaded: it buys size, not
    speed. Weights and constants are on the CPU; ``map_location`` moves the weights alone.

    :param views: Names of the views that are exported; all by default.
    :param weights: ``bitmask`` stores (1-s) of a pruned weight's bytes and a bit each, ``dense`` everything.
    :param tolerance: How far an output of the loaded file may be from the model's, in shares of the largest magnitude
        of that output, over two batch sizes and lengths. Both run the same operations, on a CPU without any difference.
    """

    views: tuple[str, ...] | None = None
    weights: Literal["bitmask", "dense"] = "bitmask"
    tolerance: float = 1e-5

    def predicted_bytes(self, view: ViewSize) -> int:
        """Tell the size of one view's file; a weight that several views share is in the file of each."""
        dense = view.prunable * view.width
        pruned = min(dense, view.kept * view.width + view.prunable // 8) if self.weights == "bitmask" else dense
        return (view.parameters - view.prunable) * view.width + pruned

    def meanwhile(self, view: ViewSize) -> Meanwhile:
        """Tell what it holds, also where weights stay in files: what torch writes, and the view dense again as read."""
        return Meanwhile(view.parameters * view.width + self.predicted_bytes(view))

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say what of the parameters, of Python and torch here, and of the model's views keeps it from exporting."""
        yield from self._own_problems()
        yield from plan_problems(self.views, context, "torchscript")

    def views_written(self, context: PlanContext) -> list[str]:
        """Name those of its views that the model has and that can be written."""
        return plan_written(self.views, context, "torchscript")

    def notes(self, context: PlanContext) -> Iterator[str]:
        """Say which views will be left out."""
        return plan_notes(self.views, context, "torchscript")

    def _own_problems(self) -> Iterator[str]:
        instead = "Use the exporter onnx or safetensors."
        if sys.version_info >= (3, 14):
            yield f"the exporter torchscript needs Python 3.13 or older, as torch.jit does. {instead}"
        if absent := [name for name in ("trace", "script", "load") if not hasattr(getattr(torch, "jit", None), name)]:
            yield f"the exporter torchscript needs torch.jit.{absent[0]}: torch {torch.__version__} has none. {instead}"
        yield from tolerance_problems(self.tolerance)

    def __call__(self, pruned: PrunedModel, folder: Path) -> Exported:
        """Write the files.

        :raises ModelError: Where the family has no such view, or a file differs from the model; no file is left then.
        """
        if problems := list(self._own_problems()):
            raise ModelError(*problems)
        require_masks(pruned)
        require_zeros(pruned, "torchscript")
        weights = _pruned_weights(pruned)
        with unchanged(pruned.model):
            written = export_views(pruned, self.views, "torchscript", lambda view: self._view(view, weights, folder))
        return replace(written, notes=(*_notes(), *written.notes))

    def _view(self, view: View, weights: Mapping[int, tuple[str, Tensor]], folder: Path) -> Exported:
        inside = {id(parameter) for parameter in view.module.parameters()}
        pack = self.weights == "bitmask"
        tensors = {key: stored(name, weight, pack) for key, (name, weight) in weights.items() if key in inside}
        path = folder / f"{view.name}.pt"
        with _ON_CPU.held(list(tensors_of(view.module))):
            written = write_view(path, view, [key for key, tensor in tensors.items() if tensor.form != "dense"])
            packed = [weights[key] if key in written.used else None for key in written.packed]
            check = check_file(path, view, packed, self.tolerance)
        used = tuple(tensor for key, tensor in tensors.items() if key in written.used)
        saved = sum(tensor.dense_bytes - tensor.stored_bytes for tensor in used)
        return Exported((path,), used, (check,), path.stat().st_size + saved)


def _pruned_weights(pruned: PrunedModel) -> dict[int, tuple[str, Tensor]]:
    """Give each pruned parameter and its name, by the parameter's identity; a tied one goes by its first name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name in pruned.parameter_masks:
        weight = pruned.model.get_parameter(name)
        found.setdefault(id(weight), (name, weight))
    return found


def _notes() -> tuple[str, ...]:
    version = ".".join(torch.__version__.split(".")[:2])
    return (
        f"torch.jit is deprecated by PyTorch and still works in {version}, with Python up to 3.13. The exporter onnx "
        "does without it.",
    )


@hookimpl
def ecoflap_register_exporters() -> Mapping[str, Callable[..., Exporter]]:
    return {"torchscript": TorchScript}
