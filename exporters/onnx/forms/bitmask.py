"""Define the bitmask form: the non-zero values, and one bit a weight that says where they belong.

``mask`` is ``numpy.packbits(weight != 0, bitorder="little")`` over the row-major weight, its last byte filled with
zeros; ``values`` begins with a zero, which every pruned weight takes. At sparsity s that is (1-s) + 1/32 of a float32
weight and (1-s) + 1/16 of a 16 bit one.
"""

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecoflap.core.errors import FormatError
from ecoflap.exporters.onnx.forms.form import Cast, Convert, Form, bits_of, constant, converted

_CHUNK = 1 << 16
"""Weights that are packed or unpacked at a time, a multiple of 8; with more, fresh memory costs as much time again."""


def encode(weight: NDArray[Any], convert: Convert) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Give what is stored of a weight: values and mask. Some weights at a time are looked at, by their bits."""
    flat, start = bits_of(weight.reshape(-1)), 1
    kept, mask = np.zeros(1 + np.count_nonzero(weight), flat.dtype), np.empty((len(flat) + 7) // 8, np.uint8)
    for first in range(0, len(flat), _CHUNK):
        chunk = flat[first : first + _CHUNK]
        are_kept = chunk << 1 != 0  # without its sign -0.0 is zero too
        mask[first // 8 : (first + _CHUNK) // 8] = np.packbits(are_kept, bitorder="little")
        found = chunk[np.flatnonzero(are_kept)]
        kept[start : start + len(found)] = found
        start += len(found)
    return convert(kept.view(weight.dtype)), mask


def _check(values: NDArray[Any], mask: NDArray[Any], shape: tuple[int, ...]) -> None:
    size = prod(shape)
    needed = (size + 7) // 8
    if mask.dtype != np.uint8 or mask.ndim != 1 or values.ndim != 1:
        raise FormatError("its mask is not a row of bytes, or its values are not a row")
    if len(mask) != needed:
        raise FormatError(f"a mask of {size} weights takes {needed} bytes; it has {len(mask)}")
    if size % 8 and int(mask[-1]) >> size % 8:
        raise FormatError("the bits after the mask's last weight are not zero")
    ones = sum(_popcount(mask[start : start + _CHUNK]) for start in range(0, len(mask), _CHUNK))
    if ones + 1 != len(values):
        raise FormatError(f"its mask keeps {ones} weights but {len(values) - 1} values are stored")
    if bits_of(values)[0] != 0:
        raise FormatError("its first value, that of pruned weights, is not zero")


def _popcount(mask: NDArray[np.uint8]) -> int:
    return int(np.count_nonzero(np.unpackbits(mask).view(bool)))


def _fill(dense: NDArray[Any], values: NDArray[Any], mask: NDArray[Any]) -> None:
    flat, start = bits_of(dense.reshape(-1)), 1
    for first in range(0, len(flat), _CHUNK):
        chunk = flat[first : first + _CHUNK]
        bits = np.unpackbits(mask[first // 8 : (first + _CHUNK) // 8], count=len(chunk), bitorder="little")
        # Places are several times faster to write to than a mask.
        places = np.flatnonzero(bits.view(bool))
        chunk[places] = converted(values[start : start + len(places)], dense.dtype)
        start += len(places)


def _body(cast: Cast) -> list[Any]:
    from onnx import TensorProto, helper

    node = helper.make_node
    return [
        constant("bits", np.array([1, 2, 4, 8, 16, 32, 64, 128], np.uint8)),
        constant("axis", np.array(0, np.int64)),
        constant("first", np.array([0], np.int64)),
        constant("second", np.array([1], np.int64)),
        constant("row", np.array([-1], np.int64)),
        node("Unsqueeze", ["mask", "second"], ["bytes"]),
        node("BitwiseAnd", ["bytes", "bits"], ["picked"]),
        node("Reshape", ["picked", "row"], ["padded"]),
        # Bits that fill the last byte are cut off.
        node("ReduceProd", ["shape"], ["size"], keepdims=1),
        node("Slice", ["padded", "first", "size"], ["exact"]),
        node("Cast", ["exact"], ["kept"], to=TensorProto.BOOL),
        node("Cast", ["kept"], ["ones"], to=TensorProto.INT32),
        # The number of a kept weight among the kept ones, from 1; 0 for a pruned one.
        node("CumSum", ["ones", "axis"], ["count"]),
        node("Mul", ["count", "ones"], ["number"]),
        node("Gather", ["values", "number"], ["gathered"]),
        node("Reshape", ["gathered", "shape"], ["stored"]),
        cast("stored", "weight"),
    ]


BITMASK = Form("bitmask", "UnpackBitmask", "mask", _body, _check, _fill)
