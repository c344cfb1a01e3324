"""Put matrices of eight bits into a model of OpenVINO, in the place of those that it multiplies by.

A matrix becomes ``Constant(i8) → Convert → Multiply(scale)``, and its input goes through a ``FakeQuantize``: OpenVINO's
low-precision transformations read these as a product of eight bits. The constant is [outputs, inputs] whatever it was
before, because what OpenVINO has to transpose first is not looked at for zeros.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray

from ecoflap.exporters.openvino.int8 import LEVELS, Inputs, Rounded

NARROWED_FROM = 1 << 12
"""Bytes from which on a constant is worth a node that widens it."""


@dataclass(frozen=True, eq=False)
class Product:
    """Is a matrix of a graph that only linear layers read.

    :param constant: The node that holds it.
    :param layers: The ``MatMul`` nodes that multiply by it.
    :param transposed: Whether it is [outputs, inputs] there.
    """

    constant: Any
    layers: tuple[Any, ...]
    transposed: bool

    @property
    def weight(self) -> Float32[ndarray, "out in"]:
        """Give the matrix."""
        data: ndarray = self.constant.data
        return data if self.transposed else data.T


def constants_of(model: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """Find the constants that are matrices of the torch model, by their names there.

    :param names: By what a constant is called in the graph.
    """
    constants = (node for node in model.get_ordered_ops() if node.get_type_name() == "Constant")
    return {names[node.get_friendly_name()]: node for node in constants if node.get_friendly_name() in names}


def product_of(constant: Any) -> Product | None:
    """Say which linear layers multiply by a constant; None where something else reads it too."""
    read = [(target.get_node(), target.get_index()) for target in constant.output(0).get_target_inputs()]
    if constant.data.ndim != 2 or not read:
        return None
    kinds = {_kind(node, at) for node, at in read}
    transposed = kinds.pop()
    return None if kinds or transposed is None else Product(constant, tuple(node for node, _ in read), transposed)


def _kind(node: Any, at: int) -> bool | None:
    """Say whether a node multiplies by a transposed matrix; None of one that is no linear layer."""
    if node.get_type_name() != "MatMul" or at != 1 or node.get_attributes()["transpose_a"]:
        return None
    return bool(node.get_attributes()["transpose_b"])


@dataclass(frozen=True, eq=False)
class Int8Writer:
    """Puts matrices of eight bits into one model; what several of them are fed is rounded once."""

    _rounded: dict[tuple[str, int, Inputs], Any] = field(default_factory=dict)

    def put(self, product: Product, matrix: Rounded, inputs: Inputs | None) -> None:
        """Replace a matrix.

        :param inputs: How what it is multiplied by is rounded; None leaves that in floats.
        """
        from openvino import opset13 as op

        stored = op.constant(matrix.weight, name=product.constant.get_friendly_name())
        stored.set_friendly_name(product.constant.get_friendly_name())
        weight = op.multiply(op.convert(stored, np.float32), op.constant(matrix.scale))
        for layer in product.layers:
            x = layer.input_value(0)
            made = op.matmul(x if inputs is None else self._fed(x, inputs), weight, False, True)
            made.set_friendly_name(layer.get_friendly_name())
            for target in layer.output(0).get_target_inputs():
                target.replace_source_output(made.output(0))

    def _fed(self, x: Any, inputs: Inputs) -> Any:
        key = x.get_node().get_name(), x.get_index(), inputs
        if key not in self._rounded:
            self._rounded[key] = _rounding(x, inputs)
        return self._rounded[key].output(0)


def _rounding(x: Any, inputs: Inputs) -> Any:
    """Round to the 256 numbers of eight bits, and give what they stand for."""
    from openvino import opset13 as op

    if inputs.divisor is not None:
        x = op.multiply(x, op.constant((1 / inputs.divisor).astype(np.float32))).output(0)
    lowest, highest = (op.constant(np.float32(end * inputs.step)) for end in (-LEVELS - 1, LEVELS))
    return op.fake_quantize(x, lowest, highest, lowest, highest, 2 * LEVELS + 2)


def narrow(constants: Mapping[str, Any], types: Mapping[str, torch.dtype]) -> Iterator[str]:
    """Store constants in the 16 bits that they have in the torch model, where nothing is lost by it.

    :param types: By the name in the torch model.
    :return: The names of those that are.
    """
    from openvino import Type
    from openvino import opset13 as op

    kinds = {torch.float16: Type.f16, torch.bfloat16: Type.bf16}
    for name, constant in constants.items():
        wide = constant.data
        if types[name] not in kinds or wide.nbytes < NARROWED_FROM:
            continue
        values = torch.from_numpy(np.array(wide))
        if not torch.equal(values.to(types[name]).float(), values):
            continue
        stored = op.constant(np.array(wide), dtype=kinds[types[name]])
        stored.set_friendly_name(constant.get_friendly_name())
        widened = op.convert(stored, np.float32)
        for target in constant.output(0).get_target_inputs():
            target.replace_source_output(widened.output(0))
        yield name
