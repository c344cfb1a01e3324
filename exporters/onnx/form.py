"""What a packed form of a weight is: standard operators that unpack it, and the same in numpy.

A weight in packed form is three initializers, ``values``, one part that says where they belong, and ``shape``, and what
unpacks them: a call of a model-local function of the domain ``ecoflap``, or the nodes of its body in the graph itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

DOMAIN = "ecoflap"

Check = Callable[[NDArray[Any], NDArray[Any], tuple[int, ...]], None]
Fill = Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], None]

Cast = Callable[[str, str], Any]
"""Makes the node that casts a value to the weight's own type."""


@dataclass(frozen=True)
class Form:
    """One way to pack. Objects of onnx are ``Any`` here, for onnx is imported only when a model is written or read.

    :param name: What reports call it.
    :param function: The model-local function's name.
    :param places: The name of the part that says where values belong.
    :param body: The function's nodes, from ``values``, ``places`` and ``shape`` to ``weight``.
    :param check: From values, places and the weight's shape: FormatError, with a sentence, where they do not agree.
    :param fill: Into a dense array that is zero, the values at their places.
    """

    name: str
    function: str
    places: str
    body: Callable[[Cast], list[Any]]
    check: Check
    fill: Fill

    @property
    def inputs(self) -> tuple[str, str, str]:
        return ("values", self.places, "shape")

    def proto(self, opset: int) -> Any:
        """The function as an ``onnx.FunctionProto``; its attribute ``to`` is the weight's type."""
        from onnx import AttributeProto, helper

        def cast(value: str, result: str) -> Any:
            node = helper.make_node("Cast", [value], [result])
            node.attribute.add(name="to", ref_attr_name="to", type=AttributeProto.INT)
            return node

        imports = [helper.make_opsetid("", opset)]
        body = self.body(cast)
        return helper.make_function(DOMAIN, self.function, list(self.inputs), ["weight"], body, imports, ["to"])

    def parts(self, weight: str) -> tuple[str, str, str]:
        """What the initializers of a weight are called."""
        first, second, third = (f"{weight}.{part}" for part in self.inputs)
        return first, second, third

    def call(self, weight: str, to: int) -> Any:
        """The node that calls the function.

        :param to: The weight's type, a number of ``onnx.TensorProto.DataType``.
        """
        from onnx import helper

        return helper.make_node(
            self.function, list(self.parts(weight)), [weight], self.node_name(weight), domain=DOMAIN, to=to
        )

    def nodes(self, weight: str, to: int) -> list[Any]:
        """The function's body with the names it has in the graph."""
        from onnx import helper

        named = dict(zip(self.inputs, self.parts(weight), strict=True))
        nodes = self.body(lambda value, result: helper.make_node("Cast", [value], [result], to=to))
        for number, node in enumerate(nodes):
            node.name = f"{self.node_name(weight)}/{number}"
            for names in (node.input, node.output):
                renamed = [weight if name == "weight" else named.get(name, f"{weight}/{name}") for name in names]
                names[:] = renamed
        return nodes

    def node_name(self, weight: str) -> str:
        return f"{DOMAIN}.{self.function}/{weight}"


def constant(name: str, value: NDArray[Any]) -> Any:
    """A node that holds a small array."""
    from onnx import helper, numpy_helper

    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, name))


def converted(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values in another type of float, as the operator Cast gives them; integers of that width, to copy bit by bit.

    From 16 bits it is looked up: that takes half the time of numpy's own conversion of a float16, and a bfloat16 has
    none that is fast.
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
    """The same memory as unsigned integers, so that no floating-point unit quiets a NaN and copies are fast."""
    return array.view(f"u{array.dtype.itemsize}")
