"""Make linear layers of an ONNX graph products with a packed matrix, one node each, in an ``onnx_ir.Model``.

A linear layer is a ``MatMul`` whose second factor is the weight, [inputs, outputs], or a ``Gemm`` with the weight
transposed, [outputs, inputs]. Whatever else reads a weight, an embedding for one, needs it dense.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ecoflap.core.kernel.matrix import pack_dense
from ecoflap.core.kernel.order import shape_of
from ecoflap.exporters.onnx.forms.form import DOMAIN
from ecoflap.exporters.onnx.forms.product import FUNCTION, SIZES, SLACK, initializers, proto, sizes_of

_PLAIN = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
"""What a ``Gemm`` is that is a linear layer."""
_UNSAID = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}


def is_transposed(weight: Any) -> bool | None:
    """Say whether a weight is [outputs, inputs]; None where not all that reads it are linear layers of one kind."""
    kinds = {_kind(node, at) for node, at in weight.uses()}
    return kinds.pop() if len(kinds) == 1 and not weight.is_graph_output() else None


def _kind(node: Any, at: int) -> bool | None:
    if at != 1 or node.domain:
        return None
    if node.op_type == "MatMul":
        return False
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    return True if node.op_type == "Gemm" and _UNSAID | given == _PLAIN else None


def encode(weight: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Give what is stored of a weight [inputs, outputs]: values, in its type, and masks."""
    bits = torch.from_numpy(np.require(weight.T, requirements=("C", "W")).view(f"i{weight.itemsize}"))
    dtype = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[weight.dtype.name]
    packed = pack_dense(bits.view(dtype))
    shape = shape_of(packed)
    end = shape.values_at + shape.kept * weight.itemsize
    masks, values = packed[shape.masks_at : shape.values_at], packed[shape.values_at : end]
    zeros = np.zeros(SLACK, np.uint8)
    stored = np.concatenate([values.numpy(), zeros]).view(weight.dtype)
    return stored, masks.numpy().reshape(sizes_of(weight.dtype, *weight.shape).masks)


def replace(model: Any, weight: Any, name: str, values: NDArray[Any], masks: NDArray[Any]) -> None:
    """Put products in the place of the linear layers that read a weight, and its values and masks in its place.

    :param weight: The initializer, for which :func:`is_transposed` has an answer.
    :param name: Of the weight as [inputs, outputs].
    """
    import onnx_ir as ir

    shape = weight.const_value.shape.numpy()
    sizes = shape[::-1] if is_transposed(weight) else shape
    stored = []
    for called, array in zip(initializers(name), (values, masks), strict=True):
        tensor = ir.tensor(array, name=called)
        value = ir.Value(name=called, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        model.graph.register_initializer(value)
        stored.append(value)
    for node, _ in list(weight.uses()):
        _replace_node(node, stored, sizes)
    model.graph.initializers.pop(weight.name)


def _replace_node(node: Any, stored: list[Any], sizes: tuple[int, ...]) -> None:
    import onnx_ir as ir

    (x, _, *bias), (y,) = node.inputs, node.outputs
    attributes = [ir.AttrInt64s(SIZES, list(sizes))]
    made = [ir.Node(DOMAIN, FUNCTION, [x, *stored], attributes, name=node.name)]
    if bias and bias[0] is not None:
        product = made[0].outputs[0]
        product.name, product.type, product.shape = f"{y.name}.product", y.type, y.shape
        made.append(ir.Node("", "Add", [product, bias[0]], name=f"{node.name}.bias" if node.name else None))
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], made, [y], [made[-1].outputs[0]])


def add_function(model: Any) -> None:
    """Bring the function along by which a runtime without the library multiplies."""
    import onnx_ir as ir

    function = ir.serde.deserialize_function(proto(model.opset_imports[""]))
    model.functions[function.identifier()] = function
    model.opset_imports[DOMAIN] = 1
