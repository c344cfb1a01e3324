"""Read BLIP-2 with salesforce-lavis: by the name that LAVIS has for a model, and from a pruned one's checkpoint."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from ecoflap.core.errors import ModelError, nearest
from ecoflap.core.model.anatomy import Source

PREFIX = "lavis:"
LIBRARY = "lavis"
CHECKPOINT = "model.pth"  # torch.save of {"model": state_dict}, which is what LAVIS' load_checkpoint reads


def name_and_type(source: Source) -> tuple[str, str]:
    """Give the name and type that LAVIS has for a model, from a ``lavis:`` source or from a folder's config.json.

    :raises ModelError: Where LAVIS is not installed, or knows no such model.
    """
    if source.path is not None:
        name, kind = source.config.get("name"), source.config.get("type")
    else:
        name, _, kind = source.name.removeprefix(PREFIX).partition("/")
    known = {str(one): list(kinds) for one, kinds in _lavis().model_zoo if str(one).startswith("blip2")}
    if name not in known:
        raise ModelError(
            f"{source.name}: LAVIS has no {name!r} among its BLIP-2 models.{nearest(str(name), known)} Known: "
            f"{', '.join(sorted(known))}"
        )
    if kind not in known[name]:
        raise ModelError(
            f"{source.name}: {name} has no type {kind!r}.{nearest(str(kind), known[name])} It is written "
            f"{PREFIX}{name}/TYPE with one of {', '.join(known[name])}"
        )
    return name, str(kind)


def fetched(name: str, kind: str) -> tuple[nn.Module, Any]:
    """Have LAVIS build a model with its weights, and give it in eval mode with LAVIS' image processor for it.

    :raises ModelError: Where LAVIS cannot get it.
    """
    models = _lavis()
    try:
        model, images, _ = models.load_model_and_preprocess(name, kind, is_eval=True, device="cpu")
    except (OSError, RuntimeError, ValueError, KeyError, UnpicklingError) as error:
        raise ModelError(f"LAVIS cannot load {name}/{kind}: {error}") from error
    processors: Mapping[str, Any] = images or {}
    return model.eval(), processors.get("eval")


def weightless(model: nn.Module) -> nn.Module:
    """Copy a model to the meta device; nothing of the weights is copied."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return deepcopy(model, memo)


def read_checkpoint(file: Path, model: nn.Module) -> None:
    """Read weights into a model as they were saved, each in its own type.

    :raises ModelError: Where the file is not there, is damaged, or is of another model.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)["model"]
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(state[name].dtype)
        model.load_state_dict(state)
    except (OSError, RuntimeError, KeyError, UnpicklingError) as error:
        raise ModelError(f"{file} cannot be read as a checkpoint of this model: {error}") from error


def _lavis() -> Any:
    try:
        from lavis import models
    except ImportError as error:
        raise ModelError(
            f"this model is read with salesforce-lavis, which cannot be imported ({error}): pip install "
            f"'ecoflap[lavis]' into an environment of its own, of Python 3.11"
        ) from error
    return models
