"""Write packed files, one tensor in memory at a time, whole or not at all."""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Shaped, UInt8
from torch import Tensor

from ecoflap.core.disk.safetensors_header import NAMES
from ecoflap.core.errors import EcoflapError, unknown
from ecoflap.core.packed.bits import bits_of, gathered, nonzeros_pruned, zeroed
from ecoflap.core.packed.contents import FORMAT, Contents, Entry
from ecoflap.core.packed.shards import SHARD, About, divide, forget_shards, refuse_reserved, write_shards
from ecoflap.core.pruning.masks import bits_in, popcount, shape_in
from ecoflap.core.sealing.sealed import VERSION, SealedTensor, write_sealed

_PRUNABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def save_packed(
    path: str | os.PathLike[str],
    state: Mapping[str, Shaped[Tensor, "..."]],
    masks: Mapping[str, Bool[Tensor, "..."]],
    metadata: Mapping[str, str] = {},
    *,
    shard_bytes: int | None = None,
) -> list[Path]:
    """Write a pruned state dict.

    Kept weights are stored bit by bit, ``-0.0`` and NaN included. A pruned weight must be zero; one that is ``-0.0``
    reads back as ``0.0``.

    :param masks: By name in the state dict; True where a weight is kept. A tied tensor's may stand under any of its
        names, or under several.
    :param metadata: Text that :func:`inspect_packed` gives back.
    :param shard_bytes: How many bytes of tensors a file holds at most. What takes more is written in shards,
        ``NAME-00001-of-00003.safetensors`` and so on in the place of the path, with an index in JSON.
    :return: The files.
    :raises EcoflapError: Where a tensor or mask cannot be stored, with all that are wrong.
    """
    refuse_reserved(metadata)
    first = _first_names(state)
    bits, found = _by_first_name(state, masks, first)
    if problems := [*_tensor_problems(state), *found]:
        raise EcoflapError(*problems)
    entries = _entries(state, bits, first)
    shards = _divided(entries, shard_bytes)

    def write(file: Path, number: int) -> str:
        which = {SHARD: f"{number + 1} of {len(shards)}"} if len(shards) > 1 else {}
        return _write(file, state, bits, Contents(metadata={**metadata, **which}, tensors=shards[number]))

    if len(shards) > 1:
        about = About(format=FORMAT, version=VERSION, total_size=sum(e.bytes_packed for e in entries.values()))
        return write_shards(Path(path), list(state), [list(shard) for shard in shards], about, write)
    write(Path(path), 0)
    forget_shards(Path(path))
    return [Path(path)]


def type_problems(state: Mapping[str, Shaped[Tensor, "..."]]) -> Iterator[str]:
    """Say which tensors are of a type that this format does not store; they need no data for it."""
    for name, tensor in state.items():
        if tensor.dtype not in NAMES:
            yield f"{name} is {tensor.dtype}, which this format does not store. Known: {', '.join(NAMES.values())}."


def prunable_problems(weights: Mapping[str, Shaped[Tensor, "..."]]) -> Iterator[str]:
    """Say which pruned weights are of a type that cannot be packed; they need no data for it."""
    for name, weight in weights.items():
        if weight.dtype not in _PRUNABLE:
            yield f"{name} has a mask but is {weight.dtype}; pruned weights are 16, 32 or 64 bit floats"


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
    yield from type_problems(state)


class _MaskBits(Mapping[str, Tensor]):
    """Packed masks by the first names of their tensors. Each is asked for whenever it is looked at, and none is held.

    Those of a run are there as bits, which are never unpacked for all weights of a tensor.
    """

    def __init__(self, masks: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._masks, self._names = masks, names

    def __getitem__(self, first: str) -> UInt8[Tensor, "bytes"]:
        return bits_in(self._masks, self._names[first])

    def __contains__(self, first: object) -> bool:
        return first in self._names  # a mapping's own way is to get the mask

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _by_first_name(
    state: Mapping[str, Tensor], masks: Mapping[str, Tensor], first: Mapping[str, str]
) -> tuple[_MaskBits, list[str]]:
    """Give each packed mask by the first name of its tensor, and say what is wrong with masks."""
    names: dict[str, str] = {}
    by_first = _MaskBits(masks, names)
    problems: list[str] = []
    for name in masks:
        problems += _mask_problems(state, name, masks, first)
        if problems:
            continue
        if first[name] in names and not torch.equal(bits_in(masks, name), by_first[first[name]]):
            problems.append(f"{name} and {first[name]} are one tensor with two masks that differ")
        names[first[name]] = name
    return by_first, problems


def _mask_problems(
    state: Mapping[str, Tensor], name: str, masks: Mapping[str, Tensor], first: Mapping[str, str]
) -> Iterator[str]:
    if name not in state:
        yield f"a mask has {unknown('tensor', name, list(state))}"
        return
    shape, wanted = shape_in(masks, name), tuple(state[name].shape)
    if shape != wanted:
        yield f"the mask of {name} has the shape {shape}, its weight {wanted}"
    yield from prunable_problems({name: state[name]})
    for taken in {f"{first[name]}.values", f"{first[name]}.mask"} & set(state):
        yield f"{taken} is in the way: the pruned weight {name} is stored under this name"


def _entries(state: Mapping[str, Tensor], bits: Mapping[str, Tensor], first: Mapping[str, str]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for name, tensor in state.items():
        if first[name] != name:
            entries[name] = entries[first[name]].model_copy(update={"same_as": first[name]})
        else:
            entries[name] = _entry(tensor, bits.get(name))
    return entries


def _entry(tensor: Tensor, bits: Tensor | None) -> Entry:
    entry = Entry(shape=tuple(tensor.shape), dtype=NAMES[tensor.dtype])
    if bits is None:
        return entry
    as_packed = entry.model_copy(update={"kept": popcount(bits), "packed": True})
    return as_packed.model_copy(update={"packed": as_packed.bytes_packed < as_packed.bytes_dense})


def _divided(entries: Mapping[str, Entry], shard_bytes: int | None) -> list[dict[str, Entry]]:
    """Divide entries into shards; a name that is tied to another goes where that is."""
    sizes = {name: entry.bytes_packed for name, entry in entries.items() if entry.same_as is None}
    shard_of = {name: number for number, names in enumerate(divide(sizes, shard_bytes)) for name in names}
    shards: list[dict[str, Entry]] = [{} for _ in range(max(shard_of.values(), default=0) + 1)]
    for name, entry in entries.items():
        shards[shard_of[entry.stored_under(name)]][name] = entry
    return shards


def _write(path: Path, state: Mapping[str, Tensor], bits: Mapping[str, Tensor], contents: Contents) -> str:
    """Write one file, and return its seal."""
    tensors: dict[str, SealedTensor] = {}
    for name, entry in contents.tensors.items():
        if entry.same_as is None:
            tensors |= _stored(name, state[name], bits, entry)
    return write_sealed(path, FORMAT, contents.model_dump_json(), tensors)


def _stored(name: str, tensor: Tensor, bits: Mapping[str, Tensor], entry: Entry) -> dict[str, SealedTensor]:
    """Give what the file holds of one tensor of the state dict, by the names in the file."""
    if name not in bits:
        return {name: SealedTensor(tensor.dtype, entry.shape, lambda: tensor)}
    if not entry.packed:
        return {name: SealedTensor(tensor.dtype, entry.shape, partial(_dense, name, tensor, bits))}
    kept = entry.kept or 0
    return {
        f"{name}.values": SealedTensor(tensor.dtype, (kept,), partial(_kept_values, name, tensor, bits, kept)),
        f"{name}.mask": SealedTensor(torch.uint8, (entry.mask_bytes,), lambda: bits[name]),
    }


def _dense(name: str, weight: Tensor, bits: Mapping[str, Tensor]) -> Tensor:
    """Give a weight with ``0.0`` where it is pruned, also for ``-0.0``."""
    mask = bits[name]
    _refuse_nonzeros(name, weight, mask)
    return zeroed(bits_of(weight), mask.numpy()).view(weight.dtype).reshape(weight.shape)


def _kept_values(name: str, weight: Tensor, bits: Mapping[str, Tensor], kept: int) -> Tensor:
    mask = bits[name]
    _refuse_nonzeros(name, weight, mask)
    return gathered(bits_of(weight), mask.numpy(), kept).view(weight.dtype)


def _refuse_nonzeros(name: str, weight: Tensor, mask: Tensor) -> None:
    wrong = nonzeros_pruned(weight, mask.numpy())
    if wrong:
        raise EcoflapError(f"{name}: {wrong} weights that its mask prunes are not zero. Multiply it by its mask first.")
