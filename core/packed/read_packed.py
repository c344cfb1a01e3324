"""Read packed files: a whole state dict, one tensor after the other, the masks alone, or the header alone."""

import os
from collections.abc import Container, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from ecoflap.core.bits import full_mask
from ecoflap.core.disk.safetensors_header import DTYPES
from ecoflap.core.errors import FormatError
from ecoflap.core.packed.bits import bits_of, nonzero_bits, nonzeros_of, spread
from ecoflap.core.packed.contents import FORMAT, Contents, Entry, contents_of
from ecoflap.core.packed.shards import SHARD, Located, locate
from ecoflap.core.pruning.masks import PackedMasks, check_fit, popcount
from ecoflap.core.sealing.sealed import Sealed, open_sealed

_ANEW = "Fetch it anew, or export it anew: `ecoflap export` replaces what is there with --overwrite."


def load_packed(path: str | os.PathLike[str]) -> dict[str, Shaped[Tensor, "..."]]:
    """Read the state dict that was saved: every name, tied ones sharing one tensor.

    Every byte is checked. Beside what is returned one tensor is in memory at a time.

    :param path: The packed file, the index of several, or the folder that they are in.
    :raises FormatError: Where a file is missing, truncated, changed, or of another format.
    """
    located = locate(path)
    state: dict[str, Tensor] = {}
    for file, contents in _opened(located):
        stored = dict(_stored(file, contents))
        state |= {name: stored[entry.stored_under(name)] for name, entry in contents.tensors.items()}
    return located.in_order(state)


def stream_packed(path: str | os.PathLike[str]) -> Iterator[tuple[str, Shaped[Tensor, "..."]]]:
    """Yield each stored tensor, dense again and checked, one at a time; tied ones under their first name."""
    for file, contents in _opened(locate(path)):
        yield from _stored(file, contents)


@dataclass(frozen=True)
class StoredPacked:
    """Holds a pruned tensor as a packed file has it, checked.

    :param bits: One bit for each weight.
    :param values: The kept ones.
    """

    bits: UInt8[Tensor, "bytes"]
    values: Shaped[Tensor, " kept"]


def stream_stored(
    path: str | os.PathLike[str], stays_packed: Container[str]
) -> Iterator[tuple[str, Shaped[Tensor, "..."] | StoredPacked]]:
    """Yield as :func:`stream_packed` does, but some tensors as they are stored.

    :param stays_packed: Their names; each is one that the file holds packed.
    """
    for file, contents in _opened(locate(path)):
        for name, entry in contents.tensors.items():
            if entry.same_as is None and name in stays_packed:
                yield name, _read_stored(file, name, entry)
            elif entry.same_as is None:
                yield name, _dense(file, name, entry)


def inspect_packed(path: str | os.PathLike[str]) -> Contents:
    """Say what a packed file holds, from its header alone: shapes, dtypes, kept counts, sizes."""
    located = locate(path)
    metadata: dict[str, str] = {}
    tensors: dict[str, Entry] = {}
    for _, contents in _opened(located):
        metadata |= {key: text for key, text in contents.metadata.items() if key != SHARD}
        tensors |= contents.tensors
    return Contents(metadata=metadata, tensors=located.in_order(tensors))


def masks_in(path: str | os.PathLike[str]) -> PackedMasks:
    """Read the masks of all pruned tensors, under each of their names; where they are packed, nothing else is read.

    The mask of a tensor that is stored dense is where it is not zero.
    """
    located = locate(path)
    found: dict[str, tuple[Tensor, tuple[int, ...]]] = {}
    for file, contents in _opened(located):
        for name, entry in contents.tensors.items():
            if entry.kept is not None:
                found[name] = _mask_bits(file, entry.stored_under(name), entry), entry.shape
    masks = PackedMasks()
    for name, (bits, shape) in located.in_order(found).items():
        masks.put(name, bits, shape)
    return masks


def _mask_bits(file: Sealed, name: str, entry: Entry) -> Tensor:
    if entry.packed:
        return _read_mask(file, name, entry)
    if entry.kept == entry.size:
        return full_mask(entry.size)
    return nonzero_bits(_read_dense(file, name, entry))


def _opened(located: Located) -> Iterator[tuple[Sealed, Contents]]:
    for path in located.files:
        with open_sealed(path, FORMAT, _ANEW) as file:
            contents = contents_of(file)
            located.check(path, file.seal, contents.tensors, contents.metadata.get(SHARD))
            yield file, contents


def _stored(file: Sealed, contents: Contents) -> Iterator[tuple[str, Tensor]]:
    for name, entry in contents.tensors.items():
        if entry.same_as is None:
            yield name, _dense(file, name, entry)


def _dense(file: Sealed, name: str, entry: Entry) -> Tensor:
    return (_read_packed if entry.packed else _read_dense)(file, name, entry)


def _read_dense(file: Sealed, name: str, entry: Entry) -> Tensor:
    tensor = _read(file, name, DTYPES[entry.dtype], entry.shape)
    if entry.kept is not None and nonzeros_of(tensor) > entry.kept:
        raise FormatError(f"{file.path}: {name!r} has more weights than the {entry.kept} it keeps")
    return tensor


def _read_stored(file: Sealed, name: str, entry: Entry) -> StoredPacked:
    # Lengths are checked before anything of the announced shape is allocated.
    bits = _read_mask(file, name, entry)
    values = _read(file, f"{name}.values", DTYPES[entry.dtype], (entry.kept or 0,))
    if (kept := popcount(bits)) != len(values):
        raise FormatError(f"{file.path}: the mask of {name!r} keeps {kept} weights but {len(values)} values are stored")
    return StoredPacked(bits, values)


def _read_packed(file: Sealed, name: str, entry: Entry) -> Tensor:
    stored = _read_stored(file, name, entry)
    try:
        check_fit(stored.bits, entry.shape)
    except FormatError as error:
        raise FormatError(f"{file.path}: {name}: {error}") from error
    dense = spread(bits_of(stored.values), stored.bits.numpy(), entry.size)
    return dense.view(stored.values.dtype).reshape(entry.shape)


def _read_mask(file: Sealed, name: str, entry: Entry) -> Tensor:
    return _read(file, f"{name}.mask", torch.uint8, (entry.mask_bytes,))


def _read(file: Sealed, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    tensor = file.read(name)
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        found = f"{tensor.dtype} {tuple(tensor.shape)}"
        raise FormatError(f"{file.path}: the tensor {name!r} is {found} where {dtype} {shape} is announced")
    return tensor
