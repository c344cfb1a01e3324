"""ONNX files, one a view of the model: pruned weights are stored packed, and unpacked by the graph itself."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Adapter, Exporter
from ecoflap.core.contracts.records import Exported, View
from ecoflap.core.errors import ModelError, unknown
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.core.pruning.masks import masks_of
from ecoflap.core.recipe.schema import Recipe
from ecoflap.exporters.onnx.dense import write_dense
from ecoflap.exporters.onnx.view import Encoding, write_view

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
OPSETS = range(18, 23)
TYPES = {"auto": None, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Onnx:
    """``NAME.onnx`` for each view that the family has, each with all the weights it needs; checked in onnxruntime.

    It buys size, not speed: the runtime unpacks weights when it loads the file. A model in 16 bits is computed in
    float32, which loses nothing, and its weights are stored in their own 16 bits.

    :param views: Which; all by default.
    :param weights: ``bitmask`` stores (1-s) of a weight's bytes and a bit each, ``coo`` the non-zeros with their
        indices as ONNX has it, where that is smaller, ``dense`` everything.
    :param form: ``function`` unpacks by a function that the file brings along, ``inline`` by plain nodes, for runtimes
        that know no local functions (OpenVINO).
    :param values: The type that pruned weights are stored in; ``auto`` is the one each has in the model.
    :param opset: 18 to 22.
    :param tolerance: How far an output may be from torch's, in shares of the largest magnitude of that output, over
        two batch sizes and lengths. A narrower type of values needs a larger one.
    :param lossy: Whether a narrower type may turn a weight into zero or infinity.
    """

    views: tuple[str, ...] | None = None
    weights: Literal["bitmask", "coo", "dense"] = "bitmask"
    form: Literal["function", "inline"] = "function"
    values: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    opset: int = 20
    tolerance: float = 1e-4
    lossy: bool = False

    densifies: ClassVar[tuple[str, ...]] = (".onnx",)
    """Endings of what :meth:`densify` reads."""

    def predicted_bytes(self, parameters: int, prunable: int, kept: int, width: int) -> int:
        """Of one file with the whole model; a weight that several views share is in the file of each.

        :param width: Bytes of one weight in the model.
        """
        dtype = TYPES[self.values]
        stored = dtype.itemsize if dtype else width
        dense, others = prunable * stored, (parameters - prunable) * width
        packed = {"bitmask": kept * stored + prunable // 8, "coo": kept * (stored + 3), "dense": dense}
        return others + min(dense, packed[self.weights])

    def problems(self, anatomy: Anatomy, recipe: Recipe) -> Iterator[str]:
        yield from self._problems()

    def _problems(self) -> Iterator[str]:
        absent = [name for name in LIBRARIES if find_spec(name) is None]
        if absent:
            yield f"the exporter onnx needs {', '.join(absent)}: pip install 'ecoflap[onnx]'."
        if self.opset == 23:
            yield "opset 23: torch fixes the batch size in its rotary embeddings, so a LLaMA runs on no other. Use 20."
        elif self.opset not in OPSETS:
            yield f"opset {self.opset} is not between {OPSETS[0]} and {OPSETS[-1]}. Use 20, the default."
        if not (isfinite(self.tolerance) and self.tolerance >= 0):
            yield f"tolerance {self.tolerance} is no share of an output's size: write 0 or more, such as 1e-4."
        if self.views == ():
            yield "views is empty, so nothing would be exported. Name some, or leave it out for all."

    def __call__(self, model: nn.Module, adapter: Adapter, folder: Path) -> Exported:
        """:raises ModelError: Where the family has no such view, or a file differs from the model: it is removed."""
        if problems := list(self._problems()):
            raise ModelError(*problems)
        masks = masks_of(model)
        _check_weights(model, masks)
        encoding = Encoding(self.weights, self.form, TYPES[self.values], self.lossy)
        written: list[Exported] = []
        try:
            for view in self._chosen(adapter, model):
                written.append(
                    write_view(view, model, masks, folder, encoding, opset=self.opset, tolerance=self.tolerance)
                )
        except BaseException:
            for file in (file for one in written for file in one.files):
                file.unlink(missing_ok=True)
            raise
        return _together(written)

    @staticmethod
    def densify(file: Path, target: Path) -> Path:
        """Write an ordinary ONNX file of the same model; see :func:`ecoflap.onnx.densify`."""
        return write_dense(file, target)

    def _chosen(self, adapter: Adapter, model: nn.Module) -> list[View]:
        export_views = getattr(adapter, "export_views", None)
        if export_views is None:
            raise ModelError(
                f"{type(adapter).__name__} says no views of its models (it has no export_views), so they cannot be "
                f"exported to ONNX. Use the exporter safetensors or hugging_face."
            )
        there = {view.name: view for view in export_views(model)}
        if strange := [name for name in self.views or () if name not in there]:
            raise ModelError(*(f"onnx: this model has {unknown('view', name, list(there))}" for name in strange))
        return [view for name, view in there.items() if self.views is None or name in self.views]


def _check_weights(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    weights = {name: model.get_parameter(name) for name in masks}
    wide = [name for name, weight in weights.items() if weight.dtype == torch.float64]
    if wide:
        raise ModelError(f"onnx: {_some(wide)}: weights in float64 are not exported. Convert them: model.float().")
    moved = [name for name, weight in weights.items() if _has_moved(weight, masks[name])]
    if moved:
        raise ModelError(
            f"onnx: {_some(moved)}: weights that were pruned are not zero any more. Prune the model again."
        )


def _has_moved(weight: Tensor, mask: Tensor) -> bool:
    return bool((weight.detach().cpu().ne(0) & ~mask.cpu()).any())


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''}"


def _together(written: Sequence[Exported]) -> Exported:
    """All views as one export; a weight that is in several files is told apart by the file."""
    times = Counter(tensor.name for one in written for tensor in one.tensors)
    tensors = tuple(
        replace(tensor, name=f"{tensor.name} in {one.files[0].name}") if times[tensor.name] > 1 else tensor
        for one in written
        for tensor in one.tensors
    )
    return Exported(
        files=tuple(file for one in written for file in one.files),
        tensors=tensors,
        checks=tuple(check for one in written for check in one.checks),
        dense_bytes=sum(one.dense_bytes or 0 for one in written),
        notes=tuple(note for one in written for note in one.notes),
    )


@hookimpl
def ecoflap_register_exporters() -> Mapping[str, Callable[..., Exporter]]:
    return {"onnx": Onnx}
