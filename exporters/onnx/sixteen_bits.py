"""Have a graph do its arithmetic in float32 where the model does it in bfloat16, which onnxruntime cannot on a CPU.

Weights are in float32 when a view is exported. What is left is what a model itself casts, as Falcon does its slopes by
distance. Of two bfloat16 numbers a sum, product or quotient in float32 that is rounded to bfloat16 is what torch
computes: it does the same.
"""

from typing import Any

ARITHMETIC = ("Add", "Sub", "Mul", "Div")


def compute_in_float32(graph: Any) -> None:
    """Put a cast before each input and after the output of every node that computes in bfloat16, in place.

    :param graph: An ``onnx_ir.Graph``, with the types of its values.
    """
    import onnx_ir as ir

    for node in list(graph.all_nodes()):
        if node.op_type in ARITHMETIC and node.outputs[0].dtype == ir.DataType.BFLOAT16:
            _widen(node)


def _widen(node: Any) -> None:
    import onnx_ir as ir

    wide, narrow = ir.DataType.FLOAT, ir.DataType.BFLOAT16
    for at, value in enumerate(node.inputs):
        cast = ir.node("Cast", [value], {"to": wide})
        cast.outputs[0].dtype, cast.outputs[0].shape = wide, value.shape
        node.graph.insert_before(node, cast)
        node.replace_input_with(at, cast.outputs[0])
    made = node.outputs[0]
    rounded = ir.node("Cast", [made], {"to": narrow})
    rounded.outputs[0].dtype, rounded.outputs[0].shape = narrow, made.shape
    made.replace_all_uses_with(rounded.outputs[0], replace_graph_outputs=True)
    rounded.replace_input_with(0, made)
    node.graph.insert_after(node, rounded)
    made.dtype = wide
