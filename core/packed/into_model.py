"""Build a model without weights and give it those of a packed file, one tensor in memory beside it at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from threading import RLock, get_ident

import torch
from torch import Tensor, nn

from ecoflap.core.disk.safetensors_header import DTYPES
from ecoflap.core.errors import ModelError, first_of
from ecoflap.core.model.anatomy import Source
from ecoflap.core.model.shapes import first_difference, saved_tensors, shapes_of
from ecoflap.core.model.source import weight_files
from ecoflap.core.packed.contents import Entry
from ecoflap.core.packed.packing import ATTRIBUTE, Packing
from ecoflap.core.packed.read_packed import StoredPacked, inspect_packed, stream_stored
from ecoflap.core.packed.shards import ENDING, INDEX
from ecoflap.core.packed.staying_packed import StayingPacked

_PACKED = (f"*{ENDING}", f"*{ENDING}{INDEX}", "*.packed-[0-9]*-of-[0-9]*.safetensors")


def packed_in(source: Source) -> Path | None:
    """Give the folder of a source whose weights are packed; None for any other source.

    :raises ModelError: Where the folder holds dense weights too: nobody could tell which are meant.
    """
    if source.path is None or not source.path.is_dir() or not any(map(is_packed, source.files)):
        return None
    refuse_dense(source.path, [file.name for file in weight_files(source)])
    return source.path


def refuse_dense(folder: Path, files: Iterable[str]) -> None:
    """Refuse a packed folder of whose files with weights some are dense, such as were saved over what was exported."""
    dense = sorted(name for name in files if not is_packed(name))
    if dense:
        raise ModelError(
            f"{folder} holds packed weights and dense ones ({dense[0]}), as model.save_pretrained(folder) leaves them: "
            f"nobody can tell which are meant. Move the ones or the others away; what was overwritten beside them, as "
            f"config.json, `ecoflap export` writes anew with --overwrite."
        )


def is_packed(name: str) -> bool:
    """Say whether a file is a packed one, a shard of one or an index, by its name."""
    return any(fnmatch(name, pattern) for pattern in _PACKED)


@contextmanager
def without_weights() -> Iterator[None]:
    """Build models inside with their parameters on the meta device, and with their buffers as they are.

    Buffers that no state dict holds, such as RoPE's frequencies, are computed when a model is built and at no other
    time; on the meta device they would be lost.
    """
    mine = get_ident()
    with _building:  # the patch is the whole process', and another thread's models are none of this one's
        register = nn.Module.register_parameter

        def registered(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
            if get_ident() == mine and param is not None and not param.is_meta:
                param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
            register(self, name, param)

        nn.Module.register_parameter = registered  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.register_parameter = register  # type: ignore[method-assign]


_building = RLock()
_stays_packed: ContextVar[Packing | None] = ContextVar("stays_packed", default=None)


@contextmanager
def left_packed(packing: Packing) -> Iterator[None]:
    """Have :func:`fill` leave pruned matrices packed inside, as far as they can be multiplied so.

    What an adapter loads is filled deep within its library's own loading, which need not know of it.

    :param packing: Says how their weights are held, and is told which are packed.
    """
    token = _stays_packed.set(packing)
    try:
        yield
    finally:
        _stays_packed.reset(token)


def packed_types(path: Path) -> dict[str, torch.dtype]:
    """Give the type that each tensor of the state dict is stored in, by its name; nothing is read but headers."""
    return {name: DTYPES[entry.dtype] for name, entry in inspect_packed(path).tensors.items()}


def fill(
    model: nn.Module, path: Path, type_of: Callable[[str, torch.dtype], torch.dtype] = lambda name, stored: stored
) -> None:
    """Give a model the weights of a packed file in place of its own, tied where those are tied.

    :param path: The packed file, or the folder that it is in.
    :param type_of: Gives the type that a floating-point tensor is to have, by its name and the type it is stored in.
    :raises ModelError: Where the file is of another model.
    """
    entries = inspect_packed(path).tensors
    _refuse_another(model, path, entries)
    names: dict[str, list[str]] = {}
    for name, entry in entries.items():
        names.setdefault(entry.same_as or name, []).append(name)
    packing = _stays_packed.get()
    packs = StayingPacked.of(model, entries, names, type_of, packing) if packing is not None else None
    for first, stored in stream_stored(path, packs.stored if packs else ()):
        if packs is not None and first in packs.candidates:
            packs.put(model, first, stored)
            continue
        assert not isinstance(stored, StoredPacked)
        if stored.is_floating_point():
            stored = stored.to(type_of(first, stored.dtype))
        _put(model, names[first], stored)
    if packs is not None:
        setattr(model, ATTRIBUTE, packs.packing)
    left = [name for name, t in chain(model.named_parameters(), model.named_buffers()) if t.is_meta]
    if left:
        raise ModelError(f"{path}: its model was built without {first_of(left)}, which no packed file holds.")
    _refuse_other_ties(model, path, names)


def _put(model: nn.Module, names: list[str], tensor: Tensor) -> None:
    """Put one tensor into the model under each of its names."""
    shared: nn.Parameter | None = None
    for name in names:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        before = module._parameters.get(leaf)
        if before is None:
            module._buffers[leaf] = tensor
        else:
            shared = shared if shared is not None else nn.Parameter(tensor, requires_grad=before.requires_grad)
            module._parameters[leaf] = shared


def _refuse_another(model: nn.Module, path: Path, entries: Mapping[str, Entry]) -> None:
    found = {name: entry.shape for name, entry in entries.items()}
    different = first_difference(found, shapes_of(model.state_dict().items()))
    if different is not None:
        raise ModelError(
            f"{path} holds the weights of another model than its configuration describes, or of another version of its "
            f"library: {different.name} is {different.one} in the file and {different.other} in the model, and "
            f"{different.count - 1} more differ."
        )
    real = {name for name, weight in model.state_dict().items() if weight.is_floating_point()}
    integers = [name for name, entry in entries.items() if name in real and not DTYPES[entry.dtype].is_floating_point]
    if integers:
        raise ModelError(
            f"{path} holds integers where the model has real numbers, and nothing says what they stand for: "
            f"{first_of(integers)}."
        )


def _refuse_other_ties(model: nn.Module, path: Path, names: Mapping[str, list[str]]) -> None:
    """Refuse a file that has two weights where the model has one: one of the two would be lost in silence."""
    first = {name: leader for leader, group in names.items() for name in group}
    seen: dict[int, str] = {}
    for name, tensor in saved_tensors(model):
        leader = seen.setdefault(id(tensor), first[name])
        if leader != first[name]:
            raise ModelError(f"{path} stores {leader} and {first[name]} apart, which are one weight in this model.")
