"""The family's own checkpoint, dense with zeros: its own library loads it, and knows nothing of pruning."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Adapter, Exporter
from ecoflap.core.contracts.records import Check, Exported, StoredTensor
from ecoflap.core.disk.sealed import flat
from ecoflap.core.errors import EcoflapError, FormatError, ModelError
from ecoflap.core.export.manifest import is_weights
from ecoflap.core.model.source import open_source
from ecoflap.core.pruning.masks import masks_of
from ecoflap.core.record.readback import stored
from ecoflap.exporters.shared.model_card import library_of, write_card


@dataclass(frozen=True)
class HuggingFace:
    """What the adapter saves, and a model card; in shards where the family's library has them.

    It is as large as the dense model; the ``safetensors`` exporter's is smaller. It is read again by that library, and
    compared bit by bit.
    """

    def __call__(self, model: nn.Module, adapter: Adapter, folder: Path) -> Exported:
        adapter.save(model, folder)
        check, notes = _checked(model, adapter, folder)
        write_card(model, adapter, folder, "dense")
        files = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
        size = sum(path.stat().st_size for path in files if is_weights(path.name))
        return Exported(files, tuple(_tensors(model)), (check,), size, notes)


def _tensors(model: nn.Module) -> list[StoredTensor]:
    """Every pruned weight, none of which is any smaller."""
    try:
        masks = masks_of(model)
    except EcoflapError:  # a model without: there is nothing to tell of
        return []
    state = model.state_dict()
    return [
        StoredTensor(
            name, "dense", tuple(state[name].shape), int(state[name].count_nonzero()), *(2 * (state[name].nbytes,))
        )
        for name in masks
    ]


def _checked(model: nn.Module, adapter: Adapter, folder: Path) -> tuple[Check, tuple[str, ...]]:
    """Loaded by the family's library; a folder that needs a model at hand to be loaded is compared by its files."""
    state, given = model.state_dict(), adapter.processor
    notes: tuple[str, ...] = ()
    try:
        again = adapter.load(open_source(str(folder.absolute()), Path.cwd()), None, "cpu")
        _compare(folder, state, again.state_dict())
        runtime = library_of(model)
    except ModelError as error:
        _compare(folder, state, dict(stored(folder, set(state))))
        runtime, notes = "torch", (f"its files were compared, and not loaded as a model: {error}",)
    finally:
        adapter.processor = given
    weights = [path.name for path in sorted(folder.iterdir()) if is_weights(path.name)]
    return Check(weights[0] if weights else "", "model", runtime, 0.0, 0.0), notes


def _compare(folder: Path, state: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """A name that was left out has to be tied to one that was not."""
    there = {tensor.data_ptr() for name, tensor in state.items() if name in found}
    for name, tensor in state.items():
        if name not in found and tensor.data_ptr() not in there:
            raise FormatError(f"{folder}: {name} is not in it")
        if name in found and not _same(found[name], tensor):
            raise FormatError(f"{folder}: {name} reads back other than it was written")


def _same(found: Tensor, tensor: Tensor) -> bool:
    return found.dtype == tensor.dtype and torch.equal(flat(found).view(torch.uint8), flat(tensor).view(torch.uint8))


@hookimpl
def ecoflap_register_exporters() -> Mapping[str, Callable[..., Exporter]]:
    return {"hugging_face": HuggingFace}
