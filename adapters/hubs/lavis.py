"""Do what the adapters of models of salesforce-lavis do alike: recognise a model, read it, and write it.

LAVIS has a name and a type for each model, and a pruned one's checkpoint is its own. It is imported inside functions.
"""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ecoflap.adapters.hubs.description import describe, description_of
from ecoflap.adapters.shared.transforms import transformed
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, ModelError, nearest
from ecoflap.core.model.anatomy import Source
from ecoflap.core.packed.into_model import fill, packed_in

PREFIX = "lavis:"
LIBRARY = "lavis"
CHECKPOINT = "model.pth"  # torch.save of {"model": state_dict}, which is what LAVIS' load_checkpoint reads


class LavisAdapter:
    """Is half an adapter: it recognises, reads and writes models of one family: ``lavis:NAME/TYPE``, or saved.

    A model comes in float32, as LAVIS has it on a CPU, unless the recipe says otherwise.

    :cvar _classes: The names of LAVIS' classes of the family.
    :cvar _family: What LAVIS' names of its models begin with.
    :cvar _called: What the family is called in messages.
    """

    _classes: ClassVar[frozenset[str]]
    _family: ClassVar[str]
    _called: ClassVar[str]

    def __init__(self) -> None:
        self.processor: Any = None

    def matches(self, source: Source) -> bool:
        """Recognise a model by its prefix, by what :meth:`save` wrote, and in memory by its class."""
        if source.model is not None:
            kinds = type(source.model).__mro__
            return any(kind.__module__.startswith("lavis.") and kind.__name__ in self._classes for kind in kinds)
        if source.config.get("library") == LIBRARY:
            return str(source.config.get("name")).startswith(self._family)
        return source.name.startswith(f"{PREFIX}{self._family}")

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """Load the model in eval mode, and LAVIS' image processor for it; on ``meta`` without weights and processor.

        :raises ModelError: Where LAVIS is not installed, knows no such model, or cannot get it.
        """
        if source.model is not None:
            return source.model.eval()
        name, kind = name_and_type(source, self._family, self._called)
        is_meta, is_saved = device == "meta", source.path is not None
        built = self._built(name, kind, with_tokenizer=not is_meta) if is_meta or is_saved else None
        model, images = built or source.loaded.pop(LIBRARY, None) or fetched(name, kind)
        describe(model, {"name": name, "type": kind})
        if is_meta:
            if built is None and not is_saved:  # a folder's own weights are other ones, and are read from there
                source.loaded[LIBRARY] = model, images
            return weightless(model)
        self.processor = images
        packed = packed_in(source)
        if packed is not None:
            fill(model, packed)
        elif source.path is not None:
            read_checkpoint(source.path / CHECKPOINT, model)
        return (model if dtype is None else in_type(model, dtype)).to(device)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a checkpoint for LAVIS' ``load_checkpoint``, and the name and type by which LAVIS has the model."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"model": dict(model.state_dict())}, folder / CHECKPOINT)
        self.save_surroundings(model, folder)

    def save_surroundings(self, model: nn.Module, folder: Path) -> None:
        """Write what :meth:`save` writes beside the weights."""
        known = description_of(model)
        if known:
            config = {"library": LIBRARY, "model_type": f"{LIBRARY}_{known['name']}", **known}
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def _built(self, name: str, kind: str, *, with_tokenizer: bool) -> tuple[nn.Module, Any] | None:
        """Build a model whose weights are still to be read, with its image processor.

        :param with_tokenizer: False for a model that is only looked at.
        :return: None, the default, where LAVIS builds none without fetching its weights.
        """
        return None

    def _pixels(self, samples: Sequence[Sample]) -> Float[Tensor, "batch channels height width"]:
        """Make the tensor of the samples' images.

        :raises DataError: Where there is no image processor, or it cannot read them.
        """
        if self.processor is None:
            raise DataError(
                "this model needs an image processor: give ecoflap.run a processor, which is vis_processors['eval'] of "
                "LAVIS' load_model_and_preprocess."
            )
        return transformed(self.processor, samples)


def name_and_type(source: Source, family: str, called: str) -> tuple[str, str]:
    """Give the name and type that LAVIS has for a model, from a ``lavis:`` source or from a folder's config.json.

    :param family: What the names of the family's models begin with.
    :param called: What the family is called in messages.
    :raises ModelError: Where LAVIS is not installed, or knows no such model.
    """
    if source.path is not None:
        name, kind = source.config.get("name"), source.config.get("type")
    else:
        name, _, kind = source.name.removeprefix(PREFIX).partition("/")
    known = {str(one): list(kinds) for one, kinds in _lavis().model_zoo if str(one).startswith(family)}
    if name not in known:
        raise ModelError(
            f"{source.name}: LAVIS has no {name!r} among its {called} models.{nearest(str(name), known)} Known: "
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


def in_type(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Put every weight into one type, but those of LAVIS' own layer norms, which it runs in float32 in any case."""
    model.to(dtype)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and type(module).__module__.startswith("lavis."):
            module.float()
    return model


def _lavis() -> Any:
    try:
        from lavis import models
    except ImportError as error:
        raise ModelError(
            f"this model is read with salesforce-lavis, which cannot be imported ({error}): pip install "
            f"'ecoflap[lavis]' into an environment of its own, of Python 3.11"
        ) from error
    return models
