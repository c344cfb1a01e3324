"""Write and read safetensors files with a SHA-256 over every byte, by which a damaged one is recognised, in a stream.

The header's ``__metadata__`` holds ``format`` and ``version``, a ``manifest`` that belongs to the format, ``sha256`` of
each tensor, and a ``seal``: the SHA-256 of manifest and ``sha256`` together. Any safetensors library reads such a file.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ecoflap.core.disk.copy_on_write import copy_on_write
from ecoflap.core.disk.json_files import json_value
from ecoflap.core.disk.reading import open_file, unread
from ecoflap.core.disk.safetensors_header import DTYPES, NAMES, StoredAs, header_of, in_file_order, places_in
from ecoflap.core.disk.whole_files import whole_file
from ecoflap.core.errors import EcoflapError, FormatError

VERSION = "1"


@dataclass(frozen=True)
class SealedTensor(StoredAs):
    """Describes a tensor that is to be written into a sealed file.

    :param read: Gives the tensor. It is called when the tensor is written, so that one at a time is in memory.
    """

    read: Callable[[], Tensor]


def sealed(tensor: Tensor) -> SealedTensor:
    """Describe a tensor that there is."""
    return SealedTensor(tensor.dtype, tuple(tensor.shape), lambda: tensor)


def write_sealed(path: Path, form: str, manifest: str, tensors: Mapping[str, SealedTensor]) -> str:
    """Write a file whole or not at all, with one tensor in memory at a time.

    The library's own writer wants all tensors at once. The header comes before the data and holds their hashes, but its
    length does not depend on them: it is written twice.

    :param form: The format's name.
    :param manifest: Text that belongs to the format.
    :return: The file's seal.
    """
    hashes = {name: "0" * 64 for name in in_file_order(tensors)}
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(header_of(tensors, _metadata(form, manifest, hashes)))
        for name in hashes:
            hashes[name] = _write(file, name, tensors[name])
        file.seek(0)
        file.write(header_of(tensors, _metadata(form, manifest, hashes)))
    return _seal(manifest, json.dumps(hashes))


def write_safetensors(path: Path, tensors: Mapping[str, SealedTensor]) -> dict[str, str]:
    """Write a file as every library reads it, whole or not at all, with one tensor in memory at a time.

    :return: The SHA-256 of each tensor, as :func:`hash_of` gives it.
    """
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(header_of(tensors, {"format": "pt"}))
        return {name: _write(file, name, tensors[name]) for name in in_file_order(tensors)}


def hash_of(name: str, tensor: Tensor) -> str:
    """Give the SHA-256 of a tensor with its name, type and shape."""
    return _hash(name, tensor, _bytes(tensor))


def _metadata(form: str, manifest: str, hashes: Mapping[str, str]) -> dict[str, str]:
    sha256 = json.dumps(hashes)
    seal = _seal(manifest, sha256)
    return {"format": form, "version": VERSION, "manifest": manifest, "sha256": sha256, "seal": seal}


def _write(file: BinaryIO, name: str, announced_as: SealedTensor) -> str:
    tensor = announced_as.read()
    if tensor.dtype != announced_as.dtype or tuple(tensor.shape) != announced_as.shape:
        announced = f"{announced_as.dtype} {announced_as.shape}"
        raise EcoflapError(f"{name} is {tensor.dtype} {tuple(tensor.shape)} where {announced} was announced")
    data = _bytes(tensor)
    file.write(data)
    return _hash(name, tensor, data)


def flat(tensor: Tensor) -> Tensor:
    """Give a tensor's elements in row-major order, on the CPU; in the same memory where that is possible."""
    row = tensor.detach().cpu().contiguous().reshape(-1)
    # PyTorch calls a single element contiguous whatever its stride, but will not view it as another dtype.
    return row if row.stride() == (1,) else row.clone(memory_format=torch.contiguous_format)


def _bytes(tensor: Tensor) -> memoryview:
    return flat(tensor).view(torch.uint8).numpy().data


def _hash(name: str, tensor: Tensor, data: memoryview) -> str:
    digest = hashlib.sha256(json.dumps([name, NAMES[tensor.dtype], list(tensor.shape)]).encode())
    digest.update(data)
    return digest.hexdigest()


def _seal(manifest: str, sha256: str) -> str:
    return hashlib.sha256(f"{manifest}\n{sha256}".encode()).hexdigest()


@contextmanager
def with_way_out(way_out: str) -> Iterator[None]:
    """Say behind each problem of a damaged file what can be done."""
    try:
        yield
    except FormatError as error:
        raise FormatError(*(f"{problem.removesuffix('.')}. {way_out}" for problem in error.problems)) from error


@dataclass(frozen=True)
class Sealed:
    """Reads an open sealed file, whose header has been checked; each tensor is checked as it is read.

    :param manifest: The text given to :func:`write_sealed`.
    :param seal: SHA-256 of manifest and hashes: two files of one seal hold the same.
    """

    path: Path
    manifest: str
    hashes: Mapping[str, str]
    seal: str
    stream: BufferedReader
    places: Mapping[str, tuple[str, tuple[int, ...], int, int]]
    """Each tensor's dtype, its shape, and where in the file it begins and ends, by its name."""
    way_out: str = ""

    def mapping(self) -> dict[str, Any]:
        """Give the mapping that the manifest is, of a format where it is JSON."""
        try:
            content = json_value(self.manifest)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise FormatError(f"{self.path}: its manifest holds no mapping")
        return content

    def expect(self, names: Sequence[str] | Mapping[str, Any] | set[str]) -> None:
        """Refuse a file that lacks one of these tensors or has another."""
        missing, extra = sorted(set(names) - set(self.hashes)), sorted(set(self.hashes) - set(names))
        if missing or extra:
            raise FormatError(f"{self.path}: missing tensors: {missing}; tensors nobody announced: {extra}")

    def expect_as(self, announced: Mapping[str, StoredAs]) -> None:
        """Refuse a file whose tensors are not as they are announced; where each is has been held to the file's length.

        Whoever makes room by what is announced thus makes none for what the file cannot hold.
        """
        self.expect(announced)
        for name, wanted in announced.items():
            dtype, shape, _, _ = self.places[name]
            if DTYPES.get(dtype) != wanted.dtype or shape != wanted.shape:
                found = f"{DTYPES.get(dtype, dtype)} {shape}"
                raise FormatError(
                    f"{self.path}: the tensor {name!r} is {found} where {wanted.dtype} {wanted.shape} is announced"
                )

    def read_through(self) -> None:
        """Read every tensor, and refuse one that is not what was written."""
        for name in self.hashes:
            self.read(name)

    def read(self, name: str) -> Tensor:
        """Read one tensor into memory of its own; one that is not what was written is refused.

        It is read and not mapped, so that what is checked is what is returned. Reading is faster, too.
        """
        dtype, _, begin, end = self.places[name]
        raw = torch.empty(end - begin, dtype=torch.uint8, device="cpu")
        try:
            self.stream.seek(begin)
            read = self.stream.readinto(raw.numpy().data)
        except OSError as error:  # of a disk, which names no file
            raise FormatError(unread(error, self.path)) from error
        if dtype not in DTYPES or read < len(raw):
            why = f"it is cut off, or of the type {dtype}"
            raise FormatError(_ended(f"{self.path}: the tensor {name!r} cannot be read: {why}", self.way_out))
        return self._checked(name, raw)

    def mapped(self, name: str) -> Tensor:
        """Map one tensor, which the system may take out of memory again; one that is not what was written is refused.

        It is read for that, and what is done to the file afterwards may show: nothing of ours writes to a file again.
        """
        dtype, _, begin, end = self.places[name]
        if dtype not in DTYPES:
            raise FormatError(f"{self.path}: the tensor {name!r} cannot be read: it is of the type {dtype}")
        try:
            raw = copy_on_write(self.path, begin, end - begin)
        except OSError as error:
            raise FormatError(unread(error, self.path)) from error
        return self._checked(name, raw)

    def _checked(self, name: str, raw: Tensor) -> Tensor:
        """Give bytes as the tensor that they are, if they are those that were written."""
        dtype, shape, _, _ = self.places[name]
        tensor = raw.view(DTYPES[dtype]).reshape(shape)
        if _hash(name, tensor, _bytes(tensor)) != self.hashes[name]:
            why = "it is not what was written (SHA-256)"
            raise FormatError(_ended(f"{self.path}: the tensor {name!r} is damaged: {why}", self.way_out))
        return tensor


@contextmanager
def open_sealed(path: Path, form: str | None, way_out: str = "") -> Iterator[Sealed]:
    """Open a file and check its header; a truncated, changed or foreign one is refused.

    :param form: The format's name; None where a file of any format will do.
    :param way_out: What to do where it is truncated or damaged, and not of another format or version.
    """
    with _stream(path) as stream, _opened(path, way_out) as handle:
        metadata: dict[str, str] = handle.metadata() or {}
        found = metadata.get("format", "nothing")
        if found != (form or found) or not {"version", "manifest", "sha256", "seal"} <= set(metadata):
            raise FormatError(
                f"{path} is not in the format {form or 'of a sealed file'!r}: its metadata says {found!r}. "
                "An ordinary safetensors file is read with safetensors.torch.load_file."
            )
        if metadata["version"] != VERSION:
            known = f"version {VERSION!r} is known here"
            raise FormatError(f"{path} is in version {metadata['version']!r} of {form!r}; {known}. Update ecoflap.")
        if metadata["seal"] != _seal(metadata["manifest"], metadata["sha256"]):
            problem = f"{path}: its header is damaged: it is not what was written (SHA-256)"
            raise FormatError(_ended(problem, way_out))
        hashes = _hashes(path, metadata["sha256"])
        sealed = Sealed(path, metadata["manifest"], hashes, metadata["seal"], stream, places_in(stream), way_out)
        sealed.expect(sealed.places)
        yield sealed


def check_sealed(path: Path, form: str) -> None:
    """Refuse a file of a format that is not what was written, in its header or any tensor."""
    with open_sealed(path, form) as file:
        file.read_through()


def _stream(path: Path) -> BufferedReader:
    try:
        return open_file(path)
    except FileNotFoundError as error:
        raise FormatError(f"{path}: there is no such file") from error
    except OSError as error:
        raise FormatError(unread(error, path)) from error


def _ended(problem: str, way_out: str) -> str:
    return f"{problem}. {way_out}" if way_out else problem


def _opened(path: Path, way_out: str) -> Any:
    try:
        return safe_open(path, framework="np")  # for its header alone; for torch it maps the whole file
    except (SafetensorError, ValueError, OSError) as error:
        problem = f"{path} is truncated, damaged or not a safetensors file: {error}"
        raise FormatError(_ended(problem, way_out)) from error


def _hashes(path: Path, text: str) -> Mapping[str, str]:
    try:
        hashes = json_value(text)
    except ValueError as error:
        raise FormatError(f"{path}: its list of hashes is damaged: {error}") from error
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise FormatError(f"{path}: its list of hashes is damaged")
    return hashes
