"""Have a graph compute in types that ONNX and onnxruntime have, where torch has others.

Weights are in float32 when a view is exported. What is left in bfloat16 is what a model itself casts, as Falcon does
its slopes by distance, and onnxruntime has no such arithmetic on a CPU. Of two bfloat16 numbers a sum, product or
quotient in float32 that is rounded to bfloat16 is what torch computes: it does the same.

An index may be int32 in torch, as Molmo 2's of the patches that it pools, and is int64 in ONNX where it has a row for
several axes.
"""

from typing import Any

ARITHMETIC = ("Add", "Sub", "Mul", "Div")
INDEXED = ("GatherND", "ScatterND")
INDICES = 1
"""Which input of those has the indices."""


def compute_in_float32(graph: Any) -> None:
    """Put a cast before each input and after the output of every node that computes in bfloat16, in place.

    :param graph: An ``onnx_ir.Graph``, with the types of its values.
    """
    import onnx_ir as ir

    for node in list(graph.all_nodes()):
        if node.op_type in ARITHMETIC and node.outputs[0].dtype == ir.DataType.BFLOAT16:
            _widen(node)


def index_by_int64(graph: Any) -> None:
    """Put a cast before indices of another type, in place, of every node that has them in int64 alone.

    :param graph: An ``onnx_ir.Graph``, with the types of its values.
    """
    import onnx_ir as ir

    for node in list(graph.all_nodes()):
        if node.op_type in INDEXED and node.inputs[INDICES].dtype not in (None, ir.DataType.INT64):
            _cast_input(node, INDICES, ir.DataType.INT64)


def _widen(node: Any) -> None:
    import onnx_ir as ir

    wide, narrow = ir.DataType.FLOAT, ir.DataType.BFLOAT16
    for at in range(len(node.inputs)):
        _cast_input(node, at, wide)
    made = node.outputs[0]
    rounded = ir.node("Cast", [made], {"to": narrow})
    rounded.outputs[0].dtype, rounded.outputs[0].shape = narrow, made.shape
    made.replace_all_uses_with(rounded.outputs[0], replace_graph_outputs=True)
    rounded.replace_input_with(0, made)
    node.graph.insert_after(node, rounded)
    made.dtype = wide


def _cast_input(node: Any, at: int, dtype: Any) -> None:
    import onnx_ir as ir

    value = node.inputs[at]
    cast = ir.node("Cast", [value], {"to": dtype})
    cast.outputs[0].dtype, cast.outputs[0].shape = dtype, value.shape
    node.graph.insert_before(node, cast)
    node.replace_input_with(at, cast.outputs[0])
