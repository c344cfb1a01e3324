"""Writes one view of a model as an ONNX file: exported, its pruned weights packed, saved, checked."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.contracts.records import Check, Exported, StoredTensor, View
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.placement import Placement, tensors_of
from ecoflap.exporters.onnx.check import Difference, worst_difference
from ecoflap.exporters.onnx.coo import to_coo
from ecoflap.exporters.onnx.encoding import OVERHEAD, pack
from ecoflap.exporters.onnx.graph import Graph, graph_of, narrow

EXTERNAL_ABOVE = 10**9  # bytes of weights
UNPACKING = {"bitmask": 30, "2:4": 15}  # bytes of memory that onnxruntime takes for a weight while it loads a file
UNPACKED_AT_MOST = 4 * 10**9  # bytes that a reader's machine is likely to have for it
PLACED = Placement(torch.float32, torch.device("cpu"))
SEMI_STRUCTURED = Pattern(2, 4)


@dataclass(frozen=True)
class Encoding:
    """How pruned weights are stored.

    :param dtype: Of their values; None for what each has in the model.
    :param lossy: Whether that type may turn a weight into zero or infinity.
    """

    weights: Literal["bitmask", "coo", "dense"]
    form: Literal["function", "inline"]
    dtype: torch.dtype | None
    lossy: bool


def write_view(
    view: View,
    model: nn.Module,
    masks: Mapping[str, Tensor],
    folder: Path,
    encoding: Encoding,
    *,
    opset: int,
    tolerance: float,
) -> Exported:
    """``NAME.onnx``, and ``NAME.onnx.data`` above 1 GB; the model is afterwards what it was.

    :param masks: Of the model, by layer.
    :param tolerance: How far an output may be from torch's, in shares of its largest magnitude.
    :raises ModelError: Where the view cannot be exported or differs in onnxruntime; then there is no file.
    """
    files = folder / f"{view.name}.onnx", folder / f"{view.name}.onnx.data"
    types = {id(parameter): parameter.dtype for parameter in view.module.parameters()}
    try:
        with PLACED.held(list(tensors_of(view.module))), torch.no_grad():
            examples = _as_computed(view.inputs), _as_computed(view.other)
            names = _names(model, masks)
            graph = graph_of(view, examples[0], names, opset)
            encoder = _Encoder(graph, masks, {names[key]: types[key] for key in types if key in names}, encoding)
            stored, lost = encoder.encode(), encoder.lost
            if encoding.weights == "coo":
                stored = _save_coo(graph.model, encoder.pruned, stored, *files)
            else:
                _save(graph.model, *files)
            del graph, encoder
            check = _check(view, examples, files[0], stored, encoding, tolerance)
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
    written = tuple(file for file in files if file.exists())
    saved = sum(tensor.dense_bytes - tensor.stored_bytes for tensor in stored)
    size = sum(file.stat().st_size for file in written)
    return Exported(written, tuple(stored), (check,), size + saved, tuple(_notes(files[0].name, stored, lost)))


def _as_computed(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, and in float32 where they are narrower floats, as weights are."""
    there = {name: tensor.detach().cpu() for name, tensor in inputs.items()}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in there.items()}


def _names(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[int, str]:
    """Names in the model by identity, that of its mask where a weight has several."""
    names = {id(tensor): name for name, tensor in (*model.named_buffers(), *model.named_parameters())}
    return names | {id(model.get_parameter(name)): name for name in masks}


class _Encoder:
    """Packs what was pruned, type by type; what stays dense is stored in the 16 bits that it has in the model."""

    def __init__(
        self, graph: Graph, masks: Mapping[str, Tensor], types: Mapping[str, torch.dtype], encoding: Encoding
    ) -> None:
        self.graph, self.masks, self.encoding = graph, masks, encoding
        self.pruned = {name: layer for name, layer in graph.names.items() if layer in masks}
        self.lost = [layer for layer in graph.lost if layer in masks]
        self.own = {name: types[layer] for name, layer in graph.names.items()}
        self.wanted = {name: encoding.dtype or self.own[name] for name in self.pruned}

    def encode(self) -> list[StoredTensor]:
        for name in self.pruned:
            if self.wanted[name] != self.own[name]:
                self._round(name)
        packed = self._packed() if self.encoding.weights == "bitmask" else ()
        told = {tensor.name: tensor for tensor in packed if tensor.form != "dense"}
        sizes = self._narrow()
        told |= {layer: self._dense(layer, sizes[name]) for name, layer in self.pruned.items() if name in sizes}
        told |= {layer: self._dense(layer, 4 * self.masks[layer].numel()) for layer in self.lost}
        return [replace(told[layer], shape=tuple(mask.shape)) for layer, mask in self.masks.items() if layer in told]

    def _round(self, name: str) -> None:
        """Give a weight the values that its type can hold."""
        import onnx_ir as ir

        value = self.graph.model.graph.initializers[name]
        wide = torch.from_numpy(value.const_value.numpy())
        rounded = wide.to(self.wanted[name]).to(wide.dtype)
        gone = int(((wide != 0) & ((rounded == 0) | (rounded.isinf() & wide.isfinite()))).count_nonzero())
        if gone and not self.encoding.lossy:
            dtype = str(self.wanted[name]).removeprefix("torch.")
            raise ModelError(
                f"{self.pruned[name]}: {gone} weights that were kept become zero or infinite in {dtype}. Use values: "
                f"auto or a wider type, or allow it with lossy: true."
            )
        value.const_value = ir.tensor(rounded.numpy(), name=name)

    def _packed(self) -> Iterator[StoredTensor]:
        worthwhile = {name: layer for name, layer in self.pruned.items() if self._shrinks(layer, self.wanted[name])}
        for dtype in dict.fromkeys(self.wanted.values()):
            names = {name: layer for name, layer in worthwhile.items() if self.wanted[name] == dtype}
            patterns = {layer: _pattern(self.masks[layer]) for layer in names.values()}
            yield from pack(
                self.graph.model,
                names,
                layout=self.encoding.form,
                store=dtype,
                patterns=patterns,
                lossy=self.encoding.lossy,
            )

    def _shrinks(self, layer: str, dtype: torch.dtype) -> bool:
        """Whether it takes less than it would dense in that type, and not just less than in float32."""
        mask = self.masks[layer]
        size = int(mask.count_nonzero()) * dtype.itemsize + mask.numel() // 8
        return size + OVERHEAD < mask.numel() * dtype.itemsize

    def _narrow(self) -> dict[str, int]:
        """Bytes of each matrix that is still there."""
        initializers = self.graph.model.graph.initializers
        types = {name: dtype for name, dtype in {**self.own, **self.wanted}.items() if name in initializers}
        wide = {name: initializers[name].const_value.nbytes for name in types}
        return wide | narrow(self.graph.model, {name: dtype for name, dtype in types.items() if dtype.itemsize == 2})

    def _dense(self, layer: str, size: int) -> StoredTensor:
        mask = self.masks[layer]
        return StoredTensor(layer, "dense", tuple(mask.shape), int(mask.count_nonzero()), size, size)


def _pattern(mask: Tensor) -> Pattern | None:
    """2:4, where exactly two are kept of every four inputs."""
    if mask.shape[-1] % SEMI_STRUCTURED.m:
        return None
    kept = mask.reshape(-1, SEMI_STRUCTURED.m).sum(1)
    return SEMI_STRUCTURED if bool((kept == SEMI_STRUCTURED.n).all()) else None


def _save(model: Any, path: Path, data: Path) -> None:
    import onnx_ir as ir

    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    ir.save(model, path, external_data=data.name if size > EXTERNAL_ABOVE else None)


def _save_coo(
    model: Any, names: Mapping[str, str], stored: list[StoredTensor], path: Path, data: Path
) -> list[StoredTensor]:
    """Saved by way of onnx, since onnx_ir has no sparse initializers; what is sparse now replaces what was told."""
    import onnx
    import onnx_ir as ir

    proto: Any = ir.to_proto(model)
    told = {tensor.name: tensor for tensor in to_coo(proto, names)}
    size = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    onnx.save_model(proto, str(path), save_as_external_data=size > EXTERNAL_ABOVE, location=data.name)
    return [replace(told[tensor.name], shape=tensor.shape) if tensor.name in told else tensor for tensor in stored]


def _check(
    view: View,
    examples: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    path: Path,
    stored: list[StoredTensor],
    encoding: Encoding,
    tolerance: float,
) -> Check:
    import onnx

    # ONNX cannot tell the shapes of a graph with sparse initializers.
    onnx.checker.check_model(str(path), full_check=encoding.weights != "coo")
    session = _session(path, _unpacking(stored))
    worst = worst_difference(session, view, examples)
    if worst.over(tolerance):
        raise ModelError(_refusal(view.name, worst, tolerance, encoding))
    return Check(path.name, view.name, "onnxruntime", worst.difference, tolerance * worst.scale)


def _session(path: Path, unpacking: int) -> Any:
    import onnxruntime

    if unpacking > UNPACKED_AT_MOST:
        from ecoflap.onnx import load_session

        return load_session(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors, which are raised too
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _refusal(view: str, worst: Difference, tolerance: float, encoding: Encoding) -> str:
    way_out = "Set a larger tolerance, if that is near enough"
    if encoding.dtype not in (None, torch.float32):
        way_out += ", or values: auto"
    return (
        f"view {view!r}: output {worst.output!r} in onnxruntime is up to {worst.difference:.1e} from torch's, whose "
        f"largest magnitude is {worst.scale:.1e}; tolerance {tolerance:.0e} allows {tolerance * worst.scale:.1e}. The "
        f"file was removed. {way_out}."
    )


def _unpacking(stored: list[StoredTensor]) -> int:
    """Bytes of memory that onnxruntime takes for what is unpacked, while it loads the file."""
    return sum(UNPACKING.get(tensor.form, 0) * torch.Size(tensor.shape).numel() for tensor in stored)


def _notes(file: str, stored: list[StoredTensor], lost: list[str]) -> Iterator[str]:
    if (memory := _unpacking(stored)) > UNPACKED_AT_MOST:
        yield (
            f"{file}: a plain onnxruntime takes some {memory / 1e9:.0f} GB of memory to load it. Load it with "
            f"ecoflap.onnx.load_session, or make an ordinary file of it with: ecoflap densify {file}"
        )
    if lost:
        yield f"{file}: stored dense, as parts of other constants of the graph: {', '.join(lost)}"
    if any(tensor.form == "coo" for tensor in stored):
        yield f"{file}: its weights are sparse initializers, which OpenVINO does not read. weights: bitmask is smaller."
