"""TorchScript files, one a view of the model: smaller on disk, dense again once plain ``torch.jit.load`` has read them.

There is no ``.pt2`` beside them: what ``torch.export`` saves is a graph and its tensors, and nothing of it runs once
when it is loaded. A graph that unpacks does so at every call, which took twenty times as long as the dense model (four
layers of 1024 × 1024, a batch of four, one core); to fold it is left to the reader, through private functions of torch.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Adapter, Exporter
from ecoflap.core.contracts.records import Check, Exported, StoredTensor, View
from ecoflap.core.errors import ModelError, unknown
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.core.pruning.masks import masks_of
from ecoflap.core.recipe.schema import Recipe
from ecoflap.exporters.torchscript.check import check_file
from ecoflap.exporters.torchscript.store import stored
from ecoflap.exporters.torchscript.trace import unchanged, write_view


@dataclass(frozen=True)
class TorchScript:
    """``NAME.pt`` for each view that the family has, with all the weights it needs; ``torch.jit.load`` reads it.

    Pruned weights are stored bit by bit as they are, and unpacked once, when the file is loaded: it buys size, not
    speed. Weights and constants are on the device that the model was on; ``map_location`` moves the weights alone.

    :param views: Which; all by default.
    :param weights: ``bitmask`` stores (1-s) of a pruned weight's bytes and a bit each, ``dense`` everything.
    :param tolerance: How far an output of the loaded file may be from the model's, in shares of the largest magnitude
        of that output, over two batch sizes and lengths. Both run the same operations, on a CPU without any difference.
    """

    views: tuple[str, ...] | None = None
    weights: Literal["bitmask", "dense"] = "bitmask"
    tolerance: float = 1e-5

    def predicted_bytes(self, parameters: int, prunable: int, kept: int, width: int) -> int:
        """Of one file with the whole model; a weight that several views share is in the file of each.

        :param width: Bytes of one weight in the model.
        """
        dense = prunable * width
        pruned = min(dense, kept * width + prunable // 8) if self.weights == "bitmask" else dense
        return (parameters - prunable) * width + pruned

    def problems(self, anatomy: Anatomy, recipe: Recipe) -> Iterator[str]:
        yield from self._problems()

    def _problems(self) -> Iterator[str]:
        instead = "Use the exporter onnx or safetensors."
        if sys.version_info >= (3, 14):
            yield f"the exporter torchscript needs Python 3.13 or older, as torch.jit does. {instead}"
        if absent := [name for name in ("trace", "script", "load") if not hasattr(getattr(torch, "jit", None), name)]:
            yield f"the exporter torchscript needs torch.jit.{absent[0]}: torch {torch.__version__} has none. {instead}"
        if not (isfinite(self.tolerance) and self.tolerance >= 0):
            yield f"tolerance {self.tolerance} is no share of an output's size: write 0 or more, such as 1e-5."
        if self.views == ():
            yield "views is empty, so nothing would be exported. Name some, or leave it out for all."

    def __call__(self, model: nn.Module, adapter: Adapter, folder: Path) -> Exported:
        """:raises ModelError: Where the family has no such view, or a file differs from the model: it is removed."""
        if problems := list(self._problems()):
            raise ModelError(*problems)
        pruned = _pruned(model)
        with unchanged(model):
            written = [self._view(view, pruned, folder) for view in self._chosen(adapter, model)]
        files, tensors, checks = zip(*written, strict=True)
        flat = _told_apart(files, tensors)
        saved = sum(tensor.dense_bytes - tensor.stored_bytes for tensor in flat)
        size = sum(file.stat().st_size for file in files)
        return Exported(files, flat, checks, size + saved, _notes())

    def _chosen(self, adapter: Adapter, model: nn.Module) -> list[View]:
        export_views = getattr(adapter, "export_views", None)
        if export_views is None:
            raise ModelError(
                f"{type(adapter).__name__} says no views of its models (it has no export_views), so they cannot be "
                "exported to TorchScript. Use the exporter safetensors or hugging_face."
            )
        there = {view.name: view for view in export_views(model)}
        wanted = list(there) if self.views is None else list(self.views)
        if strange := [name for name in wanted if name not in there]:
            raise ModelError(*(f"torchscript: this model has {unknown('view', name, list(there))}" for name in strange))
        if not wanted:
            raise ModelError("torchscript: this model has no view to export. Use the exporter safetensors.")
        return [view for name, view in there.items() if name in wanted]

    def _view(
        self, view: View, pruned: Mapping[int, tuple[str, Tensor]], folder: Path
    ) -> tuple[Path, list[StoredTensor], Check]:
        inside = {id(parameter) for parameter in view.module.parameters()}
        pack = self.weights == "bitmask"
        tensors = {key: stored(name, weight, pack) for key, (name, weight) in pruned.items() if key in inside}
        path = folder / f"{view.name}.pt"
        written = write_view(path, view, [key for key, tensor in tensors.items() if tensor.form != "dense"])
        packed = [pruned[key] if key in written.used else None for key in written.packed]
        check = check_file(path, view, packed, self.tolerance)
        return path, [tensor for key, tensor in tensors.items() if key in written.used], check


def _pruned(model: nn.Module) -> dict[int, tuple[str, Tensor]]:
    """Each pruned parameter and its layer's name, by the parameter's ``id``."""
    found: dict[int, tuple[str, Tensor]] = {}
    moved: list[str] = []
    for name, mask in masks_of(model).items():
        weight = model.get_parameter(name)
        found.setdefault(id(weight), (name, weight))
        if bool(weight.detach()[~mask.to(weight.device)].any()):
            moved.append(name)
    if moved:
        some = f"{', '.join(moved[:5])}{' …' if len(moved) > 5 else ''}"
        raise ModelError(f"torchscript: {some}: weights that were pruned are not zero any more. Prune the model again.")
    return found


def _told_apart(files: tuple[Path, ...], tensors: tuple[list[StoredTensor], ...]) -> tuple[StoredTensor, ...]:
    """A weight that is in several files is told apart by the file."""
    times = Counter(tensor.name for inside in tensors for tensor in inside)
    return tuple(
        replace(tensor, name=f"{tensor.name} in {file.name}") if times[tensor.name] > 1 else tensor
        for file, inside in zip(files, tensors, strict=True)
        for tensor in inside
    )


def _notes() -> tuple[str, ...]:
    version = ".".join(torch.__version__.split(".")[:2])
    return (
        f"torch.jit is deprecated by PyTorch and still works in {version}, with Python up to 3.13. The exporter onnx "
        "does without it.",
    )


@hookimpl
def ecoflap_register_exporters() -> Mapping[str, Callable[..., Exporter]]:
    return {"torchscript": TorchScript}
