"""Define the packed file: a pruned model's state dict in safetensors, where a pruned weight costs one bit.

A pruned weight NAME is stored as ``NAME.values``, the kept values in their own dtype and row-major order, and
``NAME.mask``, one bit a weight with the first in the lowest bit (``numpy.packbits(bitorder="little")``). A weight that
would not be smaller so is stored dense, as everything else is. Tied tensors are stored once.

Here is what such a file says of itself in its header. ``ecoflap.core.sealing.sealed`` says how the file is checked, and
``ecoflap.core.packed.shards`` how a large one is divided into several.
"""

from math import prod
from typing import Annotated

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, NonNegativeInt, ValidationError

from ecoflap.core.disk.safetensors_header import DTYPES, StoredAs
from ecoflap.core.errors import FormatError
from ecoflap.core.sealing.sealed import Sealed

FORMAT = "ecoflap.packed"


def _known_dtype(name: str) -> str:
    if name not in DTYPES:
        raise ValueError(f"no dtype named {name!r}")
    return name


class Entry(BaseModel):
    """Says what a packed file has of one name of the state dict.

    :param kept: How many weights its mask keeps; None for a tensor that was not pruned.
    :param packed: Whether it is stored as values and mask.
    :param same_as: The name under which this very tensor is stored; None for its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    shape: tuple[NonNegativeInt, ...]
    dtype: Annotated[str, AfterValidator(_known_dtype)]
    kept: NonNegativeInt | None = None
    packed: bool = False
    same_as: str | None = None

    def stored_under(self, name: str) -> str:
        """Give the name under which the file stores what the state dict has under this name."""
        return name if self.same_as is None else self.same_as

    @property
    def size(self) -> int:
        """Say how many elements it has."""
        return prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return DTYPES[self.dtype].itemsize

    @property
    def mask_bytes(self) -> int:
        """Bytes of its mask, where it is packed."""
        return (self.size + 7) // 8

    @property
    def bytes_dense(self) -> int:
        """Bytes that it would take dense; 0 where it is stored under another name."""
        return 0 if self.same_as is not None else self.size * self.itemsize

    @property
    def bytes_packed(self) -> int:
        """Bytes that it takes; 0 where it is stored under another name."""
        if self.same_as is not None or not self.packed:
            return self.bytes_dense
        return (self.kept or 0) * self.itemsize + self.mask_bytes


class Contents(BaseModel):
    """Lists what a packed file holds, in the order of the state dict. Tied tensors count once in the totals."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    metadata: dict[str, str]
    tensors: dict[str, Entry]

    @property
    def bytes_dense(self) -> int:
        """Bytes of all tensors, were they dense."""
        return sum(entry.bytes_dense for entry in self.tensors.values())

    @property
    def bytes_packed(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(entry.bytes_packed for entry in self.tensors.values())


def contents_of(file: Sealed) -> Contents:
    """Read what an open file says that it holds; one that contradicts itself or its tensors is refused."""
    try:
        contents = Contents.model_validate_json(file.manifest)
    except ValidationError as error:
        raise FormatError(f"{file.path}: its manifest is damaged: {error}") from error
    expected: dict[str, StoredAs] = {}
    for name, entry in contents.tensors.items():
        if entry.same_as is not None:
            _check_alias(file, contents, name, entry)
        elif entry.packed:
            expected[f"{name}.values"] = StoredAs(DTYPES[entry.dtype], (entry.kept or 0,))
            expected[f"{name}.mask"] = StoredAs(torch.uint8, (entry.mask_bytes,))
        else:
            expected[name] = StoredAs(DTYPES[entry.dtype], entry.shape)
        if (entry.kept or 0) > entry.size or (entry.packed and entry.kept is None):
            raise FormatError(f"{file.path}: {name!r} cannot keep {entry.kept} of {entry.size} weights")
    file.expect_as(expected)
    return contents


def _check_alias(file: Sealed, contents: Contents, name: str, entry: Entry) -> None:
    original = contents.tensors.get(entry.same_as or "")
    if (
        original is None
        or entry != original.model_copy(update={"same_as": entry.same_as})
        or original.same_as is not None
    ):
        raise FormatError(f"{file.path}: {name!r} is said to be the same as {entry.same_as!r}, which it is not")
