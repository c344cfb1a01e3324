"""Read back what was written: the plan has to hold for the files, not only in memory."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from ecoflap.core.checking.saved import check_equal, read_back
from ecoflap.core.errors import FormatError
from ecoflap.core.model.parameter_masks import ParameterMasks, parameter_and_part
from ecoflap.core.packed.bits import nonzeros_pruned
from ecoflap.core.planning.plan import Plan
from ecoflap.core.pruning.masks import PackedMasks, bits_in, popcount, read_masks


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
    for name, saved in read_back(folder, state, reload):
        state[name].copy_(saved)


def check_saved(folder: Path, model: nn.Module, layers: Mapping[str, Tensor], reload: Callable[[], nn.Module]) -> None:
    """Check that every pruned parameter is in the folder bit by bit, with zeros wherever its mask prunes.

    :param layers: The masks, by layer.
    :param reload: Loads the folder's model; used for parameters that none of its files has under their name.
    """
    masks, state = ParameterMasks(model, layers), model.state_dict()
    for name, saved in read_back(folder, masks, reload):
        check_equal(folder, name, saved, state[name])
        if nonzeros_pruned(saved, bits_in(masks, name).numpy()):
            raise FormatError(f"{folder}: {name} holds a weight that its mask prunes")
