"""From the folder of a packed model to the model, in one call."""

import os
from pathlib import Path

import torch
from torch import nn

from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.errors import FormatError, ModelError
from ecoflap.core.model.anatomy import Anatomy, Source
from ecoflap.core.model.source import open_source
from ecoflap.core.packed.format import masks_in
from ecoflap.core.packed.into_model import packed_in
from ecoflap.core.packed.shards import locate
from ecoflap.core.pruning.masks import PackedMasks, attach
from ecoflap.core.registry.adapter_for import adapter_for
from ecoflap.core.registry.registry import load_registry


def load_model(
    folder: str | os.PathLike[str],
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    adapter: Adapter | None = None,
) -> nn.Module:
    """The model that the ``safetensors`` exporter wrote, dense again and in eval mode, with its masks attached.

    Every byte is checked as it is read. Beside the model one of its tensors is in memory at a time. The model's
    tokenizer or processor lies in the folder in its own library's format.

    :param folder: With ``model.packed.safetensors``, or its shards and their index, and the model's configuration.
    :param dtype: None keeps what is stored.
    :param adapter: For a model whose folder does not say what it is; afterwards its ``processor`` is the model's. By
        default the one that claims the folder is found.
    :raises FormatError: Where a file is truncated, changed or missing.
    :raises ModelError: Where the folder does not say which model it is of, or says what no library here can build.
    """
    source = _opened(Path(folder))
    adapter = adapter if adapter is not None else adapter_for(source, load_registry())
    model = adapter.load(source, dtype, device).eval()
    attach(model, _masks(source, adapter, model))
    return model


def _opened(folder: Path) -> Source:
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder: name the one with the packed file and the model's configuration")
    locate(folder)
    try:
        source = open_source(str(folder), Path.cwd())
    except ModelError as error:
        raise ModelError(
            f"{folder} holds weights, and not what model they are of ({error}) Build the model as before, then "
            f"model.load_state_dict(ecoflap.load_packed({str(folder)!r}))."
        ) from error
    packed_in(source)
    return source


def _masks(source: Source, adapter: Adapter, model: nn.Module) -> PackedMasks:
    """Of the adapter's layers alone: what is tied to one of them goes by its name."""
    towers = adapter.towers(model)
    anatomy = Anatomy.of(towers, adapter.layers, [tower.name for tower in towers if tower.outside])
    assert source.path is not None
    stored, masks = masks_in(source.path), PackedMasks()
    for _, layer in anatomy.layers():
        if layer.name in stored:
            masks.put(layer.name, stored.bits[layer.name], layer.shape)
    return masks
