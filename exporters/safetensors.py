"""A folder with the packed file, where a pruned weight costs one bit, and all else that loading the model takes."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Adapter, Exporter
from ecoflap.core.contracts.records import Check, Exported, StoredTensor
from ecoflap.core.disk.sealed import flat
from ecoflap.core.disk.whole_files import whole_file
from ecoflap.core.errors import EcoflapError, FormatError
from ecoflap.core.export.manifest import is_weights
from ecoflap.core.export.sidecar_files import save_surroundings
from ecoflap.core.packed.format import Manifest, inspect_packed, save_packed, stream_packed
from ecoflap.core.packed.shards import ENDING
from ecoflap.core.pruning.masks import masks_of
from ecoflap.exporters.shared.model_card import write_card

FILE = f"model{ENDING}"


@dataclass(frozen=True)
class Safetensors:
    """``model.packed.safetensors`` with the model's configuration, its tokenizer or processor, and a model card.

    :func:`ecoflap.load_model` reads the folder, and :func:`ecoflap.load_packed` the weights alone.

    It takes (1-s) + 1/16 of a 16 bit weight's bytes at sparsity s; at run time the weights are dense again, so nothing
    is faster. Libraries that know only dense checkpoints want the ``hugging_face`` exporter.

    :param shard_bytes: How many bytes of tensors a file holds at most; what takes more is written in shards with an
        index.
    """

    shard_bytes: int = 5_000_000_000

    densifies: ClassVar[tuple[str, ...]] = (ENDING, f"{ENDING}.index.json")
    """Endings of what :meth:`densify` reads; the second names a set of shards."""

    def __post_init__(self) -> None:
        if self.shard_bytes < 1:
            raise EcoflapError(f"shard_bytes is how much a file holds, 1 or more; {self.shard_bytes} is not")

    def predicted_bytes(self, parameters: int, prunable: int, kept: int, width: int) -> int:
        """Kept weights as they are, and a bit for each prunable one.

        :param width: Bytes of one weight.
        """
        return (parameters - prunable + kept) * width + prunable // 8

    def __call__(self, model: nn.Module, adapter: Adapter, folder: Path) -> Exported:
        masks = masks_of(model)
        state = model.state_dict()
        save_surroundings(model, adapter, folder)
        written = save_packed(folder / FILE, state, masks, shard_bytes=self.shard_bytes)
        manifest = _check(folder / FILE, state)
        write_card(model, adapter, folder, "packed")
        files = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
        stored = sum(path.stat().st_size for path in files if is_weights(path.name))
        check = Check(written[-1].name, "model", "safetensors", 0.0, 0.0)
        dense = stored - manifest.bytes_packed + manifest.bytes_dense
        return Exported(files, tuple(_tensors(manifest, state)), (check,), dense)

    @staticmethod
    def densify(file: Path, target: Path) -> Path:
        """Write an ordinary safetensors file of the same weights, one in memory at a time; tied ones once."""
        with whole_file(target) as temporary:
            _write_dense(temporary, inspect_packed(file), stream_packed(file))
        return target


def _tensors(manifest: Manifest, state: Mapping[str, Tensor]) -> Iterable[StoredTensor]:
    for name, entry in manifest.tensors.items():
        if entry.kept is not None and entry.same_as is None:
            form, nonzeros = "bitmask" if entry.packed else "dense", int(state[name].count_nonzero())
            yield StoredTensor(name, form, entry.shape, nonzeros, entry.bytes_dense, entry.bytes_packed)


def _write_dense(path: Path, manifest: Manifest, tensors: Iterable[tuple[str, Tensor]]) -> None:
    entries = {name: entry for name, entry in manifest.tensors.items() if entry.same_as is None}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # The widest come first, so that all are aligned.
    for name in sorted(entries, key=lambda name: (-entries[name].itemsize, name)):
        start, end = end, end + entries[name].bytes_dense
        header[name] = {
            "dtype": entries[name].dtype, "shape": list(entries[name].shape), "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            stream.seek(8 + len(text) + header[name]["data_offsets"][0])
            stream.write(flat(tensor).view(torch.uint8).numpy().data)


def _check(path: Path, state: Mapping[str, Tensor]) -> Manifest:
    """Read the file again and compare it with the model, bit by bit but for the sign of zeros in a pruned weight."""
    manifest = inspect_packed(path)
    for name, tensor in stream_packed(path):
        expected = state[name].detach().cpu()
        if manifest.tensors[name].kept is not None:
            tensor, expected = tensor.masked_fill(tensor == 0, 0), expected.masked_fill(expected == 0, 0)
        if not torch.equal(flat(tensor).view(torch.uint8), flat(expected).view(torch.uint8)):
            raise FormatError(f"{path}: {name} reads back other than it was written")
    return manifest


@hookimpl
def ecoflap_register_exporters() -> Mapping[str, Callable[..., Exporter]]:
    return {"safetensors": Safetensors}
