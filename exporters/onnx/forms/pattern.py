"""Define the 2:4 form: two values of every four weights, and for each two bits that say where in the four it is.

``values`` is [before, 2, after] for a weight seen as [before, 4, after]: ``after`` is 1 where groups of four run along
the last axis, as in ``nn.Linear``, and the size of a row where they run along the first, as in its transpose.
``positions`` holds those of all values in row-major order, four to a byte, the first in the lowest bits. It takes as
many bytes as a bitmask, and unpacking it in onnxruntime takes less time.
"""

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecoflap.core.errors import FormatError
from ecoflap.exporters.onnx.forms.form import Cast, Convert, Form, bits_of, constant, converted

_SHIFTS = np.array([0, 2, 4, 6], np.uint8)
_FOUR_OF = (np.arange(256, dtype=np.uint8)[:, None] >> _SHIFTS) & 3
_PAIR_OF = np.array(
    # The places of the non-zeros among four, by the bits that say which they are. Where there are less than two, the
    # first free places are among them.
    [sorted(sorted(range(4), key=lambda place: not kept >> place & 1)[:2]) for kept in range(16)],
    np.uint8,
)
_CHUNK = 1 << 15
"""Values that are packed or unpacked at a time; with more, fresh memory costs as much time again."""


def grouped(weight: NDArray[Any]) -> NDArray[Any] | None:
    """See a weight as [before, 4, after], at most two of every four non-zero; None where it cannot be seen so."""
    rows = weight.shape[0] if weight.ndim > 1 else 1
    if weight.size == 0 or weight.size % 8:
        return None
    seen = []
    if weight.size // rows % 4 == 0:
        seen.append(weight.reshape(-1, 4, 1))
    if weight.ndim == 2 and rows % 4 == 0:
        seen.append(weight.reshape(rows // 4, 4, -1))
    return next((view for view in seen if np.count_nonzero(view, axis=1).max() <= 2), None)


def encode(groups: NDArray[Any], convert: Convert) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Give what is stored of a weight: values and positions. Some groups at a time are looked at, by their bits.

    :param groups: What :func:`grouped` gave.
    """
    before, _, after = groups.shape
    numbers, step = bits_of(groups), 2 * max(1, _CHUNK // (4 * after))  # positions of two fill whole bytes
    pairs, positions = np.empty((before, 2, after), numbers.dtype), np.empty(groups.size // 8, np.uint8)
    for first in range(0, before, step):
        some, end = numbers[first : first + step], first + step
        kept = np.packbits(some << 1 != 0, axis=1, bitorder="little")  # without its sign -0.0 is zero too
        places = np.moveaxis(_PAIR_OF[kept[:, 0]], -1, 1)
        pairs[first:end] = np.take_along_axis(some, places.astype(np.intp), axis=1)
        four = places.reshape(-1, 4) << _SHIFTS
        positions[first * after // 2 : end * after // 2] = np.bitwise_or.reduce(four, axis=1, dtype=np.uint8)
    return convert(pairs.view(groups.dtype)), positions


def _check(values: NDArray[Any], positions: NDArray[Any], shape: tuple[int, ...]) -> None:
    size = prod(shape)
    if positions.dtype != np.uint8 or positions.ndim != 1 or values.ndim != 3 or values.shape[1] != 2:
        raise FormatError("its positions are not a row of bytes, or its values are not pairs")
    if 2 * values.size != size:
        raise FormatError(f"2:4 of {size} weights is {size // 2} values; {values.size} are stored")
    if 4 * len(positions) != values.size:
        raise FormatError(f"positions of {values.size} values take {values.size // 4} bytes; it has {len(positions)}")
    pairs = _unpacked(positions, values.shape)
    if not (pairs[:, 0] < pairs[:, 1]).all():
        raise FormatError("two values of one group of four have the same position, or are not in order")


def _unpacked(positions: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    # Four at once, as one number. Clipping, which never happens, takes less time than refusing.
    four = np.take(_FOUR_OF.view(np.uint32).reshape(-1), positions, mode="clip")
    return four.view(np.uint8).reshape(shape)


def _fill(dense: NDArray[Any], values: NDArray[Any], positions: NDArray[Any]) -> None:
    before, _, after = values.shape
    flat, places = bits_of(dense.reshape(before, 4 * after)), _unpacked(positions, values.shape)
    step = max(1, _CHUNK // (2 * after))
    starts = np.arange(min(step, before))[:, None, None] * 4 * after + np.arange(after)
    for first in range(0, before, step):
        rows = slice(first, first + step)
        where = np.multiply(places[rows], after, dtype=np.intp)
        where += starts[: len(where)]
        flat[rows].reshape(-1)[where.reshape(-1)] = converted(values[rows], dense.dtype).reshape(-1)


def _body(cast: Cast) -> list[Any]:
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node
    zero = numpy_helper.from_array(np.zeros(1, np.uint8))
    return [
        # Looked up: OpenVINO 2026.4 computes a wrong weight of a matrix product from shifted bits.
        constant("four_of", _FOUR_OF),
        constant("wider", np.array([1, 2, 1], np.int64)),
        node("Cast", ["positions"], ["bytes"], to=TensorProto.INT32),
        node("Gather", ["four_of", "bytes"], ["four"]),
        node("Shape", ["values"], ["pairs"]),
        node("Reshape", ["four", "pairs"], ["places"]),
        node("Cast", ["places"], ["index"], to=TensorProto.INT32),
        node("Mul", ["pairs", "wider"], ["groups"]),
        # No operator makes zeros of any type, so bytes are cast.
        node("ConstantOfShape", ["groups"], ["zeros"], value=zero),
        cast("zeros", "empty"),
        cast("values", "cast"),
        node("ScatterElements", ["empty", "index", "cast"], ["scattered"], axis=1),
        node("Reshape", ["scattered", "shape"], ["weight"]),
    ]


PATTERN = Form("2:4", "Unpack24", "positions", _body, _check, _fill)
