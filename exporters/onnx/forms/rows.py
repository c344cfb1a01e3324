"""Define ``ecoflap::PackedRowsInt8(ids, values, masks, scales)``: rows of a packed matrix, for an embedding.

Its parts are those of a product in int8, which the same matrix is where an embedding is the head too: so it is stored
once. Where the library of kernels is registered its operator decodes those rows that are asked for, and everywhere else
the function that the file brings along unpacks the matrix, as that of the product does.
"""

from typing import Any

from ecoflap.exporters.onnx.forms.form import DOMAIN
from ecoflap.exporters.onnx.forms.product import INT8, SIZES, unpacking

FUNCTION = "PackedRowsInt8"
"""The name of the operator and of the function."""


def proto(opset: int) -> Any:
    """Make the function as an ``onnx.FunctionProto``."""
    from onnx import helper

    imports = [helper.make_opsetid("", opset)]
    body = [*unpacking(scaled=True), *look_up("ids", "weight", "y")]
    return helper.make_function(DOMAIN, FUNCTION, ["ids", *INT8.parts], ["y"], body, imports, [SIZES])


def look_up(ids: str, weight: str, rows: str) -> list[Any]:
    """Make the nodes that look rows up in a matrix [inputs, outputs], whose columns they are, without transposing it.

    :param rows: The name of what they give; what lies between is named after it.
    """
    from onnx import helper

    def at(name: str) -> str:
        return f"{rows}.{name}"

    node = helper.make_node
    return [
        node("Constant", [], [at("row")], value_ints=[-1]),
        node("Reshape", [ids, at("row")], [at("flat")]),
        node("Gather", [weight, at("flat")], [at("columns")], axis=1),
        node("Transpose", [at("columns")], [at("found")], perm=[1, 0]),
        node("Shape", [ids], [at("batch")]),
        node("Shape", [weight], [at("width")], start=0, end=1),
        node("Concat", [at("batch"), at("width")], [at("shape")], axis=0),
        node("Reshape", [at("found"), at("shape")], [rows], allowzero=1),  # of no ids
    ]
