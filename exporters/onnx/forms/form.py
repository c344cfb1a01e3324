"""Say what a packed form of a weight is: standard operators that unpack it, and the same in numpy.

A weight in packed form is three initializers, ``values``, one that says where these belong, and ``shape``, and what
unpacks them: a call of a model-local function of the domain ``ecoflap``, or the nodes of its body in the graph itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

DOMAIN = "ecoflap"

COO = "coo"
"""What recipes and reports call ONNX's own sparse initializers; said here, where nothing imports torch."""

Check = Callable[[NDArray[Any], NDArray[Any], tuple[int, ...]], None]
Fill = Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], None]

Cast = Callable[[str, str], Any]
"""Makes the node that casts a value to the weight's own type."""

Convert = Callable[[NDArray[Any]], NDArray[Any]]
"""Gives values in the type that they are stored in."""


@dataclass(frozen=True)
class Form:
    """Is one way to pack. Objects of onnx are ``Any`` here, for onnx is imported only when a model is written or read.

    :param name: What reports call it.
    :param function: The name of the model-local function that unpacks it.
    :param places: The name of the initializer that says where values belong.
    :param body: Makes the function's nodes, from ``values``, ``places`` and ``shape`` to ``weight``.
    :param check: Raises a FormatError with a sentence where values, places and the weight's shape do not agree.
    :param fill: Writes values at their places into a dense array that is zero.
    """

    name: str
    function: str
    places: str
    body: Callable[[Cast], list[Any]]
    check: Check
    fill: Fill

    @property
    def inputs(self) -> tuple[str, str, str]:
        """Give the inputs of the function, by the names they have in it."""
        return ("values", self.places, "shape")

    def proto(self, opset: int) -> Any:
        """Make the function as an ``onnx.FunctionProto``; its attribute ``to`` is the weight's type."""
        from onnx import AttributeProto, helper

        def cast(value: str, result: str) -> Any:
            node = helper.make_node("Cast", [value], [result])
            node.attribute.add(name="to", ref_attr_name="to", type=AttributeProto.INT)
            return node

        imports = [helper.make_opsetid("", opset)]
        body = self.body(cast)
        return helper.make_function(DOMAIN, self.function, list(self.inputs), ["weight"], body, imports, ["to"])

    def initializers(self, weight: str) -> tuple[str, str, str]:
        """Give the names of a weight's initializers, in the order of :attr:`inputs`."""
        first, second, third = (f"{weight}.{name}" for name in self.inputs)
        return first, second, third

    def call(self, weight: str, to: int) -> Any:
        """Make the node that calls the function.

        :param to: The weight's type, a number of ``onnx.TensorProto.DataType``.
        """
        from onnx import helper

        return helper.make_node(
            self.function, list(self.initializers(weight)), [weight], self.node_name(weight), domain=DOMAIN, to=to
        )

    def nodes(self, weight: str, to: int) -> list[Any]:
        """Make the function's nodes as they stand in the graph where it has no functions.

        :param to: The weight's type, a number of ``onnx.TensorProto.DataType``.
        """
        from onnx import helper

        named = dict(zip(self.inputs, self.initializers(weight), strict=True))
        nodes = self.body(lambda value, result: helper.make_node("Cast", [value], [result], to=to))
        for number, node in enumerate(nodes):
            node.name = f"{self.node_name(weight)}/{number}"
            for names in (node.input, node.output):
                renamed = [weight if name == "weight" else named.get(name, f"{weight}/{name}") for name in names]
                names[:] = renamed
        return nodes

    def node_name(self, weight: str) -> str:
        """Name the node that calls the function, by which a reader finds those of an inlined one too."""
        return f"{DOMAIN}.{self.function}/{weight}"


def constant(name: str, value: NDArray[Any]) -> Any:
    """Make a node that holds a small array."""
    from onnx import helper, numpy_helper

    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, name))


def converted(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert values to another type of float, as the operator Cast does.

    What is returned is seen as integers of that width, to be copied bit by bit. From 16 bits it is looked up: that
    takes half the time of numpy's own conversion of a float16, and a bfloat16 has none that is fast.
    """
    if values.dtype == dtype:
        return bits_of(values)
    if values.dtype.itemsize == 2:
        # Clipping, which never happens, takes less time than refusing.
        return np.take(_table(values.dtype, dtype), bits_of(values), mode="clip")
    return bits_of(values.astype(dtype))


@cache
def _table(narrow: np.dtype[Any], wide: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(invalid="ignore", over="ignore"):
        return bits_of(np.arange(1 << 16, dtype=np.uint16).view(narrow).astype(wide))


def bits_of(array: NDArray[Any]) -> NDArray[Any]:
    """See an array's memory as unsigned integers, so that no floating-point unit quiets a NaN and copies are fast."""
    return array.view(f"u{array.dtype.itemsize}")
