"""A folder with the packed file, where a pruned weight costs one bit, and all else that loading the model takes."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.core.errors import FormatError
from ecoflap.core.hookspecs import hookimpl
from ecoflap.core.masks import masks_of
from ecoflap.core.packed import inspect_packed, save_packed, stream_packed
from ecoflap.core.parts import Adapter, Exporter
from ecoflap.core.sealed import flat

FILE = "model.packed.safetensors"


@dataclass(frozen=True)
class Safetensors:
    """``model.packed.safetensors``, read by :func:`ecoflap.load_packed`, with the model's configuration and tokenizer.

    It takes (1-s) + 1/16 of a 16 bit weight's bytes at sparsity s; at run time the weights are dense again, so nothing
    is faster. Libraries that know only dense checkpoints want the ``hugging_face`` exporter.
    """

    def predicted_bytes(self, parameters: int, prunable: int, kept: int, width: int) -> int:
        """Kept weights as they are, and a bit for each prunable one.

        :param width: Bytes of one weight.
        """
        return (parameters - prunable + kept) * width + prunable // 8

    def __call__(self, model: nn.Module, adapter: Adapter, folder: Path) -> list[Path]:
        masks = masks_of(model)
        state = model.state_dict()
        _save_surroundings(model, adapter, folder)
        save_packed(folder / FILE, state, masks)
        _check(folder / FILE, state)
        return sorted(path for path in folder.rglob("*") if path.is_file())


def _save_surroundings(model: nn.Module, adapter: Adapter, folder: Path) -> None:
    """What transformers keeps beside the weights, where the model is one of its own."""
    config: Any = deepcopy(getattr(model, "config", None))
    if hasattr(config, "save_pretrained"):
        # Older versions note so that they chose the attention, and on reading choose anew.
        vars(config).pop("_attn_implementation_autoset", None)
        # Only saving a whole model fills this in.
        config.architectures = [type(model).__name__]
    things: tuple[Any, ...] = (config, getattr(model, "generation_config", None), adapter.processor)
    for thing in things:
        if hasattr(thing, "save_pretrained"):
            thing.save_pretrained(folder)


def _check(path: Path, state: Mapping[str, Tensor]) -> None:
    """Read the file again and compare it with the model, bit by bit but for the sign of zeros in a pruned weight."""
    entries = inspect_packed(path).tensors
    for name, tensor in stream_packed(path):
        expected = state[name].detach().cpu()
        if entries[name].kept is not None:
            tensor, expected = tensor.masked_fill(tensor == 0, 0), expected.masked_fill(expected == 0, 0)
        if not torch.equal(flat(tensor).view(torch.uint8), flat(expected).view(torch.uint8)):
            raise FormatError(f"{path}: {name} reads back other than it was written")


@hookimpl
def ecoflap_register_exporters() -> Mapping[str, Callable[..., Exporter]]:
    return {"safetensors": Safetensors}
