"""What is particular of a model in memory, which is the caller's: it may be compiled, and it is pruned in place."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ecoflap.core.errors import EcoflapError, ModelError, RunError, first_of
from ecoflap.core.model.anatomy import Anatomy, Source
from ecoflap.core.model.source import open_source
from ecoflap.core.recipe.read_recipe import MEMORY
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.record.folder import RunFolder

_MAKING = (BasePruningMethod, WeightNorm, SpectralNorm)
"""Hooks by which torch makes a weight before each forward."""
_TELLING = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers")
"""Keys of a configuration that stay what they are, as the size of a vocabulary does not, to which tokens are added."""


def uncompiled(model: nn.Module) -> nn.Module:
    """Give the model that ``torch.compile`` has wrapped, which has its weights; any other is itself."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def run_eagerly(model: nn.Module | None) -> AbstractContextManager[Any]:
    """Have a model run as it is written, for a while, where ``model.compile()`` was called on it or on parts of it.

    What is compiled gives the same, and is compiled again each time that a block is run with other hooks, or alone.
    """
    modules = () if model is None else model.modules()
    if all(getattr(module, "_compiled_call_impl", None) is None for module in modules):
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def require_given(recipe: Recipe) -> None:
    """Refuse a recipe of a model in memory where none is given.

    :raises ModelError: Which says how to give it.
    """
    if recipe.model.source == MEMORY:
        raise ModelError(
            "model: the recipe is of a model that was in memory, and none is given. Load it anew and give it from "
            "Python, by ecoflap.run(recipe, model=…, processor=…); or name its files with model:, as with "
            "--set model=./folder."
        )


def refuse_unheld(model: nn.Module) -> None:
    """Refuse a model of which a weight is not simply there, so that no zeros can be put into it.

    :raises ModelError: Which names the first such weights.
    """
    elsewhere = [name for name, weight in model.named_parameters() if weight.is_meta]
    if elsewhere:
        raise ModelError(
            f"{first_of(elsewhere)} has no numbers in memory (device meta), as where accelerate has put weights "
            f"elsewhere. Load the model on one device; or name its files with model:, and if it is larger than memory "
            f"model.offload: disk"
        )
    odd = [name for name, weight in model.named_parameters() if weight.layout != torch.strided or _overlaps(weight)]
    if odd:
        raise ModelError(
            f"{first_of(odd)} is sparse, or one number stands for many: no weight of it can be zero by itself. "
            f"Make it dense: parameter.data = parameter.data.to_dense().contiguous()"
        )


def refuse_computed(anatomy: Anatomy) -> None:
    """Refuse a model of which a matrix in a block is made of other parameters each time that it runs.

    :raises ModelError: Which names the first such modules.
    """
    blocks = [block for tower in anatomy.towers for block in tower.blocks]
    computed = [
        f"{block.name}.{name}" for block in blocks for name, one in block.module.named_modules() if _is_computed(one)
    ]
    if computed:
        raise ModelError(
            f"the weight of {first_of(computed)} is computed anew in each forward, as by torch.nn.utils.prune or "
            f"weight_norm, and zeros in what it is made of would be lost. Make it a weight again first: by "
            f"torch.nn.utils.prune.remove(module, 'weight'), parametrize.remove_parametrizations(module, 'weight'), or "
            f"remove_weight_norm(module)"
        )


def _is_computed(module: nn.Module) -> bool:
    """Say whether a module has a matrix of other parameters of its own, by any of torch's ways to that."""
    hooks = module._forward_pre_hooks.values()
    made = parametrize.is_parametrized(module) or any(isinstance(hook, _MAKING) for hook in hooks)
    return made and any(parameter.ndim > 1 for parameter in module.parameters())


def _overlaps(weight: torch.Tensor) -> bool:
    """Say whether an axis of several numbers is one number in memory."""
    return any(step == 0 and size > 1 for step, size in zip(weight.stride(), weight.shape, strict=True))


def named_otherwise(recipe: Recipe, held: Source) -> Iterator[str]:
    """Say where the model in memory is not the one whose files the recipe names, as far as configurations tell.

    A source that is not there may be called what the user likes.
    """
    path = Path(recipe.model.source)
    if not path.is_absolute() or not path.is_dir():
        return
    try:
        named = open_source(str(path), path).config
    except EcoflapError:
        return
    both = [key for key in _TELLING if key in named and key in held.config]
    differing = [key for key in both if named[key] != held.config[key]]
    if differing:
        what = ", ".join(f"{key} {named[key]} there and {held.config[key]} here" for key in differing)
        yield (
            f"model: the recipe names {path}, and the {held.name} that was given in memory is another model: {what}. "
            f"The run would be recorded as one of {path}. Leave model.source out, or name what was loaded."
        )


def refuse_pruned_in_place(folder: RunFolder, found: Mapping[str, Any]) -> None:
    """Refuse to go on with another model in memory than a folder was begun with: a run that was cut off leaves such.

    :param found: The fingerprint of the one that is given.
    :raises RunError: Which says how to go on.
    """
    before = folder.read_fingerprints()
    if before.get("model", found["model"]) != found["model"]:
        raise RunError(
            f"{folder.path} was begun with another model than is given now. A model in memory is pruned in place, and "
            f"a run that was cut off leaves it pruned in part. Load the model anew and call again with the same "
            f"folder, which goes on behind what is finished; or give another one with folder=. With fresh=True this "
            f"one is begun anew, with the model as it is now"
        )
