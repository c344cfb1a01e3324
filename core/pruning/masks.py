"""Masks: which weights stay. In memory a boolean a weight, on disk one bit; and which masks belong to which model."""

from collections.abc import Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from types import MappingProxyType
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from torch import Tensor, nn

from ecoflap.core.disk.sealed import Part, open_sealed, write_sealed
from ecoflap.core.errors import EcoflapError, FormatError

_FORMAT = "ecoflap.masks"
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)
_attached: WeakKeyDictionary[nn.Module, Mapping[str, Tensor]] = WeakKeyDictionary()


class PackedMasks(Mapping[str, Tensor]):
    """Masks by layer name, held as one bit a weight; each is unpacked when it is asked for."""

    def __init__(self) -> None:
        self.bits: dict[str, Tensor] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def put(self, name: str, bits: UInt8[Tensor, "bytes"], shape: tuple[int, ...]) -> None:
        """Add what :func:`pack` made of a mask."""
        self.bits[name], self._shapes[name] = bits, shape

    def __getitem__(self, name: str) -> Bool[Tensor, "..."]:
        return unpack(self.bits[name], self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.bits)

    def __len__(self) -> int:
        return len(self.bits)


def attach(model: nn.Module, masks: Mapping[str, Bool[Tensor, "..."]]) -> None:
    """Say which weights of a model are kept, for the exporters. It is forgotten with the model, and a copy has none.

    :param masks: By the parameter's name in ``model.state_dict()``; True where a weight is kept.
    """
    _attached[model] = masks


def masks_of(model: nn.Module) -> Mapping[str, Bool[Tensor, "..."]]:
    """The masks that were attached to a model; an error if nothing was pruned."""
    masks = _attached.get(model)
    if not masks:
        raise EcoflapError("nothing in this model has been pruned, so there are no masks to export. Prune it first.")
    return MappingProxyType(masks) if isinstance(masks, dict) else masks


def pack(mask: Bool[Tensor, "*shape"]) -> UInt8[Tensor, "bytes"]:
    """One bit a weight in row-major order, the first weight in the lowest bit; the last byte is filled with zeros."""
    flat = mask.detach().cpu().reshape(-1).numpy()
    return torch.from_numpy(np.packbits(flat, bitorder="little"))


def unpack(bits: UInt8[Tensor, "bytes"], shape: tuple[int, ...]) -> Bool[Tensor, "..."]:
    """Undo :func:`pack`. Bits that do not fit the shape exactly are refused."""
    size = prod(shape)
    needed = (size + 7) // 8
    if len(bits) != needed:
        raise FormatError(f"a mask of {size} weights takes {needed} bytes; it has {len(bits)}")
    if size % 8 and int(bits[-1]) >> size % 8:
        raise FormatError("the bits after a mask's last weight are not zero")
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=size, bitorder="little").view(bool)).reshape(shape)


def popcount(bits: UInt8[Tensor, "bytes"]) -> int:
    """How many weights packed bits keep."""
    return int(_ONES[bits.cpu().numpy()].sum())


class _Mask(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    shape: tuple[NonNegativeInt, ...]
    kept: NonNegativeInt


class _Masks(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    masks: dict[str, _Mask]


def save_masks(path: Path, masks: Mapping[str, Bool[Tensor, "..."]]) -> None:
    """Write masks as packed bits into a safetensors file; their shapes and counts are in its metadata."""
    entries = {name: _Mask(shape=tuple(mask.shape), kept=int(mask.count_nonzero())) for name, mask in masks.items()}
    parts = {
        name: Part(torch.uint8, ((prod(entry.shape) + 7) // 8,), partial(_packed, masks, name))
        for name, entry in entries.items()
    }
    write_sealed(path, _FORMAT, _Masks(masks=entries).model_dump_json(), parts)


def _packed(masks: Mapping[str, Tensor], name: str) -> Tensor:
    return masks.bits[name] if isinstance(masks, PackedMasks) else pack(masks[name])


def load_masks(path: Path) -> PackedMasks:
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
        unpack(bits, entry.shape)
    except FormatError as error:
        raise FormatError(f"{path}: {name}: {error}") from error
    if (kept := popcount(bits)) != entry.kept:
        raise FormatError(f"{path}: the mask of {name!r} keeps {kept} weights where {entry.kept} are announced")
    return bits
