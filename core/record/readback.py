"""Read back what was written: the plan has to hold for the files, not only in memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ecoflap.core.errors import EcoflapError, FormatError
from ecoflap.core.model.parameter_masks import ParameterMasks, parameter_and_part
from ecoflap.core.packed.bits import nonzeros_pruned
from ecoflap.core.pruning.masks import PackedMasks, bits_in, popcount, read_masks
from ecoflap.core.pruning.plan import Plan

_PICKLED = (".pt", ".pth", ".bin")
"""Endings of files that ``torch.save`` writes."""

_SAVED = (
    "An adapter's save leaves each weight under the name that it has in state_dict(), in a file *.safetensors, or by "
    f"torch.save(model.state_dict(), …) in one of {', '.join(f'*{ending}' for ending in _PICKLED)}; or else a folder "
    "that the adapter's own load reads."
)


def masks_as_planned(path: Path, plan: Plan) -> PackedMasks:
    """Read the masks of a file, and refuse any that does not keep exactly what the plan says."""
    masks = read_masks(path)
    for name in dict.fromkeys([*plan.layers, *masks]):
        kept = popcount(masks.bits[name]) if name in masks else None
        planned = plan.layers[name].keep if name in plan.layers else None
        if kept != planned:
            raise FormatError(f"{path}: keeps {kept} weights of {name} where the plan keeps {planned}")
    return masks


def copy_saved(folder: Path, model: nn.Module, layers: Iterable[str], reload: Callable[[], nn.Module]) -> None:
    """Copy the parameters of these layers from a folder into a model of its kind in memory.

    :param reload: Loads the folder's model; used for weights that none of its files has under their name.
    """
    names = {parameter_and_part(layer)[0] for layer in layers}
    state = {name: tensor for name, tensor in model.state_dict().items() if name in names}
    for name, saved in _read_back(folder, state, reload):
        state[name].copy_(saved)


def check_saved(folder: Path, model: nn.Module, layers: Mapping[str, Tensor], reload: Callable[[], nn.Module]) -> None:
    """Check that every pruned parameter is in the folder bit by bit, with zeros wherever its mask prunes.

    :param layers: The masks, by layer.
    :param reload: Loads the folder's model; used for parameters that none of its files has under their name.
    """
    masks, state = ParameterMasks(model, layers), model.state_dict()
    for name, saved in _read_back(folder, masks, reload):
        _check_equal(folder, name, saved, state[name])
        if nonzeros_pruned(saved, bits_in(masks, name).numpy()):
            raise FormatError(f"{folder}: {name} holds a weight that its mask prunes")


def check_written(folder: Path, model: nn.Module, layers: Iterable[str], reload: Callable[[], nn.Module]) -> None:
    """Check that the parameters of these layers are in the folder bit by bit, whatever is pruned of them.

    :param reload: Loads the folder's model; used for parameters that none of its files has under their name.
    """
    state = model.state_dict()
    for name, saved in _read_back(folder, {parameter_and_part(layer)[0] for layer in layers}, reload):
        _check_equal(folder, name, saved, state[name])


def _read_back(folder: Path, names: Iterable[str], reload: Callable[[], nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of these names as the folder has them, from its files or from the model that is loaded of it.

    :raises FormatError: Where they are found in neither way.
    """
    left = set(names)
    for name, saved in stored(folder, left):
        left.discard(name)
        yield name, saved
    if not left:
        return
    try:
        again = reload().state_dict()
    except EcoflapError as error:
        why = f"as a model it is not read: {' '.join(error.problems)}"
        raise FormatError(f"{folder}: no file there has {min(left)} under that name, and {why} {_SAVED}") from error
    if lost := sorted(left - again.keys()):
        raise FormatError(f"{folder}: {lost[0]} is not among what was saved. {_SAVED}")
    yield from ((name, again[name]) for name in sorted(left))


def stored(folder: Path, names: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of these names, as far as the folder's files have them under their names."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in sorted(names.intersection(file.keys())):
                yield name, file.get_tensor(name)
    for path in sorted(path for ending in _PICKLED for path in folder.glob(f"*{ending}")):
        weights = _pickled(path)
        for name in sorted(names.intersection(weights)):
            yield name, weights[name]


def _pickled(path: Path) -> Mapping[str, Tensor]:
    """Read what ``torch.save`` has written of tensors by their names; nothing where it is something else."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError):  # another kind of file has such an ending too
        return {}
    found = checkpoint.get("model", checkpoint) if isinstance(checkpoint, Mapping) else {}  # as LAVIS keeps it
    return {name: one for name, one in found.items() if isinstance(one, Tensor)} if isinstance(found, Mapping) else {}


def _check_equal(folder: Path, name: str, saved: Tensor, weight: Tensor) -> None:
    if saved.dtype != weight.dtype or not torch.equal(saved.cpu(), weight.cpu()):
        raise FormatError(f"{folder}: {name} reads back other than it was written")
