"""Store pruned weights of an ONNX graph in packed form: stock onnxruntime unpacks them once, on loading the model.

A packed weight keeps its name in the graph; NAME.values, NAME.mask (or NAME.positions) and NAME.shape are initializers.
That of a linear layer may be multiplied as it is instead, by one node: NAME.values, NAME.masks and, of int8,
NAME.scales. These forms are packed here, in an ``onnx_ir.Model``; sparse initializers, which onnx_ir does not have, by
:func:`ecoflap.exporters.onnx.forms.coo.to_coo`, as messages that are written in the places of initializers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.contracts.records import StoredTensor
from ecoflap.core.errors import EcoflapError, unknown
from ecoflap.core.packed.packing import LEAST_SPARSITY
from ecoflap.exporters.onnx import products
from ecoflap.exporters.onnx.forms import bitmask as onnx_bitmask
from ecoflap.exporters.onnx.forms import pattern as onnx_pattern
from ecoflap.exporters.onnx.forms.bitmask import BITMASK
from ecoflap.exporters.onnx.forms.form import DOMAIN, Convert, Form
from ecoflap.exporters.onnx.forms.pattern import PATTERN
from ecoflap.exporters.onnx.forms.product import EXACT, INT8, Product
from ecoflap.exporters.onnx.graph import TRANSPOSED
from ecoflap.exporters.onnx.scratch import Keep, in_memory
from ecoflap.exporters.onnx.settings import Storage
from ecoflap.exporters.onnx.tensors import library

OVERHEAD = 512
"""Bytes that packing a weight costs beside its initializers: names, a node, where its data are."""

_OPSET = 18  # the first with BitwiseAnd


@dataclass(frozen=True)
class _Encoded:
    """Is a weight as it will be stored; without a form it stays as it is.

    :param form: What unpacks it, or multiplies with it as it is.
    :param parts: What is stored of it, but for the shape that a form may have.
    """

    stored: StoredTensor
    weight: Any
    form: Form | Product | None = None
    parts: tuple[NDArray[Any], ...] = ()

    @property
    def name(self) -> str:
        """Give the name of what is packed: [inputs, outputs] where it is multiplied as it is."""
        turned = isinstance(self.form, Product) and products.is_transposed(self.weight)
        return f"{self.weight.name}{TRANSPOSED}" if turned else str(self.weight.name)

    def kept(self, keep: Keep) -> "_Encoded":
        """Keep what is stored of it somewhere."""
        return replace(self, parts=tuple(map(keep, self.parts)))

    @property
    def initializers(self) -> tuple[str, ...]:
        """Name the initializers that take its place."""
        return self.form.initializers(self.name) if self.form else ()


def pack(
    model: Any,
    names: Mapping[str, str],
    storage: Storage,
    patterns: Mapping[str, Pattern | None] = {},
    keep: Keep = in_memory,
) -> list[StoredTensor]:
    """Pack pruned weights of a graph, in place. Do it last: optimizers would unpack them again.

    A weight that would not get smaller stays dense, and so does one of more than :data:`products.LARGEST` elements or
    one that is also an input of the graph. Nothing is changed if an error is raised.

    :param model: An ``onnx_ir.Model`` of opset 18 or later.
    :param names: Initializers of the graph, and for each the pruned layer's name. What is zero in the initializer is
        what is pruned; ``-0.0`` is zero too.
    :param storage: Of which the form ``coo`` packs nothing here.
    :param patterns: By layer, the pattern it was pruned to; only ``Pattern(2, 4)`` matters here.
    :param keep: Keeps what is stored of a weight until all of it is written.
    :return: One for each of ``names``, in their order.
    """
    layers = list(names.values())
    called = {name: layer if layers.count(layer) == 1 else name for name, layer in names.items()}
    encoded: list[_Encoded] = []
    problems: list[str] = []
    for name, layer in names.items():
        try:
            weight = _initializer(model, name, layer)
            one = _encode(weight, called[name], storage, patterns.get(layer) == Pattern(2, 4))
            encoded.append(one.kept(keep))
        except EcoflapError as error:
            problems += error.problems
    packed = [one for one in encoded if one.form]
    problems += _names_in_the_way(model, packed, storage.form)
    if problems:
        raise EcoflapError(*problems)
    _replace_all(model, packed, storage.form)
    return [one.stored for one in encoded]


def _initializer(model: Any, name: str, layer: str) -> Any:
    if name not in model.graph.initializers:
        raise EcoflapError(f"{layer}: the graph has {unknown('initializer', name, list(model.graph.initializers))}")
    weight = model.graph.initializers[name]
    if weight.const_value is None:
        raise EcoflapError(f"{layer}: the initializer {name} has no data. Export the model with its weights.")
    if weight.const_value.dtype.name.lower() not in ("double", "float", "float16", "bfloat16"):
        raise EcoflapError(
            f"{layer}: the initializer {name} is {weight.const_value.dtype.name}; only floats of 16, 32 or 64 bits are "
            f"packed"
        )
    return weight


def _encode(value: Any, name: str, storage: Storage, has_pattern: bool) -> _Encoded:
    weight = value.const_value.numpy()
    nonzeros, shape = int(np.count_nonzero(weight)), tuple(weight.shape)
    dense = _Encoded(StoredTensor(name, "dense", shape, nonzeros, weight.nbytes, weight.nbytes), value)
    if storage.weights not in ("bitmask", "packed_op") or weight.size > products.LARGEST or value.is_graph_input():
        return dense
    dtype = _stored_type(weight.dtype, storage.values)
    convert = partial(_cast, name=name, dtype=dtype, lossy=storage.lossy)
    narrow = replace(dense, stored=replace(dense.stored, dense_bytes=weight.size * dtype.itemsize))
    product = _product(narrow, convert, storage.int8) if storage.weights == "packed_op" else None
    return product or _smallest(narrow, convert, has_pattern) or dense


def _smallest(dense: _Encoded, convert: Convert, has_pattern: bool) -> _Encoded | None:
    """Store a weight in the form that takes least; None where none takes less than it does dense."""
    weight, found = dense.weight.const_value.numpy(), None
    for kind, values, places in _encodings(weight, has_pattern, convert):
        size = values.nbytes + places.nbytes + 8 * weight.ndim
        if size + OVERHEAD < dense.stored.dense_bytes and (found is None or size < found.stored.stored_bytes):
            stored = replace(dense.stored, form=kind.name, stored_bytes=size)
            found = _Encoded(stored, dense.weight, kind, (values, places))
    return found


def _product(dense: _Encoded, convert: Convert, int8: bool) -> _Encoded | None:
    """Store the weight of a linear layer as it is multiplied; None where it is none, or would gain nothing."""
    stored, transposed = dense.stored, products.is_transposed(dense.weight)
    weight = dense.weight.const_value.numpy()
    # Whole numbers are a quarter of what is read otherwise, whatever is zero.
    gains = int8 or stored.nonzeros <= (1 - LEAST_SPARSITY) * weight.size
    if transposed is None or weight.ndim != 2 or weight.dtype != np.float32 or not gains:
        return None
    matrix = weight.T if transposed else weight
    product = INT8 if int8 else EXACT
    parts = products.rounded(matrix, stored.name) if int8 else products.encode(convert(matrix))
    size = sum(part.nbytes for part in parts)
    too_large = 8 * parts[1].nbytes > products.LARGEST  # to unpack, filled up as it is
    if size + OVERHEAD >= stored.dense_bytes or too_large:
        return None
    return _Encoded(replace(stored, form=product.form, stored_bytes=size), dense.weight, product, parts)


def _encodings(
    weight: NDArray[Any], has_pattern: bool, convert: Convert
) -> Sequence[tuple[Form, NDArray[Any], NDArray[Any]]]:
    """Give the ways to store a weight; of two that take as much, the one that is unpacked faster comes first."""
    found = []
    if has_pattern and (groups := onnx_pattern.grouped(weight)) is not None:
        found.append((PATTERN, *onnx_pattern.encode(groups, convert)))
    found.append((BITMASK, *onnx_bitmask.encode(weight, convert)))
    return found


def _stored_type(own: np.dtype[Any], wanted: torch.dtype | None) -> np.dtype[Any]:
    import ml_dtypes

    if wanted is None:
        return own
    types = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: ml_dtypes.bfloat16}
    if wanted not in types:
        raise EcoflapError(f"values cannot be stored as {wanted}. Known: float32, float16, bfloat16.")
    chosen = np.dtype(types[wanted])
    return chosen if chosen.itemsize < own.itemsize else own


def _cast(weight: NDArray[Any], name: str, dtype: np.dtype[Any], lossy: bool) -> NDArray[Any]:
    """Give values in the type they are stored in; an error where that loses one and may not."""
    if weight.dtype == dtype:
        return weight
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        stored = weight.astype(dtype)
    vanished = int(np.count_nonzero(weight) - np.count_nonzero(stored))
    exceeded = int(np.isinf(stored).sum() - np.isinf(weight).sum())
    if (vanished or exceeded) and not lossy:
        lost = f"{vanished} weights become zero and {exceeded} infinite"
        raise EcoflapError(
            f"{name}: {lost} as {dtype.name}. Store values in a wider type, bfloat16 or float32, or allow it with "
            f"'lossy: true'."
        )
    return stored


def _names_in_the_way(model: Any, packed: Sequence[_Encoded], layout: str) -> Sequence[str]:
    """Say which names that packed weights bring along the graph has already."""
    taken = products.names_taken(model)
    problems: list[str] = []
    for one in packed:
        new = set(one.initializers)
        if layout == "inline" and isinstance(one.form, Form):
            new |= {name for node in one.form.nodes(one.weight.name, 1) for name in node.output} - {one.weight.name}
        problems += products.in_the_way(one.weight, new, taken)
    version = model.opset_imports.get("", 0)
    if packed and version < _OPSET:
        problems.append(f"packed weights take opset {_OPSET} or later; the model has {version}. Export it anew.")
    return problems


def _replace_all(model: Any, packed: Sequence[_Encoded], layout: str) -> None:
    ir = library("onnx_ir")
    multiplied = [(one, one.form) for one in packed if isinstance(one.form, Product)]
    for one, product in multiplied:
        products.replace(model, one.weight, one.name, product, one.parts)
    for product in {product.function: product for _, product in multiplied}.values():
        products.add_function(model, product.proto(model.opset_imports[""]))
    unpacked = [(one, one.form) for one in packed if isinstance(one.form, Form)]
    nodes = [node for one, form in unpacked for node in _replace(ir, model, one, form, layout)]
    if nodes:
        if len(model.graph):
            model.graph.insert_before(model.graph[0], nodes)
        else:
            model.graph.extend(nodes)
    if layout == "function" and unpacked:
        for form in {form.function: form for _, form in unpacked}.values():
            function = ir.serde.deserialize_function(form.proto(model.opset_imports[""]))
            model.functions[function.identifier()] = function
        model.opset_imports[DOMAIN] = 1


def _replace(ir: Any, model: Any, one: _Encoded, form: Form, layout: str) -> list[Any]:
    """Put a weight's packed initializers in the place of the dense one, and return the nodes that unpack it."""
    weight = one.weight
    name, dtype = weight.name, weight.const_value.dtype
    shape = np.array(weight.const_value.shape.numpy(), np.int64)
    known = {}
    for initializer, array in zip(form.initializers(name), (*one.parts, shape), strict=True):
        known[initializer] = _constant(ir, initializer, array)
        model.graph.register_initializer(known[initializer])
    protos = [form.call(name, int(dtype))] if layout == "function" else form.nodes(name, int(dtype))
    model.graph.initializers.pop(name)
    weight.const_value = None
    known[name] = weight
    return [_node(ir, proto, known) for proto in protos]


def _constant(ir: Any, name: str, array: Any) -> Any:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)


def _node(ir: Any, proto: Any, known: dict[str, Any]) -> Any:
    """Make a node of the graph, between values that are known by name."""
    outputs = [known.setdefault(name, ir.Value(name=name)) for name in proto.output]
    inputs = [known[name] for name in proto.input]
    attributes = [ir.serde.deserialize_attribute(attribute) for attribute in proto.attribute]
    return ir.Node(proto.domain, proto.op_type, inputs, attributes, outputs=outputs, name=proto.name)
