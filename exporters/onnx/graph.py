"""Make an ONNX graph of a view of a torch model, whose matrices go by the names that they have in the model."""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from textwrap import shorten
from typing import Any, cast

import torch
from torch import Tensor, nn

from ecoflap.core.contracts.records import View
from ecoflap.core.errors import ModelError
from ecoflap.exporters.onnx.allowed_types import compute_in_float32, index_by_int64

IR_VERSION = 10  # what onnxruntime reads since 1.20
TRANSPOSED = ".transposed"
UNSOLVED = "is inconsistent!"
"""What torch's solver says of sizes with a ``max(0, …)`` in them, as MPT's bias by distance has, that do fit."""


@dataclass(frozen=True)
class Graph:
    """Holds an optimised graph.

    :param model: An ``onnx_ir.Model``.
    :param names: Initializers that are a matrix of the model, or its transpose, by the matrix' name in the model.
    :param transposed: Those that are its transpose.
    :param lost: Matrices that the graph computes with, but that became part of another constant.
    """

    model: Any
    names: Mapping[str, str]
    transposed: frozenset[str]
    lost: tuple[str, ...]

    def release(self) -> None:
        """Let go of its weights once it is written: onnxscript's rules hold the last graph until they see another."""
        for value in self.model.graph.initializers.values():
            value.const_value = None


class _Plain(nn.Module):
    """Takes any view's inputs as they come."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.module(*inputs))


def graph_of(view: View, inputs: Mapping[str, Tensor], names: Mapping[int, str], opset: int) -> Graph:
    """Export a view and optimise its graph.

    :param inputs: The view's example, in the types it is computed in.
    :param names: Names in the model, by the identity of the parameter or buffer.
    :raises ModelError: Where torch cannot export it, or an axis that should vary came out fixed.
    """
    module = _Plain(view.module).eval()
    model = _exported(view, module, inputs, opset)
    _check_axes(view, model)
    compute_in_float32(model.graph)
    matrices, others = _named(module, names)
    found, transposed, lost = _optimised(model, matrices)
    index_by_int64(model.graph)  # of which the types are known now
    _rename(model.graph, others)
    _make_anonymous(model)
    return Graph(model, found, transposed, lost)


def _named(module: nn.Module, names: Mapping[int, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Give the names in the model by those in the exported module: first of matrices, then of all else."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    tensors = {**dict(module.named_buffers(remove_duplicate=False)), **parameters}
    known = {name: names[id(tensor)] for name, tensor in tensors.items() if id(tensor) in names}
    matrices = {name for name, parameter in parameters.items() if parameter.ndim > 1}
    return (
        {name: called for name, called in known.items() if name in matrices},
        {name: called for name, called in known.items() if name not in matrices},
    )


def _exported(view: View, module: nn.Module, inputs: Mapping[str, Tensor], opset: int) -> Any:
    axes = tuple(dict(view.dynamic.get(name, {})) for name in inputs)
    write = partial(
        torch.onnx.export,
        dynamo=True,
        optimize=False,  # it would forget the names of weights
        verbose=False,
        opset_version=opset,
        input_names=list(inputs),
        output_names=list(view.outputs),
        dynamic_shapes=(axes,),
    )
    with warnings.catch_warnings():
        # Equal names of axes are said to be one axis, and torch's own modules are out of date with each other.
        warnings.simplefilter("ignore")
        try:
            with _buffers_of_their_own(module):
                try:
                    program = write(module, tuple(inputs.values()))
                except Exception as error:
                    if UNSOLVED not in str(_first(error)):
                        raise
                    program = write(_captured(module, inputs, axes))
        except Exception as error:
            raise ModelError(
                f"view {view.name!r}: torch cannot export it to ONNX: {_first_cause(error, list(inputs))}. Export "
                f"other views, or use the exporter torchscript or safetensors."
            ) from error
    model: Any = cast(Any, program).model
    written = model.opset_imports.get("")
    if written != opset:
        raise ModelError(
            f"view {view.name!r}: torch {torch.__version__} wrote opset {written}, not {opset}. Set opset: {written}, "
            f"or use another version of torch."
        )
    return model


@contextmanager
def _buffers_of_their_own(module: nn.Module) -> Iterator[None]:
    """Have buffers that are views of other tensors, as transformers leaves some that it has read, be none for a while.

    torch looks at what a view is of, and refuses one that was widened: what it is of is still in 16 bits.
    """
    buffers = [(one, name, buffer) for one in module.modules() for name, buffer in one._buffers.items()]
    views = [(one, name, buffer) for one, name, buffer in buffers if buffer is not None and buffer._is_view()]
    own = {id(buffer): buffer.data for *_, buffer in views}  # several modules may have the same one
    try:
        for one, name, buffer in views:
            one._buffers[name] = own[id(buffer)]
        yield
    finally:
        for one, name, buffer in views:
            one._buffers[name] = buffer


def _captured(module: nn.Module, inputs: Mapping[str, Tensor], axes: Sequence[Mapping[int, str]]) -> Any:
    """Capture a module without proof that its sizes fit together at every length; the file is run at two of them."""
    sizes = [dict.fromkeys(names, torch.export.Dim.DYNAMIC) for names in axes]
    return torch.export.export(
        module,
        tuple(inputs.values()),
        dynamic_shapes=(tuple(sizes),),
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def _first(error: BaseException) -> BaseException:
    """Give what began an error of torch's exporter, which is the last of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_cause(error: BaseException, inputs: Sequence[str]) -> str:
    """Say what began an error, with the inputs by their names."""
    error = _first(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = shorten(" ".join(lines[:3]), 300, placeholder=" …").rstrip(".")
    text = re.sub(r"inputs\['inputs'\]\[(\d+)\]", lambda found: inputs[int(found[1])], text)
    return f"{type(error).__name__}: {text}"


def _check_axes(view: View, model: Any) -> None:
    shapes = {value.name: value.shape for value in model.graph.inputs}
    absent = [name for name in view.inputs if name not in shapes]
    if absent:
        raise ModelError(
            f"view {view.name!r}: the exported graph has no input {', '.join(absent)}: it does not use it."
        )
    fixed = [
        f"{name}[{axis}] ({called}) is always {shapes[name][axis]}"
        for name, axes in view.dynamic.items()
        for axis, called in axes.items()
        if isinstance(shapes[name][axis], int)
    ]
    if fixed:
        raise ModelError(
            f"view {view.name!r}: axes that should vary came out fixed: {'; '.join(fixed)}. The model looks at the "
            f"size in Python: change it there, or leave this view out."
        )


def _optimised(model: Any, own: Mapping[str, str]) -> tuple[dict[str, str], frozenset[str], tuple[str, ...]]:
    """Fold what is constant, and find the matrices again: a linear layer's is folded into its transpose.

    :param own: Names in the model, by those in the graph.
    """
    from onnxscript.optimizer import optimize_ir

    graph = model.graph
    used = {name: graph.initializers[name] for name in own if name in graph.initializers}
    used = {name: value for name, value in used.items() if value.uses()}
    transposed: dict[str, str] = {}
    for name, value in used.items():
        _merge_transposes(value)
        transposed |= {node.outputs[0].name: name for node in _transposes(value)}
    with _quiet("onnxscript"):
        optimize_ir(model, should_fold=lambda node: _is_folded(node, own))
    layers = {name: own[transposed.get(name, name)] for name in graph.initializers if name in own or name in transposed}
    called = _rename(graph, {name: layer + TRANSPOSED * (name in transposed) for name, layer in layers.items()})
    found = set(layers.values())
    return (
        {called[name]: layer for name, layer in layers.items()},
        frozenset(called[name] for name in layers if name in transposed),
        tuple(own[name] for name in used if own[name] not in found),
    )


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Silence a logger's warnings: the optimiser writes one for each node that it leaves alone."""
    speaker = logging.getLogger(logger)
    before = speaker.level
    speaker.setLevel(logging.ERROR)
    try:
        yield
    finally:
        speaker.setLevel(before)


def _is_folded(node: Any, own: Mapping[str, str]) -> bool | None:
    """Say whether a node is computed once and for all; None leaves it to the optimiser.

    A matrix must be found again: of the nodes that read one only its transpose is folded, and that only where nothing
    else reads the matrix.
    """
    matrices = [value for value in node.inputs if value is not None and value.name in own and value.is_initializer()]
    if not matrices:
        return None
    return is_transpose(node) and len(matrices[0].uses()) == 1


def is_transpose(node: Any) -> bool:
    """Say whether a node transposes a matrix."""
    perm = node.attributes.get("perm")
    return node.op_type == "Transpose" and perm is not None and list(perm.as_ints()) == [1, 0]


def _transposes(value: Any) -> list[Any]:
    return [node for node, _ in value.uses() if is_transpose(node)]


def _merge_transposes(value: Any) -> None:
    """Make one of a matrix' transposes: a module that is called twice would have its weight stored twice."""
    first, *others = _transposes(value) or [None]
    for node in others:
        node.outputs[0].replace_all_uses_with(first.outputs[0])
        node.graph.remove(node, safe=True)


def _rename(graph: Any, wanted: Mapping[str, str]) -> dict[str, str]:
    """Call initializers by their names in the model, where nothing else has that name.

    :return: What each is called now.
    """
    taken = {output.name for node in graph.all_nodes() for output in node.outputs}
    taken |= {*graph.initializers, *(value.name for value in graph.inputs)}
    for name in [name for name in wanted if name in graph.initializers and wanted[name] not in taken]:
        value = graph.initializers[name]
        value.name = value.const_value.name = wanted[name]
        taken.add(wanted[name])
    return {name: new if new in graph.initializers else name for name, new in wanted.items()}


def _make_anonymous(model: Any) -> None:
    """Drop what torch notes of its own work: the source line of each node, with its path."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "ecoflap", version("ecoflap")
    model.graph.name = "view"
    for thing in (model, *_things_in(model.graph)):
        thing.metadata_props.clear()
        thing.doc_string = None
    for function in model.functions.values():
        for thing in (function, *function.inputs, *_nodes_in(function)):
            thing.metadata_props.clear()
            thing.doc_string = None


def _things_in(graph: Any) -> Iterator[Any]:
    from onnx_ir import serde

    yield from (graph, *graph.inputs)
    for value in graph.initializers.values():
        # A constant that torch folded is a message of ONNX, whose doc_string has nothing in it, and cannot be set.
        is_folded = isinstance(value.const_value, serde.TensorProtoTensor)
        yield from (value,) if is_folded else (value, value.const_value)
    yield from _nodes_in(graph)


def _nodes_in(graph: Any) -> Iterator[Any]:
    for node in graph.all_nodes():
        yield from (node, *node.outputs)
        if node.graph is not graph:
            yield node.graph
