"""The packed file: a pruned model's state dict in safetensors, where a pruned weight costs one bit.

A pruned weight NAME is stored as ``NAME.values``, the kept values in their own dtype and row-major order, and
``NAME.mask``, one bit a weight with the first in the lowest bit (``numpy.packbits(bitorder="little")``). A weight that
would not be smaller so is stored dense, as everything else is. Tied tensors are stored once.
``ecoflap.core.disk.sealed`` says how the file is checked, and ``ecoflap.core.packed.shards`` how a large one is dealt
to several.
"""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from pydantic import AfterValidator, BaseModel, ConfigDict, NonNegativeInt, ValidationError
from torch import Tensor

from ecoflap.core.disk.sealed import DTYPES, NAMES, VERSION, Part, Sealed, flat, open_sealed, write_sealed
from ecoflap.core.errors import EcoflapError, FormatError, unknown
from ecoflap.core.packed.shards import SHARD, About, Located, deal, forget_shards, locate, refuse_reserved, write_shards
from ecoflap.core.pruning.masks import PackedMasks, pack, popcount, unpack

_FORMAT = "ecoflap.packed"
_PRUNABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _known_dtype(name: str) -> str:
    if name not in DTYPES:
        raise ValueError(f"no dtype named {name!r}")
    return name


class Entry(BaseModel):
    """What a packed file says of one name of the state dict.

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

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def bytes_dense(self) -> int:
        return 0 if self.same_as is not None else self.size * self.itemsize

    @property
    def bytes_packed(self) -> int:
        if self.same_as is not None or not self.packed:
            return self.bytes_dense
        return (self.kept or 0) * self.itemsize + (self.size + 7) // 8


class Manifest(BaseModel):
    """What a packed file holds, in the order of the state dict. Tied tensors count once in the totals."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    metadata: dict[str, str]
    tensors: dict[str, Entry]

    @property
    def bytes_dense(self) -> int:
        return sum(entry.bytes_dense for entry in self.tensors.values())

    @property
    def bytes_packed(self) -> int:
        return sum(entry.bytes_packed for entry in self.tensors.values())


def save_packed(
    path: str | os.PathLike[str],
    state: Mapping[str, Shaped[Tensor, "..."]],
    masks: Mapping[str, Bool[Tensor, "..."]],
    metadata: Mapping[str, str] = {},
    *,
    shard_bytes: int | None = None,
) -> list[Path]:
    """Write a pruned state dict, one tensor in memory at a time, whole or not at all.

    Kept weights are stored bit by bit, ``-0.0`` and NaN included. A pruned weight must be zero; one that is ``-0.0``
    reads back as ``0.0``.

    :param masks: By name in the state dict; True where a weight is kept; a tied tensor's under any of its names.
    :param metadata: Text that :func:`inspect_packed` gives back.
    :param shard_bytes: How many bytes of tensors a file holds at most. What takes more is written in shards,
        ``NAME-00001-of-00003.safetensors`` and so on in the place of the path, with an index in JSON.
    :return: The files.
    """
    refuse_reserved(metadata)
    first = _first_names(state)
    if problems := [*_tensor_problems(state), *_mask_problems(state, masks, first)]:
        raise EcoflapError(*problems)
    masks = {first[name]: mask for name, mask in masks.items()}
    entries = _entries(state, masks, first)
    shards = _dealt(entries, shard_bytes)

    def write(file: Path, number: int) -> str:
        told = {SHARD: f"{number + 1} of {len(shards)}"} if len(shards) > 1 else {}
        return _write(file, state, masks, Manifest(metadata={**metadata, **told}, tensors=shards[number]))

    if len(shards) > 1:
        about = About(format=_FORMAT, version=VERSION, total_size=sum(e.bytes_packed for e in entries.values()))
        return write_shards(Path(path), list(state), [list(shard) for shard in shards], about, write)
    write(Path(path), 0)
    forget_shards(Path(path))
    return [Path(path)]


def load_packed(path: str | os.PathLike[str]) -> dict[str, Shaped[Tensor, "..."]]:
    """The state dict that was saved: every name, tied ones sharing one tensor. All is checked, one tensor at a time.

    :param path: The packed file, the index of several, or the folder that they are in.
    """
    located = locate(Path(path))
    state: dict[str, Tensor] = {}
    for file, manifest in _opened(located):
        stored = dict(_stored(file, manifest))
        state |= {n: stored[n if entry.same_as is None else entry.same_as] for n, entry in manifest.tensors.items()}
    return located.in_order(state)


def stream_packed(path: str | os.PathLike[str]) -> Iterator[tuple[str, Shaped[Tensor, "..."]]]:
    """Each stored tensor, dense again and checked, one at a time; tied ones under their first name."""
    for file, manifest in _opened(locate(Path(path))):
        yield from _stored(file, manifest)


def inspect_packed(path: str | os.PathLike[str]) -> Manifest:
    """What a packed file holds, from its header alone: shapes, dtypes, kept counts, sizes."""
    located = locate(Path(path))
    metadata: dict[str, str] = {}
    tensors: dict[str, Entry] = {}
    for _, manifest in _opened(located):
        metadata |= {key: text for key, text in manifest.metadata.items() if key != SHARD}
        tensors |= manifest.tensors
    return Manifest(metadata=metadata, tensors=located.in_order(tensors))


def masks_in(path: str | os.PathLike[str]) -> PackedMasks:
    """The masks of all pruned tensors, under each of their names; nothing else is read where they are packed.

    Of a tensor that is stored dense the mask is where it is not zero.
    """
    masks = PackedMasks()
    for file, manifest in _opened(locate(Path(path))):
        for name, entry in manifest.tensors.items():
            if entry.kept is not None:
                masks.put(name, _mask_bits(file, name if entry.same_as is None else entry.same_as, entry), entry.shape)
    return masks


def _mask_bits(file: Sealed, name: str, entry: Entry) -> Tensor:
    if entry.packed:
        return _read_mask(file, name, entry)
    if entry.kept == entry.size:
        return pack(torch.ones(entry.shape, dtype=torch.bool))
    return pack(_read_dense(file, name, entry).ne(0))


def _opened(located: Located) -> Iterator[tuple[Sealed, Manifest]]:
    for path in located.files:
        with open_sealed(path, _FORMAT) as file:
            manifest = _manifest(file)
            located.check(path, file.seal, manifest.tensors, manifest.metadata.get(SHARD))
            yield file, manifest


def _entries(state: Mapping[str, Tensor], masks: Mapping[str, Tensor], first: Mapping[str, str]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for name, tensor in state.items():
        if first[name] != name:
            entries[name] = entries[first[name]].model_copy(update={"same_as": first[name]})
        else:
            entries[name] = _entry(tensor, masks.get(name))
    return entries


def _dealt(entries: Mapping[str, Entry], shard_bytes: int | None) -> list[dict[str, Entry]]:
    """To shards; a name that is tied to another goes where that is."""
    sizes = {name: entry.bytes_packed for name, entry in entries.items() if entry.same_as is None}
    shard_of = {name: number for number, names in enumerate(deal(sizes, shard_bytes)) for name in names}
    shards: list[dict[str, Entry]] = [{} for _ in range(max(shard_of.values(), default=0) + 1)]
    for name, entry in entries.items():
        shards[shard_of[name if entry.same_as is None else entry.same_as]][name] = entry
    return shards


def _write(path: Path, state: Mapping[str, Tensor], masks: Mapping[str, Tensor], manifest: Manifest) -> str:
    """One file; its seal."""
    parts: dict[str, Part] = {}
    for name, entry in manifest.tensors.items():
        if entry.same_as is None:
            parts |= _parts(name, state[name], masks.get(name), entry)
    return write_sealed(path, _FORMAT, manifest.model_dump_json(), parts)


def _first_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name the first one of the same tensor: equal in storage, offset, shape, stride and dtype."""
    seen: dict[tuple[object, ...], str] = {}
    first = {}
    for name, tensor in state.items():
        where = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset())
        key = (*where, tensor.shape, tensor.stride(), tensor.dtype)
        # Empty tensors have no storage to share.
        first[name] = seen.setdefault(key, name) if tensor.numel() else name
    return first


def _tensor_problems(state: Mapping[str, Tensor]) -> Iterator[str]:
    for name, tensor in state.items():
        if tensor.is_meta:
            yield f"{name} has no data: it is on the meta device. Load the model's weights first."
        if tensor.dtype not in NAMES:
            yield f"{name} is {tensor.dtype}, which this format does not store. Known: {', '.join(NAMES.values())}."


def _mask_problems(state: Mapping[str, Tensor], masks: Mapping[str, Tensor], first: Mapping[str, str]) -> Iterator[str]:
    seen: dict[str, Tensor] = {}
    for name, mask in masks.items():
        if name not in state:
            yield f"a mask has {unknown('tensor', name, list(state))}"
            continue
        if mask.shape != state[name].shape:
            yield f"the mask of {name} has the shape {tuple(mask.shape)}, its weight {tuple(state[name].shape)}"
        if state[name].dtype not in _PRUNABLE:
            yield f"{name} has a mask but is {state[name].dtype}; pruned weights are 16, 32 or 64 bit floats"
        if not torch.equal(mask, seen.setdefault(first[name], mask)):
            yield f"{name} and {first[name]} are one tensor with two masks that differ"
        for taken in {f"{first[name]}.values", f"{first[name]}.mask"} & set(state):
            yield f"{taken} is in the way: the pruned weight {name} is stored under this name"


def _entry(tensor: Tensor, mask: Tensor | None) -> Entry:
    entry = Entry(shape=tuple(tensor.shape), dtype=NAMES[tensor.dtype])
    if mask is None:
        return entry
    as_packed = entry.model_copy(update={"kept": int(mask.count_nonzero()), "packed": True})
    return as_packed.model_copy(update={"packed": as_packed.bytes_packed < as_packed.bytes_dense})


def _parts(name: str, tensor: Tensor, mask: Tensor | None, entry: Entry) -> dict[str, Part]:
    if mask is None:
        return {name: Part(tensor.dtype, entry.shape, lambda: tensor)}
    if not entry.packed:
        return {name: Part(tensor.dtype, entry.shape, partial(_checked, name, tensor, mask))}
    return {
        f"{name}.values": Part(tensor.dtype, (entry.kept or 0,), partial(_kept_values, name, tensor, mask)),
        f"{name}.mask": Part(torch.uint8, ((entry.size + 7) // 8,), partial(pack, mask)),
    }


def _checked(name: str, weight: Tensor, mask: Tensor) -> Tensor:
    _kept_values(name, weight, mask)
    return weight.detach().cpu().masked_fill(~mask.cpu(), 0)


def _kept_values(name: str, weight: Tensor, mask: Tensor) -> Tensor:
    """The kept weights; an error if one that is not kept is anything but zero."""
    weight = flat(weight)
    # As integers: no floating-point unit sees, and perhaps quiets, a NaN.
    bits = weight.view(_INTEGERS[weight.dtype.itemsize]).numpy()
    values = torch.from_numpy(np.compress(mask.cpu().reshape(-1).numpy(), bits)).view(weight.dtype)
    wrong = int(weight.count_nonzero() - values.count_nonzero())
    if wrong:
        raise EcoflapError(f"{name}: {wrong} weights that its mask prunes are not zero. Multiply it by its mask first.")
    return values


def _manifest(file: Sealed) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(file.manifest)
    except ValidationError as error:
        raise FormatError(f"{file.path}: its manifest is damaged: {error}") from error
    expected = set()
    for name, entry in manifest.tensors.items():
        if entry.same_as is not None:
            _check_alias(file, manifest, name, entry)
        elif entry.packed:
            expected |= {f"{name}.values", f"{name}.mask"}
        else:
            expected.add(name)
        if (entry.kept or 0) > entry.size or (entry.packed and entry.kept is None):
            raise FormatError(f"{file.path}: {name!r} cannot keep {entry.kept} of {entry.size} weights")
    file.expect(expected)
    return manifest


def _check_alias(file: Sealed, manifest: Manifest, name: str, entry: Entry) -> None:
    original = manifest.tensors.get(entry.same_as or "")
    if (
        original is None
        or entry != original.model_copy(update={"same_as": entry.same_as})
        or original.same_as is not None
    ):
        raise FormatError(f"{file.path}: {name!r} is said to be the same as {entry.same_as!r}, which it is not")


def _stored(file: Sealed, manifest: Manifest) -> Iterator[tuple[str, Tensor]]:
    for name, entry in manifest.tensors.items():
        if entry.same_as is None:
            yield name, (_read_packed if entry.packed else _read_dense)(file, name, entry)


def _read_dense(file: Sealed, name: str, entry: Entry) -> Tensor:
    tensor = _read(file, name, DTYPES[entry.dtype], entry.shape)
    if entry.kept is not None and int(tensor.count_nonzero()) > entry.kept:
        raise FormatError(f"{file.path}: {name!r} has more weights than the {entry.kept} it keeps")
    return tensor


def _read_packed(file: Sealed, name: str, entry: Entry) -> Tensor:
    # Lengths are checked before anything of the announced shape is allocated.
    bits = _read_mask(file, name, entry)
    values = _read(file, f"{name}.values", DTYPES[entry.dtype], (entry.kept or 0,))
    if (kept := popcount(bits)) != len(values):
        raise FormatError(f"{file.path}: the mask of {name!r} keeps {kept} weights but {len(values)} values are stored")
    try:
        mask = unpack(bits, entry.shape)
    except FormatError as error:
        raise FormatError(f"{file.path}: {name}: {error}") from error
    integers = values.view(_INTEGERS[values.dtype.itemsize]).numpy()
    dense = np.zeros(entry.size, integers.dtype)
    dense[np.flatnonzero(mask.numpy())] = integers
    return torch.from_numpy(dense).view(values.dtype).reshape(entry.shape)


def _read_mask(file: Sealed, name: str, entry: Entry) -> Tensor:
    return _read(file, f"{name}.mask", torch.uint8, ((entry.size + 7) // 8,))


def _read(file: Sealed, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    tensor = file.read(name)
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        found = f"{tensor.dtype} {tuple(tensor.shape)}"
        raise FormatError(f"{file.path}: the tensor {name!r} is {found} where {dtype} {shape} is announced")
    return tensor
