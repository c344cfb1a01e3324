"""Find the packed weights of an ONNX model and decode them with numpy; all is checked before it is unpacked.

Nothing here imports torch: running a packed model takes numpy and onnx alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ecoflap.core.cores import usable_cores
from ecoflap.core.errors import FormatError
from ecoflap.exporters.onnx.forms import product, rows
from ecoflap.exporters.onnx.forms.bitmask import BITMASK
from ecoflap.exporters.onnx.forms.form import COO, DOMAIN, Form, bits_of
from ecoflap.exporters.onnx.forms.pattern import PATTERN
from ecoflap.exporters.onnx.forms.product import PRODUCTS, Product
from ecoflap.exporters.onnx.tensors import Opened, elements, numpy_type, read

FORMS: Mapping[str, Form] = {form.function: form for form in (BITMASK, PATTERN)}

Array: TypeAlias = NDArray[Any]

Zeros: TypeAlias = Callable[[tuple[int, ...], np.dtype[Any]], Array]
"""Gives an array of a shape and type that is zero."""

_READS: Mapping[str, Product] = {**PRODUCTS, rows.FUNCTION: product.INT8}
"""What the matrix is that an operator reads."""

_FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Is a weight that a model holds in packed form.

    :param name: Of the dense weight, in the graph.
    :param data_type: Its type, a number of ``onnx.TensorProto.DataType``.
    :param nodes: Where in the graph's list of nodes those are that unpack it.
    :param initializers: Names of the initializers that it is unpacked from.
    :param fill: Checks those initializers, then makes an array with :data:`Zeros` and fills it.
    """

    name: str
    form: str
    shape: tuple[int, ...]
    data_type: int
    nodes: tuple[int, ...]
    initializers: tuple[str, ...]
    fill: Callable[[Zeros], Array]


@dataclass(frozen=True, kw_only=True)
class Multiplied(Packed):
    """Is a matrix that is multiplied as it is: no node unpacks it.

    :param products: Where in the graph's list of nodes those are that multiply with it.
    :param lookups: Where those are that look rows of it up.
    :param check: Checks its initializers, and makes nothing.
    """

    products: tuple[int, ...]
    lookups: tuple[int, ...]
    check: Callable[[], None]


def unpacked(found: Sequence[Packed], zeros: Zeros) -> dict[str, Array]:
    """Decode weights, as many at a time as there are cores.

    :param zeros: Gives each array that is filled.
    :return: Each weight, dense, by its name in the graph.
    """
    with ThreadPoolExecutor(max(1, min(len(found), usable_cores()))) as pool:
        arrays = pool.map(lambda packed: packed.fill(zeros), found)
        return dict(zip((packed.name for packed in found), arrays, strict=True))


def packed_in(source: Opened) -> list[Packed]:
    """Find the packed weights of a model, as its graph describes them.

    :raises FormatError: Where the descriptions do not agree with each other, or are not what is written here.
    """
    found = [*_in_nodes(source), *_sparse(source)]
    names = [packed.name for packed in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise FormatError(f"{source.where}: {', '.join(sorted(twice))}: packed twice. Export the model again.")
    return found


@dataclass(frozen=True)
class _Graph:
    """Looks a model's graph up by name.

    :param announced: What the graph says of the shapes of its values, where it says all of it.
    """

    source: Opened
    tensors: Mapping[str, Any]
    announced: Mapping[str, tuple[int, ...]]

    @property
    def nodes(self) -> Sequence[Any]:
        nodes: Sequence[Any] = self.source.proto.graph.node
        return nodes


def _in_nodes(source: Opened) -> Iterator[Packed]:
    graph = source.proto.graph
    infos = {info.name: info.type.tensor_type for info in graph.value_info if info.type.tensor_type.HasField("shape")}
    announced = {
        name: tuple(size.dim_value for size in tensor.shape.dim)
        for name, tensor in infos.items()
        if all(size.HasField("dim_value") for size in tensor.shape.dim)
    }
    seen = _Graph(source, {tensor.name: tensor for tensor in graph.initializer}, announced)
    _check_functions(source)
    bodies = _bodies(graph.node)
    multiplied: dict[tuple[str, str], list[int]] = {}
    for number, node in enumerate(graph.node):
        if node.domain == DOMAIN and (kind := _READS.get(node.op_type)):
            multiplied.setdefault((kind.function, _multiplied_name(seen, node, kind)), []).append(number)
        elif node.domain == DOMAIN:
            yield _called(seen, number)
        elif node.name in bodies:
            yield _inlined(seen, tuple(bodies[node.name].values()))
    for (function, name), numbers in multiplied.items():
        yield _multiplied(seen, name, PRODUCTS[function], numbers)


def _check_functions(source: Opened) -> None:
    """Refuse functions that were changed: onnxruntime runs those in the file, and they must do what is done here."""
    known: dict[str, Callable[[int], Any]] = {rows.FUNCTION: rows.proto}
    known |= {name: form.proto for name, form in FORMS.items()} | {name: kind.proto for name, kind in PRODUCTS.items()}
    for function in source.proto.functions:
        if function.domain != DOMAIN:
            continue
        made = known.get(function.name)
        expected = made(function.opset_import[0].version) if made and function.opset_import else None
        if (
            expected is None
            or list(function.input) != list(expected.input)
            or list(function.output) != list(expected.output)
            or [_meaning(node) for node in function.node] != [_meaning(node) for node in expected.node]
        ):
            raise FormatError(
                f"{source.where}: the function {function.name} is not one that this version of ecoflap knows: it has "
                f"been changed, or another version wrote it. Known: {', '.join(known)}. Export the model again."
            )


def _called(graph: _Graph, number: int) -> Packed:
    node = graph.nodes[number]
    form = FORMS.get(node.op_type)
    to = [attribute.i for attribute in node.attribute if attribute.name == "to"]
    if form is None or len(node.input) != 3 or len(node.output) != 1 or len(to) != 1:
        raise FormatError(
            f"{graph.source.where}: {node.name or node.op_type}: this version unpacks {', '.join(FORMS)} with three "
            f"inputs, one output and the attribute 'to'; this is something else. Export the model again."
        )
    return _packed(graph, form, node.output[0], to[0], (number,), tuple(node.input))


def _multiplied_name(graph: _Graph, node: Any, kind: Product) -> str:
    """Name the matrix that a node multiplies with, or looks rows up in, by its initializers."""
    name = node.input[1].removesuffix(".values") if len(node.input) > 1 else ""
    sizes = [attribute for attribute in node.attribute if attribute.name == product.SIZES and len(attribute.ints) == 2]
    if not name or tuple(node.input[1:]) != kind.initializers(name) or len(node.output) != 1 or len(sizes) != 1:
        *others, last = kind.parts
        does = "multiplies x with" if node.op_type == kind.function else "looks rows up in"
        raise FormatError(
            f"{graph.source.where}: {node.name or node.op_type}: this version {does} {', '.join(others)} "
            f"and {last}, whose sizes are [inputs, outputs]; this is something else. Export the model again."
        )
    return name


def _multiplied(graph: _Graph, name: str, kind: Product, nodes: Sequence[int]) -> Multiplied:
    """Describe a matrix that is multiplied as it is.

    :param nodes: Where those are that read it.
    """
    where, inputs = f"{graph.source.where}: {name}", kind.initializers(name)
    if missing := [tensor for tensor in inputs if tensor not in graph.tensors]:
        raise FormatError(f"{where}: {', '.join(missing)}: no initializer has this name. Export the model again.")
    said = {tuple(attribute.ints) for number in nodes for attribute in graph.nodes[number].attribute}
    tensors = [graph.tensors[tensor] for tensor in inputs]
    dtype, shape = numpy_type(tensors[0].data_type, where), said.pop()
    if said or dtype.name not in kind.types:
        types = ", ".join(kind.types)
        raise FormatError(f"{where}: its values are {dtype.name} and none of {types}, or it has several sizes")
    elements(shape, where)
    check = partial(_check_product, graph.source, where, tensors, shape)
    fill = partial(_fill_product, graph.source, where, tensors, shape)
    return Multiplied(
        name=name,
        form=kind.form,
        shape=shape,
        data_type=tensors[0].FLOAT,
        nodes=(),
        initializers=inputs,
        fill=fill,
        products=tuple(number for number in nodes if graph.nodes[number].op_type == kind.function),
        lookups=tuple(number for number in nodes if graph.nodes[number].op_type != kind.function),
        check=check,
    )


def _check_product(source: Opened, where: str, tensors: Sequence[Any], shape: tuple[int, ...]) -> None:
    values, masks, *scales = (read(source, tensor) for tensor in tensors)
    try:
        product.check(values, masks, product.sizes_of(values.dtype, *shape), *scales)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error


def _fill_product(source: Opened, where: str, tensors: Sequence[Any], shape: tuple[int, ...], zeros: Zeros) -> Array:
    _check_product(source, where, tensors, shape)
    values, masks, *scales = (read(source, tensor) for tensor in tensors)
    dense = zeros(shape, np.dtype(np.float32))
    product.fill(dense, values, masks, *scales)
    return dense


def _bodies(nodes: Sequence[Any]) -> dict[str, dict[str, int]]:
    """Group the nodes of inlined functions, with their places in the graph, by the name of the last of each."""
    groups: dict[str, dict[str, int]] = {}
    for number, node in enumerate(nodes):
        if node.name.startswith(f"{DOMAIN}."):
            groups.setdefault(node.name.rpartition("/")[0], {})[node.name] = number
    return {list(group)[-1]: group for group in groups.values()}


def _inlined(graph: _Graph, numbers: tuple[int, ...]) -> Packed:
    """Describe an inlined weight; its nodes must be exactly those that are written here, or they might mean another."""
    found = [graph.nodes[number] for number in numbers]
    function, _, rest = found[-1].name.removeprefix(f"{DOMAIN}.").partition("/")
    form, weight = FORMS.get(function), rest.rpartition("/")[0]
    meant = [_meaning(node) for node in found]
    types = {attribute.i for node in found for attribute in node.attribute if attribute.name == "to"}
    to = next((to for to in types if form and meant == [_meaning(node) for node in form.nodes(weight, to)]), None)
    if form is None or to is None:
        raise FormatError(
            f"{graph.source.where}: {weight}: the nodes that unpack it are not those that this version of ecoflap "
            f"writes: they have been changed, or another version wrote them. Export the model again."
        )
    return _packed(graph, form, weight, to, numbers, form.initializers(weight))


def _meaning(node: Any) -> tuple[Any, ...]:
    """Reduce a node to what it does, without names and comments."""
    values = {attribute.name: _plain(attribute) for attribute in node.attribute}
    return node.op_type, node.domain, list(node.input), list(node.output), values


def _plain(attribute: Any) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    if attribute.ref_attr_name:
        return "the attribute", attribute.ref_attr_name
    try:
        value = helper.get_attribute_value(attribute)
        array = numpy_helper.to_array(value) if isinstance(value, TensorProto) else None
    except (KeyError, TypeError, ValueError):
        return "damaged"  # as nothing is that is written here
    return value if array is None else (array.dtype.name, array.tolist())


def _packed(
    graph: _Graph, form: Form, name: str, data_type: int, nodes: tuple[int, ...], inputs: tuple[str, ...]
) -> Packed:
    """Describe a packed weight whose initializers are there and of the right kinds.

    :param inputs: The names of its initializers.
    """
    where = f"{graph.source.where}: {name}"
    if missing := [name for name in inputs if name not in graph.tensors]:
        raise FormatError(f"{where}: {', '.join(missing)}: no initializer has this name. Export the model again.")
    values, places, sizes = (graph.tensors[name] for name in inputs)
    dtype = numpy_type(data_type, where)
    if dtype.name not in _FLOATS or numpy_type(values.data_type, where).name not in _FLOATS:
        raise FormatError(f"{where}: a packed weight and its values are floats of 16, 32 or 64 bits")
    if sizes.data_type != sizes.INT64 or len(sizes.dims) != 1:
        raise FormatError(f"{where}: its shape is not a row of 64 bit integers")
    shape = tuple(int(size) for size in read(graph.source, sizes))
    elements(shape, where)
    if (announced := graph.announced.get(name, shape)) != shape:
        raise FormatError(f"{where}: its shape is {shape}, and {announced} is what the graph announces")
    fill = partial(_fill, graph.source, form, where, (values, places), shape, dtype)
    return Packed(
        name=name, form=form.name, shape=shape, data_type=data_type, nodes=nodes, initializers=inputs, fill=fill
    )


def _fill(
    source: Opened,
    form: Form,
    where: str,
    tensors: tuple[Any, Any],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    zeros: Zeros,
) -> Array:
    values, places = (read(source, tensor) for tensor in tensors)
    try:
        form.check(values, places, shape)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error
    dense = zeros(shape, dtype)
    form.fill(dense, values, places)
    return dense


def _sparse(source: Opened) -> Iterator[Packed]:
    """Find ONNX's own sparse initializers."""
    for sparse in source.proto.graph.sparse_initializer:
        weight = sparse.values.name
        where = f"{source.where}: {weight}"
        shape = tuple(sparse.dims)
        elements(shape, where)
        fill = partial(_fill_sparse, source, sparse, shape)
        yield Packed(
            name=weight,
            form=COO,
            shape=shape,
            data_type=sparse.values.data_type,
            nodes=(),
            initializers=(),
            fill=fill,
        )


def _fill_sparse(source: Opened, sparse: Any, shape: tuple[int, ...], zeros: Zeros) -> Array:
    where = f"{source.where}: {sparse.values.name}"
    values, indices = read(source, sparse.values), read(source, sparse.indices)
    count = len(values) if values.ndim == 1 else -1
    if indices.dtype != np.int64 or indices.shape not in ((count,), (count, len(shape))):
        raise FormatError(f"{where}: its indices are not one row, or one row a dimension, of as many as it has values")
    sizes = shape if indices.ndim == 2 else (elements(shape, where),)
    columns = indices.reshape(len(values), len(sizes))
    if len(values) and ((columns < 0) | (columns >= np.array(sizes))).any():
        raise FormatError(f"{where}: an index lies outside its shape {shape}")
    flat = np.ravel_multi_index(tuple(columns.T), sizes) if len(values) else columns.reshape(-1)
    if (np.diff(flat) <= 0).any():
        raise FormatError(f"{where}: its indices are not in rising order")
    dense = zeros(shape, values.dtype)
    bits_of(dense.reshape(-1))[flat] = bits_of(values)
    return dense
