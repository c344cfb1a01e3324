"""Hold weights where a model's files have them: mapped, read as they are looked at, and free to leave memory again."""

import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Shaped
from safetensors import safe_open
from torch import Tensor

from ecoflap.core.disk.copy_on_write import copy_on_write
from ecoflap.core.disk.safetensors_header import DTYPES, places_in
from ecoflap.core.errors import FormatError, RunError
from ecoflap.core.model.hashed_files import HashedFiles, Stamp, stamp_of
from ecoflap.core.sealing.sealed import SealedTensor, write_safetensors


@dataclass(frozen=True)
class Place:
    """Says where the bytes of a weight are.

    :param file: A safetensors file.
    :param name: The name that the weight has there.
    :param name_on_disk: The name that it has in the files of the model; None where the model's library makes it of
        several weights, such as all experts of one.
    """

    file: Path
    name: str
    name_on_disk: str | None


class MappedWeights:
    """Knows where the weights of a model are that is larger than memory.

    The system reads a page of a mapped weight when it is looked at, and takes it out of memory where that is short. A
    weight that is written in place is copied, page by page, and its file stays as it is. Each weight has a mapping of
    its own: the copies are gone as soon as another one takes its place.

    :param scratch: A folder on a disk with room for what cannot be mapped as the model's files have it: weights of
        another type than is wanted, and those that the library makes of several.
    :param hashed: The model's files as they were hashed; None where nobody has hashed them.
    """

    def __init__(self, scratch: Path, hashed: HashedFiles | None = None) -> None:
        self.scratch, self._hashed = scratch, HashedFiles(()) if hashed is None else hashed
        self.places: dict[str, Place] = {}
        self._stamps: dict[Path, Stamp] = {}
        self._files: dict[Path, MappedFile] = {}

    def map(self, weight: str, place: Place, dtype: torch.dtype) -> Shaped[Tensor, "..."]:
        """Map a weight, and know its place from then on.

        :param weight: Its name in the model's state dict.
        :param dtype: What it is to be. One that is stored otherwise is written into the scratch folder as that first.
        """
        tensor = self._opened(place.file).tensor(place.name)
        if tensor.dtype != dtype:
            place = replace(place, file=self.scratch / f"{weight}.{dtype}".replace("/", "-"), name=weight)
            wide = SealedTensor(dtype, tuple(tensor.shape), lambda: tensor.to(dtype))
            write_safetensors(place.file, {weight: wide})
            tensor = mapped(place)
        self._know(weight, place)
        return tensor

    def moved(self, weight: str, place: Place) -> Shaped[Tensor, "..."]:
        """Map a weight from another place, where it was written as it is now."""
        self._know(weight, place)
        return mapped(place)

    def keep_in_memory(self, buffer: str, place: Place) -> None:
        """Know where a buffer lies that the model holds in memory, so that it is saved under its name there."""
        self._know(buffer, place)

    def tied(self, weight: str) -> None:
        """Know no more of a weight in whose place another is mapped that is equal to it."""
        self.places.pop(weight, None)

    def refuse_changed(self) -> None:
        """Refuse to go on where a file that weights are mapped from was written, exchanged or deleted since."""
        changed = [file for file in self._stamps if not self._is_scratch(file) and self._is_changed(file)]
        if changed:
            names = ", ".join(map(str, changed))
            raise RunError(
                f"{names} changed while the model was read from there, as model.offload: disk does until the run is "
                f"done. What is finished is kept. Put back what was there and run again, or begin anew with --fresh"
            )

    def forget(self, folder: Path) -> None:
        """Ask no more whether files of a folder have changed, because they are about to be deleted."""
        self._stamps = {file: stamp for file, stamp in self._stamps.items() if not file.is_relative_to(folder)}
        self._files = {file: opened for file, opened in self._files.items() if not file.is_relative_to(folder)}

    def read_ahead(self, weights: Iterable[str]) -> None:
        """Ask the system to read weights that are looked at next, while something else is computed."""
        if not hasattr(os, "posix_fadvise"):
            return
        for place in [self.places[name] for name in weights if name in self.places]:
            if place.file.is_file():  # of the scratch folder nothing is left but what is mapped
                *_, begin, end = self._opened(place.file).places[place.name]
                with place.file.open("rb") as file:
                    os.posix_fadvise(file.fileno(), begin, end - begin, os.POSIX_FADV_WILLNEED)

    def _know(self, weight: str, place: Place) -> None:
        self.places[weight] = place
        self._stamps.setdefault(place.file, stamp_of(place.file))

    def _opened(self, file: Path) -> "MappedFile":
        """Give a file whose header is read once: some models have thousands of weights in one."""
        if file not in self._files:
            self._files[file] = MappedFile(file)
        return self._files[file]

    def _is_changed(self, file: Path) -> bool:
        if file in self._hashed:
            return self._hashed.is_changed(file)
        return stamp_of(file).contents != self._stamps[file].contents

    def _is_scratch(self, file: Path) -> bool:
        return file.is_relative_to(self.scratch)


@contextmanager
def mapped_beside(folder: Path, hashed: HashedFiles | None = None) -> Iterator[MappedWeights]:
    """Give what maps the weights of a model that is loaded meanwhile; those of no file of its own lie in this folder.

    Afterwards they need no name there any more, and are gone from the disk with their mapping. A network disk may keep
    files, and so their folder, for as long as they are mapped.

    :param hashed: As of :class:`MappedWeights`.
    """
    folder.mkdir(parents=True, exist_ok=True)  # another machine may not have it
    # By this name a later process deletes what a killed one, or such a disk, has left.
    named = TemporaryDirectory(prefix=".weights-", suffix=".partial", dir=folder, ignore_cleanup_errors=True)
    with named as scratch:
        yield MappedWeights(Path(scratch), hashed)


class MappedFile:
    """Maps the tensors of a safetensors file one by one; the library itself maps the whole of it for torch.

    :ivar places: Of each tensor its type and shape, and where in the file it begins and ends.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        with safe_open(file, framework="np"):  # which refuses what is truncated or damaged
            pass
        with file.open("rb") as stream:
            self.places = places_in(stream)

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """Map a tensor.

        :raises FormatError: Where the file has no such tensor, or it is of a type that is not known here.
        """
        if name not in self.places:
            raise FormatError(f"{self._file} has no tensor {name}. Fetch or write the model anew")
        kind, shape, begin, end = self.places[name]
        if kind not in DTYPES:
            raise FormatError(
                f"{self._file}: the weight {name} is of the type {kind}, which model.offload: disk does not know. "
                f"Leave that key out, or convert the weight"
            )
        return copy_on_write(self._file, begin, end - begin).view(DTYPES[kind]).view(shape)


def mapped(place: Place) -> Shaped[Tensor, "..."]:
    """Map a weight."""
    return MappedFile(place.file).tensor(place.name)


def copied(weight: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Copy a weight into memory that is mapped for it alone, and goes back to the system with it.

    An allocator would keep what is freed, and put small things there that stay, such as masks, so that the weights of
    the next block do not fit there any more.

    :param weight: Of one number or more.
    """
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, weight.nbytes, **private)
    return torch.frombuffer(memory, dtype=weight.dtype).view(weight.shape).copy_(weight)
