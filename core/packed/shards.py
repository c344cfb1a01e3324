"""Divide a packed file into several: tensors into shards, and an index that holds the shards together.

``model.packed.safetensors`` becomes ``model.packed-00001-of-00003.safetensors`` and so on, each a packed file that is
checked by itself, and ``model.packed.safetensors.index.json`` says which name is in which. The index holds each
shard's seal and has one of its own, so that no shard can be exchanged for one of another export.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from ecoflap.core.disk.json_files import read_bytes
from ecoflap.core.disk.paths import from_here
from ecoflap.core.disk.whole_files import PARTIAL, delete_whole, whole_folder, write_whole
from ecoflap.core.errors import EcoflapError, FormatError, first_of

ENDING = ".packed.safetensors"
INDEX = ".index.json"
SHARD = "shard"
"""The key of a shard's metadata that says which it is, such as ``2 of 3``."""


T = TypeVar("T")


class About(BaseModel):
    """Says what an index has of the whole.

    :param total_size: Bytes of all tensors as they are stored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    format: str
    version: str
    total_size: NonNegativeInt


class Index(BaseModel):
    """Lists what the index file holds.

    :param weight_map: Name in the state dict, in its order, to the file it is in; tied names are in one file.
    :param seals: Each file's, in the order of their numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    metadata: About
    weight_map: dict[str, str]
    seals: dict[str, str]
    seal: str

    @property
    def expected_seal(self) -> str:
        text = json.dumps([self.metadata.model_dump(), self.weight_map, self.seals])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Located:
    """Names the files that hold a state dict, and the index that says what each must be; a single file has none."""

    files: tuple[Path, ...]
    index: Index | None = None

    def in_order(self, tensors: Mapping[str, T]) -> dict[str, T]:
        """Put tensors, all or some, in the order of the state dict, which the index of several files has."""
        order = tensors if self.index is None else self.index.weight_map
        return {name: tensors[name] for name in order if name in tensors}

    def check(self, file: Path, seal: str, names: Iterable[str], shard: str | None) -> None:
        """Refuse a file that is not the one the index was written with.

        :param names: The names of the state dict that it holds.
        :param shard: Which shard it says that it is, such as ``2 of 3``; None for a file that is no shard.
        """
        if self.index is None:
            if shard is not None:
                raise FormatError(f"{file} is shard {shard} and holds a part of the weights: read the index beside it")
            return
        mapped = {name for name, where in self.index.weight_map.items() if where == file.name}
        number = f"{list(self.index.seals).index(file.name) + 1} of {len(self.files)}"
        if seal != self.index.seals[file.name] or shard != number or set(names) != mapped:
            raise FormatError(f"{file} is not the shard that its index was written with. Get all files anew.")


def locate(path: str | os.PathLike[str]) -> Located:
    """Find the files behind the path of a packed file, of its index, or of the folder they are in.

    :raises FormatError: Where there is none, or one of several is missing.
    """
    path = from_here(path)
    if path.is_dir():
        path = _only_in(path)
    elif not path.is_file() and _index_of(path).is_file():
        path = _index_of(path)
    if not path.name.endswith(INDEX):
        return Located((path,))
    index = _read(path)
    files = tuple(path.parent / name for name in index.seals)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FormatError(f"{path.parent} lacks {len(missing)} of {len(files)} shards: {first_of(missing)}")
    return Located(files, index)


def divide(sizes: Mapping[str, int], shard_bytes: int | None) -> list[list[str]]:
    """Divide names into shards in their order, as many to each as fit; what is larger than a shard has one of its own.

    :param sizes: Bytes of what is stored under each name.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and shard_bytes is not None and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def write_shards(
    path: Path, names: Sequence[str], shards: Sequence[Sequence[str]], about: About, write: Callable[[Path, int], str]
) -> list[Path]:
    """Write shards and their index, whole or not at all: what was there before stays until all shards are written.

    :param path: Of the one file that the shards stand for.
    :param names: Those of the state dict, in order.
    :param shards: The names in each shard.
    :param write: Writes the shard of a number, counted from 0, and returns its seal.
    :return: The shards, and last the index.
    """
    files = [path.with_name(_name(path.name, number, len(shards))) for number in range(len(shards))]
    # By its name it is deleted as a leftover where the process is killed before all are in their place.
    aside = path.with_name(f".{path.name}.shards{PARTIAL}")
    with whole_folder(aside) as folder:
        seals = {file.name: write(folder / file.name, number) for number, file in enumerate(files)}
    where = {name: file.name for file, inside in zip(files, shards, strict=True) for name in inside}
    index = Index(metadata=about, weight_map={name: where[name] for name in names}, seals=seals, seal="")
    index = index.model_copy(update={"seal": index.expected_seal})
    # The index goes first and comes last: a process killed in between leaves shards that no reader takes for whole.
    forget_shards(path)
    path.unlink(missing_ok=True)
    try:
        for file in files:
            os.replace(aside / file.name, file)
    finally:
        delete_whole(aside)
    write_whole(_index_of(path), json.dumps(index.model_dump(), indent=2) + "\n")
    return [*files, _index_of(path)]


def forget_shards(path: Path) -> None:
    """Delete the shards that an earlier export left in place of this file, their index first."""
    _index_of(path).unlink(missing_ok=True)
    for file in _shards_in(path.parent, escape(path.name.removesuffix(".safetensors"))):
        file.unlink()


def _index_of(path: Path) -> Path:
    return path.with_name(f"{path.name}{INDEX}")


def _name(name: str, number: int, count: int) -> str:
    return f"{name.removesuffix('.safetensors')}-{number + 1:05d}-of-{count:05d}.safetensors"


def _shards_in(folder: Path, stem: str) -> list[Path]:
    digits = "[0-9]" * 5
    return sorted(folder.glob(f"{stem}-{digits}-of-{digits}.safetensors"))


def holds_packed(folder: Path) -> bool:
    """Say whether a folder has a packed file, an index of several, or a shard of one."""
    return bool(_wholes_in(folder) or _shards_in(folder, "*.packed"))


def packed_exports(run: Path) -> list[Path]:
    """Give the folders of a run's exports that have packed files; none where it is the folder of no run."""
    exports = run / "exports"
    inside = sorted(exports.iterdir()) if exports.is_dir() else []
    return [path for path in inside if path.is_dir() and not path.name.startswith(".") and holds_packed(path)]


def _wholes_in(folder: Path) -> list[Path]:
    return sorted([*folder.glob(f"*{ENDING}"), *folder.glob(f"*{ENDING}{INDEX}")])


def _only_in(folder: Path) -> Path:
    found = _wholes_in(folder)
    if len(found) == 1:
        return found[0]
    if found:
        raise FormatError(f"{folder} holds several packed files: name one of {', '.join(file.name for file in found)}")
    shards = _shards_in(folder, "*.packed")
    if shards:
        raise FormatError(f"{folder} holds {shards[0].name} without the index that belongs to it: it was cut off")
    exports = packed_exports(folder)
    named = f". It is a run's, and its exports have: name {' or '.join(map(str, exports))}" if exports else ""
    called = f"one is called *{ENDING}, or *{ENDING}{INDEX} if it is in shards"
    raise FormatError(f"{folder} holds no packed file: {called}{named}")


def _read(path: Path) -> Index:
    try:
        index = Index.model_validate_json(read_bytes(path))
    except (ValidationError, ValueError) as error:
        raise FormatError(f"{path} is no index of packed files, or a damaged one: {error}") from error
    if index.seal != index.expected_seal:
        raise FormatError(f"{path} is damaged: it is not what was written (SHA-256)")
    name, count = path.name.removesuffix(INDEX), len(index.seals)
    expected = [_name(name, number, count) for number in range(count)]
    # Names are made here and not taken from the file, so that none leads out of the folder.
    if list(index.seals) != expected or not set(index.weight_map.values()) <= set(expected):
        raise FormatError(f"{path} names other files than its shards, which are {first_of(expected)}")
    return index


def refuse_reserved(metadata: Mapping[str, str]) -> None:
    """Refuse metadata with the key by which a shard says which it is."""
    if SHARD in metadata:
        raise EcoflapError(f"metadata: {SHARD!r} is what a shard says of itself here. Choose another key.")
