"""All that loading a model takes beside its weights: configuration, and tokenizer or processor."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import nn

from ecoflap.core.contracts.protocols import Adapter


def save_surroundings(model: nn.Module, adapter: Adapter, folder: Path) -> None:
    """In the family's own format, by the adapter's ``save_surroundings(model, folder)`` where it has one.

    Without one it is what a model of transformers has, which of any other is nothing or a part.
    """
    own = getattr(adapter, "save_surroundings", None)
    if own is not None:
        own(model, folder)
    else:
        save_settings(model, adapter.processor, folder)


def save_settings(model: Any, processor: Any, folder: Path) -> None:
    """What ``save_pretrained`` of transformers writes beside the weights; the model is as before afterwards."""
    config: Any = deepcopy(getattr(model, "config", None))
    if hasattr(config, "save_pretrained"):
        # Older versions note so that they chose the attention, and on reading choose anew.
        vars(config).pop("_attn_implementation_autoset", None)
        # Only saving a whole model fills these in.
        config.architectures = [type(model).__name__]
        setattr(config, _dtype_key(config), str(model.dtype).removeprefix("torch."))
        config.save_pretrained(folder)
    beside: tuple[Any, ...] = (getattr(model, "generation_config", None), processor)
    for thing in beside:
        if hasattr(thing, "save_pretrained"):
            thing.save_pretrained(folder)


def _dtype_key(config: Any) -> str:
    """Its name changed in transformers 4.56, and the older one is an alias since."""
    return "dtype" if hasattr(config, "dtype") else "torch_dtype"
