"""Masks: which weights of a layer are kept. In memory a mask is a boolean for each weight, on disk one bit."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from torch import Tensor

from ecoflap.core.bits import full_mask, pack_mask
from ecoflap.core.errors import FormatError
from ecoflap.core.model.parameter_masks import ParameterMasks
from ecoflap.core.sealing.sealed import SealedTensor, open_sealed, write_sealed

MASKS = "masks.safetensors"
"""The file of a run folder that holds the masks."""

_FORMAT = "ecoflap.masks"
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)
"""How many bits each byte has."""
_count_ones: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = getattr(np, "bitwise_count", _ONES.__getitem__)
"""Numpy's own, which it has since version 2, takes a sixth of the time."""
_PIECE = 1 << 20
"""Bytes whose bits are counted in one go."""


class PackedMasks(Mapping[str, Tensor]):
    """Masks by name, held as one bit for each weight; a mask is unpacked when it is asked for."""

    def __init__(self) -> None:
        self.bits: dict[str, Tensor] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def put(self, name: str, bits: UInt8[Tensor, "bytes"], shape: tuple[int, ...]) -> None:
        """Add what :func:`pack_mask` made of a mask."""
        self.bits[name], self._shapes[name] = bits, shape

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Give the shape of a mask without unpacking it."""
        return self._shapes[name]

    def size_of(self, name: str) -> int:
        """Count the weights that a mask is about."""
        return prod(self._shapes[name])

    def __getitem__(self, name: str) -> Bool[Tensor, "..."]:
        return unpack(self.bits[name], self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.bits)

    def __len__(self) -> int:
        return len(self.bits)


def check_fit(bits: UInt8[Tensor, "bytes"], shape: tuple[int, ...]) -> None:
    """Refuse packed bits that are not exactly as many as a mask of this shape takes.

    :raises FormatError: With how many there are.
    """
    size = prod(shape)
    needed = (size + 7) // 8
    if len(bits) != needed:
        raise FormatError(f"a mask of {size} weights takes {needed} bytes; it has {len(bits)}")
    if size % 8 and int(bits[-1]) >> size % 8:
        raise FormatError("the bits after a mask's last weight are not zero")


def unpack(bits: UInt8[Tensor, "bytes"], shape: tuple[int, ...]) -> Bool[Tensor, "..."]:
    """Undo :func:`pack_mask`; bits that do not fit the shape exactly are refused."""
    check_fit(bits, shape)
    size = prod(shape)
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=size, bitorder="little").view(bool)).reshape(shape)


def popcount(bits: UInt8[Tensor, "bytes"]) -> int:
    """Count the weights that packed bits keep."""
    row = bits.cpu().numpy()
    pieces = (row[start : start + _PIECE] for start in range(0, len(row), _PIECE))
    return sum(int(_count_ones(piece).sum(dtype=np.int64)) for piece in pieces)


def bits_in(masks: Mapping[str, Tensor], name: str) -> UInt8[Tensor, "bytes"]:
    """Give one of several masks packed; where they are held so, none is unpacked for it."""
    if isinstance(masks, PackedMasks):
        check_fit(masks.bits[name], masks.shape_of(name))
        return masks.bits[name]
    if isinstance(masks, ParameterMasks):
        return _bits_of_parts(masks, name)
    return pack_mask(masks[name].detach().to("cpu", torch.bool))


def shape_in(masks: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Give the shape of one of several masks; where they are held packed, none is unpacked for it."""
    if isinstance(masks, PackedMasks):
        return masks.shape_of(name)
    if isinstance(masks, ParameterMasks):
        places = masks.places(name)
        return shape_in(masks.by_layer, name) if places is None else tuple(places[0].shape)
    return tuple(masks[name].shape)


def _bits_of_parts(masks: ParameterMasks, name: str) -> Tensor:
    """Put the packed masks of a parameter's parts together; what is no layer of it is kept."""
    places = masks.places(name)
    if places is None:
        return bits_in(masks.by_layer, name)
    whole, parts = places
    are_as_large = all(shape_in(masks.by_layer, layer) == tuple(place.shape) for layer, place in parts.items())
    if not are_as_large or any(place.storage_offset() % 8 or place.numel() % 8 for place in parts.values()):
        return pack_mask(
            masks[name]
        )  # it says which is not; and parts that begin within a byte are those of small models
    bits = full_mask(whole.numel())
    for layer, place in parts.items():
        bits[place.storage_offset() // 8 :][: place.numel() // 8] = bits_in(masks.by_layer, layer)
    return bits


class _Mask(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    shape: tuple[NonNegativeInt, ...]
    kept: NonNegativeInt


class _Masks(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    masks: dict[str, _Mask]


def save_masks(path: Path, masks: Mapping[str, Bool[Tensor, "..."]]) -> None:
    """Write masks into a sealed safetensors file, as packed bits with their shapes and counts in its metadata."""
    entries = {name: _Mask(shape=shape_in(masks, name), kept=popcount(bits_in(masks, name))) for name in masks}
    tensors = {
        name: SealedTensor(torch.uint8, ((prod(entry.shape) + 7) // 8,), partial(bits_in, masks, name))
        for name, entry in entries.items()
    }
    write_sealed(path, _FORMAT, _Masks(masks=entries).model_dump_json(), tensors)


def read_masks(path: Path) -> PackedMasks:
    """Read what :func:`save_masks` wrote; a file that is truncated, changed or of another format is refused."""
    with open_sealed(path, _FORMAT) as file:
        try:
            entries = _Masks.model_validate_json(file.manifest).masks
        except ValidationError as error:
            raise FormatError(f"{path}: its list of masks is damaged: {error}") from error
        file.expect(entries)
        masks = PackedMasks()
        for name, entry in entries.items():
            masks.put(name, _checked(path, name, entry, file.read(name)), entry.shape)
        return masks


def _checked(path: Path, name: str, entry: _Mask, bits: Tensor) -> Tensor:
    if bits.dtype != torch.uint8 or bits.dim() != 1:
        raise FormatError(f"{path}: the mask of {name!r} is not a row of bytes")
    try:
        check_fit(bits, entry.shape)
    except FormatError as error:
        raise FormatError(f"{path}: {name}: {error}") from error
    if (kept := popcount(bits)) != entry.kept:
        raise FormatError(f"{path}: the mask of {name!r} keeps {kept} weights where {entry.kept} are announced")
    return bits
