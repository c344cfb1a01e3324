"""Define products with packed matrices: one node each, ``ecoflap::PackedLinear(x, values, masks)``, two ways to run it.

Where the library of kernels is registered with onnxruntime, its operator of that name multiplies, and the matrix stays
packed. Everywhere else the function of that name does, which the file brings along: standard operators that unpack the
matrix once, when the file is loaded, and multiply. A registered operator goes before a function of the file.

``ecoflap::PackedLinearInt8(x, values, masks, scales)`` has values in int8 and a scale in float32 for each output. The
operator rounds x too, to int16 row by row; the function does not.

Values and masks lie in the kernel's order, so that they are multiplied where onnxruntime has them: a session that put
them in order would hold each matrix twice. The order is one for all CPUs. Sixteen outputs are a block. ``masks`` is
[blocks, columns, 2]: 16 bits for each input, the first output in the lowest. ``values`` are those that are kept, block
by block, input by input, and then 64 bytes of zeros. bfloat16 goes by pairs of inputs, output by output, and its masks
are [blocks, columns / 2, 4]; int8 goes by fours, and its masks are [blocks, columns / 4, 8]. Inputs are filled up to 32
and outputs to 16, with bits that are zero. ``kernels/src/order.h`` says the same.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecoflap.core.errors import FormatError
from ecoflap.exporters.onnx.forms.form import DOMAIN, bits_of, constant, converted

SIZES = "sizes"
"""The attribute: [inputs, outputs]."""

OUTPUTS = 16
COLUMNS = 32
SLACK = 64
"""Bytes of zeros behind the values: a product reads a vector at a time, and the function finds pruned weights there."""

_BLOCKS = 64
"""Blocks that are unpacked at a time."""


@dataclass(frozen=True)
class Sizes:
    """Says what lies where in a packed matrix.

    :param together: How many inputs lie output by output: 2 in bfloat16, 4 in int8, else 1.
    """

    inputs: int
    outputs: int
    together: int

    @property
    def masks(self) -> tuple[int, int, int]:
        """Give the shape of the masks."""
        blocks, columns = -(-self.outputs // OUTPUTS), -(-self.inputs // COLUMNS) * COLUMNS
        return blocks, columns // self.together, 2 * self.together


def sizes_of(dtype: np.dtype[Any], inputs: int, outputs: int) -> Sizes:
    """Say what lies where in a packed matrix with values of this type."""
    return Sizes(inputs, outputs, {"bfloat16": 2, "int8": 4}.get(dtype.name, 1))


@dataclass(frozen=True)
class Product:
    """Is one kind of product.

    :param form: What reports call it.
    :param function: The name of the operator and of the function.
    :param parts: What a matrix is stored as, in the order of inputs behind x.
    :param types: What numpy calls the types that its values may have.
    """

    form: str
    function: str
    parts: tuple[str, ...]
    types: tuple[str, ...]

    def initializers(self, weight: str) -> tuple[str, ...]:
        """Name the initializers of a matrix."""
        return tuple(f"{weight}.{part}" for part in self.parts)

    def proto(self, opset: int) -> Any:
        """Make the function as an ``onnx.FunctionProto``."""
        from onnx import helper

        imports = [helper.make_opsetid("", opset)]
        inputs = ["x", *self.parts]
        body = [*unpacking("scales" in self.parts), helper.make_node("MatMul", ["x", "weight"], ["y"])]
        return helper.make_function(DOMAIN, self.function, inputs, ["y"], body, imports, [SIZES])


FORM = "packed_op"
"""What recipes call products, and reports those with values in floats."""
EXACT = Product(FORM, "PackedLinear", ("values", "masks"), ("float64", "float32", "float16", "bfloat16"))
INT8 = Product(f"{FORM} int8", "PackedLinearInt8", ("values", "masks", "scales"), ("int8",))

PRODUCTS: Mapping[str, Product] = {product.function: product for product in (EXACT, INT8)}
FORMS = frozenset(product.form for product in PRODUCTS.values())


def check(values: NDArray[Any], masks: NDArray[Any], sizes: Sizes, scales: NDArray[Any] | None = None) -> None:
    """Refuse values, masks and scales that do not fit each other.

    :raises FormatError: With what is wrong.
    """
    slack = SLACK // values.dtype.itemsize
    if masks.dtype != np.uint8 or masks.shape != sizes.masks or values.ndim != 1 or len(values) < slack:
        raise FormatError(f"its masks are not bytes of the shape {list(sizes.masks)}, or its values are not a row")
    kept = 0
    for first, bits in _bits(masks, sizes):
        kept += int(np.count_nonzero(bits))
        outside = [bits[:, sizes.inputs :], bits.swapaxes(1, 2).reshape(-1, bits.shape[1])[sizes.outputs - first :]]
        if any(part.any() for part in outside):
            raise FormatError("its masks keep weights beyond its inputs or outputs")
    if kept + slack != len(values):
        raise FormatError(f"its masks keep {kept} weights but {len(values) - slack} values are stored")
    if bits_of(values[kept:]).any():
        raise FormatError("the bytes behind its values are not zero")
    if scales is not None and (scales.dtype != np.float32 or scales.shape != (sizes.outputs,)):
        raise FormatError("its scales are not a float32 for each output")
    if scales is not None and not (np.isfinite(scales) & (scales >= 0)).all():
        raise FormatError("its scales are no finite numbers from 0 on")


def fill(dense: NDArray[Any], values: NDArray[Any], masks: NDArray[Any], scales: NDArray[Any] | None = None) -> None:
    """Write a matrix into one that is zero, [inputs, outputs]."""
    sizes, start = sizes_of(values.dtype, *dense.shape), 0
    target = bits_of(dense)
    for first in range(0, len(masks), _BLOCKS):
        kept = np.unpackbits(masks[first : first + _BLOCKS], bitorder="little").view(bool)
        tile = np.zeros(len(kept), target.dtype)
        places = np.flatnonzero(kept)
        tile[places] = converted(values[start : start + len(places)], dense.dtype)
        start += len(places)
        rows = _columns(tile, sizes).swapaxes(1, 2).reshape(-1, sizes.masks[1] * sizes.together)
        outputs = target[:, first * OUTPUTS : (first + _BLOCKS) * OUTPUTS]
        outputs[:] = rows[: outputs.shape[1], : sizes.inputs].T
    if scales is not None:
        dense *= scales


def _bits(masks: NDArray[Any], sizes: Sizes) -> Iterator[tuple[int, NDArray[Any]]]:
    """Give some blocks at a time, [blocks, columns, 16], each with the first output that is in it."""
    for first in range(0, len(masks), _BLOCKS):
        bits = np.unpackbits(masks[first : first + _BLOCKS], bitorder="little")
        yield first * OUTPUTS, _columns(bits, sizes)


def _columns(ordered: NDArray[Any], sizes: Sizes) -> NDArray[Any]:
    """See what lies in the kernel's order as [blocks, columns, 16]."""
    groups, columns = sizes.masks[1], sizes.masks[1] * sizes.together
    return ordered.reshape(-1, groups, OUTPUTS, sizes.together).swapaxes(2, 3).reshape(-1, columns, OUTPUTS)


def unpacking(scaled: bool) -> list[Any]:
    """Make the nodes that unpack a matrix: from ``values`` and ``masks`` to ``weight``, [inputs, outputs].

    :param scaled: Whether values are whole numbers of ``scales``.
    """
    from onnx import AttributeProto, TensorProto, helper

    node = helper.make_node
    sizes = node("Constant", [], ["sizes"])
    sizes.attribute.add(name="value_ints", ref_attr_name=SIZES, type=AttributeProto.INTS)
    widened = "whole" if scaled else "weight"
    return [
        sizes,
        constant("bits", np.array([1, 2, 4, 8, 16, 32, 64, 128], np.uint8)),
        constant("axis", np.array(0, np.int64)),
        constant("last", np.array([-1], np.int64)),
        constant("one", np.array(1, np.int32)),
        constant("block", np.array([OUTPUTS, -1], np.int64)),
        constant("first", np.array([0, 0], np.int64)),
        node("Unsqueeze", ["masks", "last"], ["bytes"]),
        node("BitwiseAnd", ["bytes", "bits"], ["picked"]),
        node("Reshape", ["picked", "last"], ["row"]),
        node("Cast", ["row"], ["kept"], to=TensorProto.BOOL),
        node("Cast", ["kept"], ["ones"], to=TensorProto.INT32),
        # The number of a kept weight among the kept ones, from 0; -1, the last of the zeros, for a pruned one.
        node("CumSum", ["ones", "axis"], ["count"]),
        node("Mul", ["count", "ones"], ["from_one"]),
        node("Sub", ["from_one", "one"], ["number"]),
        node("Gather", ["values", "number"], ["gathered"]),
        # [blocks, columns, 16, 1], in bfloat16 [blocks, columns / 2, 16, 2], in int8 [blocks, columns / 4, 16, 4]
        node("Shape", ["masks"], ["groups"], start=0, end=2),
        node("Concat", ["groups", "block"], ["blocks"], axis=0),
        node("Reshape", ["gathered", "blocks"], ["ordered"]),
        node("Transpose", ["ordered"], ["by_input"], perm=[1, 3, 0, 2]),
        node("Flatten", ["by_input"], ["padded"], axis=2),
        node("Slice", ["padded", "first", "sizes"], ["stored"]),
        node("Cast", ["stored"], [widened], to=TensorProto.FLOAT),
        *([node("Mul", ["whole", "scales"], ["weight"])] if scaled else []),
    ]
