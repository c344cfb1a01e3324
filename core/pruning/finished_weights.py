"""Keep the finished blocks of a model that is larger than memory in the files that the saved model will consist of.

Nothing of a finished block stays in memory but what is being looked at: its weights are mapped from its file. When all
blocks are finished, the saved model gets links to their files, so that no weight is written twice.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ecoflap.core.disk.reading import open_file
from ecoflap.core.disk.whole_files import link_or_copy
from ecoflap.core.errors import FormatError
from ecoflap.core.model.anatomy import Block, Layer
from ecoflap.core.model.mapped_weights import MappedFile, MappedWeights, Place, copied, mapped
from ecoflap.core.sealing.sealed import hash_of, sealed, write_safetensors

_INDEX = "model.safetensors.index.json"
"""The file in which transformers looks up which weight is in which file."""

FOLDERS = _STORED, _MADE = "shards", "made"
"""Names of folders: of files that become the model's, and of weights that the library makes of several."""


@dataclass(frozen=True)
class FinishedWeights:
    """Writes finished blocks of a model away, and puts the saved model together of them.

    :param weights: Where the model's weights are.
    :param folder: Where the files of finished blocks are until the model is complete.
    """

    model: nn.Module
    weights: MappedWeights
    folder: Path

    def take_into_memory(self, layers: Sequence[Layer]) -> None:
        """Hold copies of some layers' weights, to be written to.

        What they were mapped from stays as its file has it, for a trial that puts it back and for refiners that look at
        the dense weights later: pages of a mapping that were written to are in memory as long as anybody holds it.
        """
        for parameter in {id(layer.parameter): layer.parameter for layer in layers}.values():
            parameter.data = copied(parameter.data)

    @contextmanager
    def putting_back(self) -> Iterator[None]:
        """Let blocks be put away for a while; afterwards weights are held where they were, and the files may go."""
        before = [(parameter, parameter.data) for parameter in self.model.parameters()]
        places = dict(self.weights.places)
        try:
            yield
        finally:
            for parameter, data in before:
                parameter.data = data
            self.weights.places.update(places)
            self.weights.forget(self.folder)

    def put_away(self, number: int, block: Block) -> dict[str, dict[str, str]]:
        """Write a block's weights into files, and hold them from then on where these have them.

        :return: The SHA-256 of each, by the folder of its file and its name in it.
        """
        self.weights.refuse_changed()
        hashes = {}
        for kind, inside in self._inside(block).items():
            tensors = {self._name_on_disk(name) or name: sealed(one.data) for name, one in inside.items()}
            hashes[kind] = write_safetensors(file_in(self.folder, kind, number), tensors)
        self.hold(number, block)
        return hashes

    def hold(self, number: int, block: Block) -> None:
        """Hold a block's weights where they were put away.

        :raises FormatError: Where no such file is here, as on a machine that sees another disk.
        """
        for kind, inside in self._inside(block).items():
            file = file_in(self.folder, kind, number)
            if not file.is_file():
                raise FormatError(f"{file} is not here: all processes of a run have to see the disk of its folder")
            for name, weight in inside.items():
                weight.data = self._moved(name, file)

    def take_up(self, number: int, block: Block, hashes: Mapping[str, Mapping[str, str]]) -> None:
        """Hold a block's weights where an earlier process has put them, every byte of them checked.

        :param hashes: What :meth:`put_away` gave.
        :raises FormatError: Where a file is missing, or is not what was written.
        """
        inside = self._inside(block)
        wanted = {kind: {self._name_on_disk(name) or name for name in own} for kind, own in inside.items()}
        if wanted != {kind: set(own) for kind, own in hashes.items()}:
            raise FormatError(f"{self.folder}: block {number} was finished with other weights than {block.name} has")
        check_put_away(self.folder, number, hashes)
        self.hold(number, block)

    def read_ahead(self, block: Block) -> None:
        """Ask the system for a block that comes next, while this one is computed."""
        self.weights.read_ahead([name for own in self._inside(block).values() for name in own])

    def save(self, folder: Path, write: Callable[[Mapping[str, Tensor], Path], None]) -> None:
        """Put the weights of the whole model together in a folder, with the index that says which is where.

        :param write: Writes weights that the library has made of others into a folder, as the model's files have them.
        """
        self.weights.refuse_changed()
        parts = folder / "parts"
        parts.mkdir()
        files = {place.file for place in self.weights.places.values() if place.file.is_relative_to(self.folder)}
        finished = sorted(file for file in files if file.parent.name == _STORED)
        for file in finished:
            link_or_copy(file, parts / file.name)
        left = {name: one for name, one in self._weights.items() if self.weights.places[name].file not in finished}
        others = {stored: sealed(one.data) for name, one in left.items() if (stored := self._name_on_disk(name))}
        if others:
            write_safetensors(parts / "others.safetensors", others)
        _write_made({name: one.data for name, one in left.items() if self._name_on_disk(name) is None}, parts, write)
        self.weights.refuse_changed()  # in the midst of the copying
        _number(folder, sorted(parts.rglob("*.safetensors")))
        shutil.rmtree(parts)

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        """Give every weight whose place is known, tied ones once; a parameter stays the same when its data move."""
        state = self.model.state_dict(keep_vars=True)
        return {name: state[name] for name in self.weights.places}

    def _name_on_disk(self, name: str) -> str | None:
        return self.weights.places[name].name_on_disk

    def _inside(self, block: Block) -> dict[str, dict[str, Tensor]]:
        """Give a block's weights by their names, apart by the folder that they belong in."""
        own = {id(parameter) for parameter in block.module.parameters()}
        inside: dict[str, dict[str, Tensor]] = {_STORED: {}, _MADE: {}}
        for name, weight in self._weights.items():
            if id(weight) in own:
                inside[_MADE if self._name_on_disk(name) is None else _STORED][name] = weight
        return {kind: weights for kind, weights in inside.items() if weights}

    def _moved(self, name: str, file: Path) -> Tensor:
        stored = self._name_on_disk(name)
        return self.weights.moved(name, Place(file, stored or name, stored))


def file_in(folder: Path, kind: str, number: int) -> Path:
    """Name a file with weights of a finished block."""
    return folder / kind / f"{number:03d}.safetensors"


def check_put_away(folder: Path, number: int, hashes: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse files of a finished block that are not what was written.

    :param folder: The blocks' folder of a run.
    :param hashes: What :meth:`FinishedWeights.put_away` gave.
    :raises FormatError: With what differs first.
    """
    for kind, names in hashes.items():
        file = file_in(folder, kind, number)
        for name, sha256 in names.items():
            if hash_of(name, _weight_in(file, name)) != sha256:
                raise FormatError(f"{file}: the weight {name} is not what was written (SHA-256)")


def _weight_in(file: Path, name: str) -> Tensor:
    try:
        open_file(file).close()  # what is no file could be waited on for ever
        return mapped(Place(file, name, name))
    except (OSError, SafetensorError) as error:
        raise FormatError(f"{file} is missing or damaged: {error}") from error


def _write_made(
    weights: Mapping[str, Tensor], parts: Path, write: Callable[[Mapping[str, Tensor], Path], None]
) -> None:
    """Write weights that the library has made of others, each into a folder of its own, to hold no more in memory.

    What comes out under one name it has cut out of one weight, as query, key and value: those are written at once.
    """
    groups: list[tuple[set[str], set[str]]] = []
    for name, weight in weights.items():
        stored, names = _written({name: weight}, parts / name, write), {name}
        for group in [one for one in groups if one[0] & stored]:
            groups.remove(group)
            stored, names = stored | group[0], names | group[1]
        groups.append((stored, names))
    for _, names in groups:
        if len(names) > 1:
            for name in names:
                shutil.rmtree(parts / name)
            _written({name: weights[name] for name in weights if name in names}, parts / min(names), write)


def _written(
    weights: Mapping[str, Tensor], folder: Path, write: Callable[[Mapping[str, Tensor], Path], None]
) -> set[str]:
    """Write weights into a new folder, and give the names that they have in its files."""
    folder.mkdir()
    write(weights, folder)
    return {name for file in folder.glob("*.safetensors") for name in MappedFile(file).places}


def _number(folder: Path, files: Sequence[Path]) -> None:
    """Give files the names by which transformers finds them, and write its index where they are several."""
    if len(files) == 1:
        files[0].rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    size = 0
    for number, file in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        with safe_open(file, framework="np") as opened:  # for torch it maps the whole file
            weight_map |= dict.fromkeys(opened.keys(), name)
        size += file.stat().st_size
        file.rename(folder / name)
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
