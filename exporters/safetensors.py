"""Write a folder with the packed file, where a pruned weight costs one bit, and all else that loading it takes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Exporter, PrunedModel
from ecoflap.core.contracts.records import Check, Exported, StoredTensor, ViewSize
from ecoflap.core.disk.safetensors_header import DTYPES, StoredAs, header_of, starts_of
from ecoflap.core.disk.whole_files import whole_file
from ecoflap.core.errors import EcoflapError, FormatError
from ecoflap.core.export.surroundings import is_weights, save_surroundings
from ecoflap.core.packed.bits import are_equal_but_for_signs_of_zeros, nonzeros_of
from ecoflap.core.packed.contents import Contents
from ecoflap.core.packed.read_packed import inspect_packed, stream_packed
from ecoflap.core.packed.save_packed import prunable_problems, save_packed, type_problems
from ecoflap.core.packed.shards import ENDING, INDEX
from ecoflap.core.sealing.sealed import flat
from ecoflap.exporters.shared.model_card import add_card
from ecoflap.exporters.shared.pruned_weights import require_masks

FILE = f"model{ENDING}"


@dataclass(frozen=True)
class Safetensors:
    """Writes ``model.packed.safetensors``, the model's configuration, its tokenizer or processor, and a model card.

    :func:`ecoflap.load_model` reads the folder, and :func:`ecoflap.load_packed` the weights alone.

    It takes (1-s) + 1/16 of a 16 bit weight's bytes at sparsity s; at run time the weights are dense again, so nothing
    is faster, unless ``ecoflap.load_model`` leaves them packed. Libraries that know only dense checkpoints want the
    ``hugging_face`` exporter.

    :param shard_bytes: How many bytes of tensors a file holds at most; what takes more is written in shards with an
        index.
    """

    shard_bytes: int = 5_000_000_000

    densifies: ClassVar[tuple[str, ...]] = (ENDING, f"{ENDING}{INDEX}")

    def __post_init__(self) -> None:
        if self.shard_bytes < 1:
            raise EcoflapError(f"shard_bytes is how much a file holds, 1 or more; {self.shard_bytes} is not")

    def predicted_bytes(self, view: ViewSize) -> int:
        """Count kept weights as they are, and a bit for each prunable one."""
        return (view.parameters - view.prunable + view.kept) * view.width + view.prunable // 8

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say which of the model's tensors are of a type that the packed file does not store."""
        yield from type_problems(context.model.state_dict())
        yield from prunable_problems({layer.name: layer.weight for _, layer in context.anatomy.layers()})

    def __call__(self, pruned: PrunedModel, folder: Path) -> Exported:
        """Write the files, and read them again.

        :raises EcoflapError: Where nothing is pruned, or a pruned weight is not zero.
        """
        require_masks(pruned)
        state = pruned.model.state_dict()
        save_surroundings(pruned, folder)
        written = save_packed(folder / FILE, state, pruned.parameter_masks, shard_bytes=self.shard_bytes)
        contents = _check(folder / FILE, state)
        notes = add_card(pruned, folder, "packed", is_smaller=contents.bytes_packed < contents.bytes_dense)
        files = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
        stored = sum(path.stat().st_size for path in files if is_weights(path.name))
        check = Check(written[-1].name, "model", "safetensors", 0.0, 0.0)
        dense = stored - contents.bytes_packed + contents.bytes_dense
        return Exported(files, tuple(_tensors(contents, state)), (check,), dense, notes)

    @staticmethod
    def densify(file: Path, target: Path) -> Path:
        """Write an ordinary safetensors file of the same weights, tied ones once; one is in memory at a time."""
        with whole_file(target) as temporary:
            _write_dense(temporary, inspect_packed(file), stream_packed(file))
        return target


def _tensors(contents: Contents, state: Mapping[str, Tensor]) -> Iterable[StoredTensor]:
    for name, entry in contents.tensors.items():
        if entry.kept is not None and entry.same_as is None:
            form, nonzeros = "bitmask" if entry.packed else "dense", nonzeros_of(state[name])
            yield StoredTensor(name, form, entry.shape, nonzeros, entry.bytes_dense, entry.bytes_packed)


def _write_dense(path: Path, contents: Contents, tensors: Iterable[tuple[str, Tensor]]) -> None:
    entries = {name: entry for name, entry in contents.tensors.items() if entry.same_as is None}
    dense = {name: StoredAs(DTYPES[entry.dtype], entry.shape) for name, entry in entries.items()}
    header, starts = header_of(dense, {"format": "pt"}), starts_of(dense)
    with path.open("wb") as stream:
        stream.write(header)
        for name, tensor in tensors:
            stream.seek(len(header) + starts[name])
            stream.write(flat(tensor).view(torch.uint8).numpy().data)


def _check(path: Path, state: Mapping[str, Tensor]) -> Contents:
    """Read the file again and compare it with the model, bit by bit but for the sign of zeros in a pruned weight."""
    contents = inspect_packed(path)
    for name, tensor in stream_packed(path):
        is_pruned = contents.tensors[name].kept is not None
        if not (are_equal_but_for_signs_of_zeros if is_pruned else _are_equal)(tensor, state[name]):
            raise FormatError(f"{path}: {name} reads back other than it was written")
    return contents


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(flat(one).view(torch.uint8), flat(other).view(torch.uint8))


@hookimpl
def ecoflap_register_exporters() -> Mapping[str, Callable[..., Exporter]]:
    return {"safetensors": Safetensors}
