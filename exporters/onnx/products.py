"""Make linear layers of an ONNX graph products with a packed matrix, one node each, in an ``onnx_ir.Model``.

A linear layer is a ``MatMul`` whose second factor is the weight, [inputs, outputs], or a ``Gemm``, which may have it
transposed, [outputs, inputs]. Whatever else reads a weight, an embedding for one, needs it dense. Embeddings and heads
may be rounded to int8 all the same, by :func:`round_vocabulary`: rows are looked up in int8, by standard operators, or
where one weight is both in the matrix that is multiplied, which is stored once.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ecoflap.core.contracts.records import Vocabulary
from ecoflap.core.errors import EcoflapError, KernelError
from ecoflap.core.kernel.matrix import kept_in_int8, pack_dense
from ecoflap.core.kernel.order import shape_of
from ecoflap.core.kernel.whole_numbers import rounded_rows
from ecoflap.exporters.onnx.forms import rows
from ecoflap.exporters.onnx.forms.form import DOMAIN
from ecoflap.exporters.onnx.forms.product import EXACT, INT8, SIZES, SLACK, Product, sizes_of
from ecoflap.exporters.onnx.graph import TRANSPOSED, is_transpose
from ecoflap.exporters.onnx.scratch import Keep, rows_of

LARGEST = 2**28 - 1
"""Elements of the largest weight that is packed: onnxruntime unpacks none that takes it more than 1 GiB in int32."""

LOOKED_UP = "int8"
"""What reports call an embedding whose rows are in int8, and that is no product."""

_UNSAID = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
"""What a ``Gemm`` is that says nothing: a linear layer, as is one that has the weight transposed."""


def is_transposed(weight: Any) -> bool | None:
    """Say whether a weight is [outputs, inputs]; None where not all that reads it are linear layers of one kind."""
    kinds = {kind_of(node, at) for node, at in weight.uses()}
    return kinds.pop() if len(kinds) == 1 and not weight.is_graph_output() else None


def kind_of(node: Any, at: int) -> bool | None:
    """Say whether a linear layer reads a weight as [outputs, inputs]; None of a node that is none.

    :param at: The number of the input that the weight is.
    """
    if at != 1 or node.domain:
        return None
    if node.op_type == "MatMul":
        return False
    given = _UNSAID | {name: attribute.value for name, attribute in node.attributes.items()}
    is_layer = node.op_type == "Gemm" and given | {"transB": 0} == _UNSAID
    return bool(given["transB"]) if is_layer else None


def encode(weight: NDArray[Any], product: Product = EXACT) -> tuple[NDArray[Any], ...]:
    """Give what is stored of a weight [inputs, outputs], part by part: values in its type, or in int8.

    :raises KernelError: Where a weight that is to be int8 is not finite.
    """
    bits = torch.from_numpy(np.require(weight.T, requirements=("C", "W")).view(f"i{weight.itemsize}"))
    dtype = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[weight.dtype.name]
    packed = pack_dense(bits.view(dtype), values="int8" if product is INT8 else "exact")
    shape, own = shape_of(packed), np.dtype(np.int8) if product is INT8 else weight.dtype
    end = shape.values_at + shape.kept * shape.itemsize
    masks, values = packed[shape.masks_at : shape.scales_at].clone(), packed[shape.values_at : end]
    zeros = np.zeros(SLACK, np.uint8)
    stored = np.concatenate([values.numpy(), zeros]).view(own)
    parts = stored, masks.numpy().reshape(sizes_of(own, *weight.shape).masks)
    if product is EXACT:
        return parts
    scales = packed[shape.scales_at : shape.scales_at + 4 * shape.outputs]
    return (*parts, scales.numpy().copy().view(np.float32))


def rounded(matrix: NDArray[Any], name: str) -> tuple[NDArray[Any], ...]:
    """Give what is stored of a matrix [inputs, outputs] in int8: a kept weight that rounds to zero stays kept.

    :param name: For the message, where a weight is not finite.
    """
    with _named(name):
        return encode(matrix, INT8)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Name the weight that cannot be rounded, and say the way out."""
    try:
        yield
    except KernelError as error:
        raise EcoflapError(f"{name}: {error}. Leave it in floats: values: auto, embeddings: dense.") from error


def names_taken(model: Any) -> set[str]:
    """Give the names that no initializer can be given any more."""
    taken = {value.name for node in model.graph for value in node.outputs}
    return taken | {*model.graph.initializers, *(value.name for value in model.graph.inputs)}


def in_the_way(weight: Any, names: Iterable[str], taken: Collection[str]) -> list[str]:
    """Say which of the names that a packed weight brings along are taken."""
    return [f"{name} is in the way: {weight.name} is packed under this name" for name in names if name in taken]


def replace(model: Any, weight: Any, name: str, product: Product, parts: Sequence[NDArray[Any]]) -> None:
    """Put products in the place of the linear layers that read a weight, and what is stored of it in its place.

    :param weight: The initializer, for which :func:`is_transposed` has an answer.
    :param name: Of the weight as [inputs, outputs].
    """
    shape = weight.const_value.shape.numpy()
    sizes = shape[::-1] if is_transposed(weight) else shape
    stored = register(model, product.initializers(name), parts)
    for node, _ in list(weight.uses()):
        replace_node(node, product, stored, sizes)
    model.graph.initializers.pop(weight.name)


def register(model: Any, names: Sequence[str], arrays: Sequence[NDArray[Any]]) -> list[Any]:
    """Make initializers of arrays."""
    import onnx_ir as ir

    stored = []
    for name, array in zip(names, arrays, strict=True):
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        model.graph.register_initializer(value)
        stored.append(value)
    return stored


def replace_node(node: Any, product: Product, stored: Sequence[Any], sizes: Sequence[int]) -> None:
    """Put a product in the place of a linear layer.

    :param stored: The initializers that it multiplies by.
    :param sizes: [inputs, outputs].
    """
    import onnx_ir as ir

    (x, _, *bias), (y,) = node.inputs, node.outputs
    attributes = [ir.AttrInt64s(SIZES, list(sizes))]
    made = [ir.Node(DOMAIN, product.function, [x, *stored], attributes, name=node.name)]
    if bias and bias[0] is not None:
        sums = made[0].outputs[0]
        sums.name, sums.type, sums.shape = f"{y.name}.product", y.type, y.shape
        made.append(ir.Node("", "Add", [sums, bias[0]], name=f"{node.name}.bias" if node.name else None))
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], made, [y], [made[-1].outputs[0]])


def add_function(model: Any, proto: Any) -> None:
    """Bring a function along by which a runtime without the library does what an operator of it does."""
    import onnx_ir as ir

    function = ir.serde.deserialize_function(proto)
    model.functions[function.identifier()] = function
    model.opset_imports[DOMAIN] = 1


def round_vocabulary(model: Any, weight: Any, name: str, keep: Keep) -> tuple[str, int] | None:
    """Store an embedding, a head, or one that is both, in int8, in place, pruned or not.

    :param weight: The initializer: [words, width], or [width, words] where only ``MatMul`` reads it.
    :param name: Of it in the model.
    :return: What reports call that, and its bytes; None where it stays as it is, since something else reads it too.
    :raises EcoflapError: Where it is not finite, or a name that it brings along is taken.
    """
    turned = is_transposed(weight) is False
    readers = _readers(weight, turned)
    if readers is None or not _can_be_rounded(weight, turned, readers.layers):
        return None
    array: NDArray[Any] = weight.const_value.numpy()
    matrix, title = (array, weight.name) if turned else (array.T, f"{weight.name}{TRANSPOSED}")
    names = INT8.initializers(title) if readers.layers else (f"{weight.name}.rows", f"{weight.name}.row_scales")
    if problems := in_the_way(weight, names, names_taken(model)):
        raise EcoflapError(*problems)
    parts = [keep(part) for part in (rounded(matrix, name) if readers.layers else _rows(array, name))]
    stored = register(model, names, parts)
    if readers.layers:
        _read_packed(model, readers, stored, matrix.shape)
    else:
        for lookup in readers.lookups:
            _replace_lookup(lookup, *stored)
    model.graph.initializers.pop(weight.name)
    return INT8.form if readers.layers else LOOKED_UP, sum(part.nbytes for part in parts)


def _read_packed(model: Any, readers: "_Readers", stored: Sequence[Any], sizes: Sequence[int]) -> None:
    """Put products in the places of layers, and lookups in a packed matrix in those of lookups in a dense one."""
    for layer in readers.layers:
        replace_node(layer, INT8, stored, sizes)
    for transpose in readers.transposes:
        transpose.graph.remove(transpose, safe=True)
    add_function(model, INT8.proto(model.opset_imports[""]))
    for lookup in readers.lookups:
        _look_up_packed(lookup, stored, sizes)
    if readers.lookups:
        add_function(model, rows.proto(model.opset_imports[""]))


def can_be_multiplied(inputs: int, outputs: int) -> bool:
    """Say whether a matrix in int8 is not too large to be unpacked where no kernel multiplies."""
    return 8 * prod(_masks(inputs, outputs)) <= LARGEST


def bytes_in_int8(nonzeros: int, size: int) -> int:
    """Give the bytes of a matrix in int8 and of its masks, without its scales and what fills masks up."""
    return kept_in_int8(nonzeros, size) + size // 8


def bytes_of_vocabulary(one: Vocabulary, kept: int) -> int:
    """Give the bytes that :func:`round_vocabulary` makes of a matrix [words, width].

    :param kept: How many of its weights are not zero.
    """
    words, width = one.parameter.shape
    return bytes_of_product(width, words, kept) if one.is_multiplied else words * (width + 4)


def bytes_of_product(inputs: int, outputs: int, kept: int) -> int:
    """Give the bytes of a matrix in int8, with its scales and what fills masks up.

    :param kept: How many of its weights are not zero.
    """
    return kept_in_int8(kept, inputs * outputs) + SLACK + prod(_masks(inputs, outputs)) + 4 * outputs


def _masks(inputs: int, outputs: int) -> tuple[int, int, int]:
    return sizes_of(np.dtype(np.int8), inputs, outputs).masks


@dataclass(frozen=True)
class _Readers:
    """Holds the nodes that read an embedding or a head.

    :param lookups: Those that take rows of it.
    :param layers: Linear layers.
    :param transposes: What is between it and some of those.
    """

    lookups: list[Any] = field(default_factory=list)
    layers: list[Any] = field(default_factory=list)
    transposes: list[Any] = field(default_factory=list)


def _readers(weight: Any, turned: bool) -> _Readers | None:
    """Sort the nodes that read a weight; None where one is of another kind.

    :param turned: Whether it is [width, words].
    """
    found = _Readers()
    for node, at in weight.uses():
        if _is_lookup(node, at):
            found.lookups.append(node)
        elif is_transpose(node) and is_transposed(node.outputs[0]) is False:
            found.transposes.append(node)
            found.layers.extend(layer for layer, _ in node.outputs[0].uses())
        elif kind_of(node, at) is (not turned):
            found.layers.append(node)
        else:
            return None
    return found


def _is_lookup(node: Any, at: int) -> bool:
    axis = node.attributes.get("axis")
    return (node.op_type, node.domain, at) == ("Gather", "", 0) and (axis is None or axis.as_int() == 0)


def _can_be_rounded(weight: Any, turned: bool, layers: Sequence[Any]) -> bool:
    """Say whether it is a matrix of the graph's own, and not too large to be unpacked where it is multiplied."""
    shape, dtype = weight.const_value.shape.numpy(), weight.const_value.dtype.name
    if len(shape) != 2 or dtype != "FLOAT" or weight.is_graph_input() or weight.is_graph_output() or not weight.uses():
        return False
    inputs, outputs = shape if turned else shape[::-1]
    return not layers or can_be_multiplied(inputs, outputs)


def _rows(weight: NDArray[Any], name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round rows, some at a time: whole numbers, and a scale for each row."""
    with _named(name):
        pieces = [rounded_rows(torch.from_numpy(np.ascontiguousarray(piece))) for piece in rows_of(weight)]
    whole, scales = (torch.cat(parts).numpy() for parts in zip(*pieces, strict=True))
    return whole, scales[:, None]


def _look_up_packed(node: Any, stored: Sequence[Any], sizes: Sequence[int]) -> None:
    """Look rows up in a matrix that a product multiplies with.

    :param stored: Its initializers.
    :param sizes: [inputs, outputs].
    """
    import onnx_ir as ir

    ids, (y,) = node.inputs[1], node.outputs
    made = [] if ids.dtype == ir.DataType.INT64 else [ir.node("Cast", [ids], {"to": ir.DataType.INT64})]
    if made:
        made[0].outputs[0].name = f"{y.name}.ids"
    numbers = made[0].outputs[0] if made else ids
    made.append(ir.Node(DOMAIN, rows.FUNCTION, [numbers, *stored], [ir.AttrInt64s(SIZES, list(sizes))], name=node.name))
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], made, [y], [made[-1].outputs[0]])


def _replace_lookup(node: Any, numbers: Any, scales: Any) -> None:
    """Look rows up in whole numbers, and multiply them with their scales."""
    import onnx_ir as ir

    ids, (y,) = node.inputs[1], node.outputs
    looked_up, scale = ir.node("Gather", [numbers, ids]), ir.node("Gather", [scales, ids])
    cast = ir.node("Cast", looked_up.outputs, {"to": ir.DataType.FLOAT})
    times = ir.node("Mul", [*cast.outputs, *scale.outputs])
    wide = ir.DataType.FLOAT
    for made, what, dtype in ((looked_up, "rows", numbers.dtype), (scale, "scales", wide), (cast, "whole", wide)):
        made.outputs[0].name, made.outputs[0].dtype = f"{y.name}.{what}", dtype
    nodes = [looked_up, scale, cast, times]
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], nodes, [y], times.outputs)
