"""Read back what was written: the plan has to hold for the files, not only in memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ecoflap.core.errors import FormatError
from ecoflap.core.model.parameter_masks import ParameterMasks, parameter_and_part
from ecoflap.core.pruning.masks import PackedMasks, popcount, read_masks
from ecoflap.core.pruning.plan import Plan


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
    left = set(state)
    for name, saved in stored(folder, set(left)):
        state[name].copy_(saved)
        left.discard(name)
    if left:
        again = reload().state_dict()
        for name in left:
            state[name].copy_(again[name])


def check_saved(folder: Path, model: nn.Module, layers: Mapping[str, Tensor], reload: Callable[[], nn.Module]) -> None:
    """Check that every pruned parameter is in the folder bit by bit, with zeros wherever its mask prunes.

    :param layers: The masks, by layer.
    :param reload: Loads the folder's model; used for parameters that none of its files has under their name.
    """
    masks = ParameterMasks(model, layers)
    state = model.state_dict()
    left = set(masks)
    for name, saved in stored(folder, left):
        _check(folder, name, saved, state[name], masks[name])
        left.discard(name)
    if left:
        again = reload().state_dict()
        for name in sorted(left):
            _check(folder, name, again[name], state[name], masks[name])


def stored(folder: Path, names: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of these names, as far as the folder's files have them under their names."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in sorted(names.intersection(file.keys())):
                yield name, file.get_tensor(name)
    for path in sorted(folder.glob("*.pth")):  # as LAVIS keeps its checkpoints
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weights = checkpoint.get("model", checkpoint)
        for name in sorted(names.intersection(weights)):
            yield name, weights[name]


def _check(folder: Path, name: str, saved: Tensor, weight: Tensor, mask: Tensor) -> None:
    if saved.dtype != weight.dtype or not torch.equal(saved.cpu(), weight.cpu()):
        raise FormatError(f"{folder}: {name} reads back other than it was written")
    if bool((saved.cpu().ne(0) > mask).any()):
        raise FormatError(f"{folder}: {name} holds a weight that its mask prunes")
