"""Write the family's own checkpoint, dense with zeros: its own library loads it, and knows nothing of pruning."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ecoflap.core.checking.saved import stored
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.kept_processor import processor_kept
from ecoflap.core.contracts.protocols import Exporter, PrunedModel
from ecoflap.core.contracts.records import Check, Exported, Meanwhile, StoredTensor, ViewSize
from ecoflap.core.errors import FormatError, ModelError
from ecoflap.core.export.surroundings import is_weights
from ecoflap.core.model.mapped_weights import mapped_beside
from ecoflap.core.model.source import open_source
from ecoflap.core.sealing.sealed import flat
from ecoflap.exporters.shared.loading_code import library_of
from ecoflap.exporters.shared.model_card import add_card
from ecoflap.exporters.shared.pruned_weights import names_once, require_zeros


@dataclass(frozen=True)
class HuggingFace:
    """Writes what the adapter saves, and a model card; in shards where the family's library has them.

    It is as large as the dense model; the ``safetensors`` exporter's is smaller. It is read again by that library, and
    compared bit by bit.
    """

    def meanwhile(self, view: ViewSize) -> Meanwhile:
        """Tell what it takes to read back what was written: the model once more, in memory where the pruned one is.

        In files that would be nothing, but experts of one parameter may be put together of those in the files: they are
        taken apart in memory to be written, and what is read back is put together on the disk.
        """
        if not view.offloaded:
            return Meanwhile(view.parameters * view.width)
        experts = sum(layer.size for layer in view.layers if isinstance(layer.part, int)) * view.width
        return Meanwhile(experts, experts)

    def __call__(self, pruned: PrunedModel, folder: Path) -> Exported:
        """Write the files; a model without masks is written too.

        :raises ModelError: Where a weight is not zero that a mask prunes: the card would say otherwise.
        """
        if pruned.masks:
            require_zeros(pruned, "hugging_face")
        pruned.adapter.save(pruned.model, folder)
        check, notes = _checked(pruned, folder)
        notes += add_card(pruned, folder, "dense")
        files = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
        size = sum(path.stat().st_size for path in files if is_weights(path.name))
        return Exported(files, tuple(_tensors(pruned)), (check,), size, notes)


def _tensors(pruned: PrunedModel) -> Iterator[StoredTensor]:
    """Describe every pruned weight, none of which is any smaller."""
    for name in names_once(pruned):
        weight = pruned.model.get_parameter(name)
        shape, nonzeros = tuple(weight.shape), int(weight.count_nonzero())
        yield StoredTensor(name, "dense", shape, nonzeros, weight.nbytes, weight.nbytes)


def _checked(pruned: PrunedModel, folder: Path) -> tuple[Check, tuple[str, ...]]:
    """Load the folder with the family's library and compare it with the model.

    A folder that cannot be loaded without a model at hand is compared by its files.
    """
    model, source = pruned.model, str(folder.absolute())
    state = model.state_dict()
    notes: tuple[str, ...] = ()
    try:
        _compare(folder, state, _read_back(pruned, source, folder).state_dict())
        runtime = library_of(model)
    except ModelError as error:
        _compare(folder, state, dict(stored(folder, set(state))))
        # once it is whole the folder is elsewhere
        reason = str(error).replace(f"{source}{os.sep}", "").replace(source, "this folder")
        runtime, notes = "torch", (f"its files were compared, and no model was made of them: {reason}",)
    weights = [path.name for path in sorted(folder.iterdir()) if is_weights(path.name)]
    return Check(weights[0] if weights else "", "model", runtime, 0.0, 0.0), notes


def _read_back(pruned: PrunedModel, name: str, folder: Path) -> nn.Module:
    """Load what was written, and leave the adapter the processor that it has.

    Where weights of the pruned model stay in files, so do those of this one.
    """
    source = open_source(name, Path.cwd())
    with processor_kept(pruned.adapter), mapped_beside(folder) if pruned.offloaded else nullcontext() as mapped:
        return pruned.adapter.load(replace(source, mapped=mapped), None, "cpu")


def _compare(folder: Path, state: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse what differs from the model; a name that was left out has to be tied to one that was not."""
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
