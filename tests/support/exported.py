"""A row of the table with every layer half pruned, for the exporters' tests."""

from pathlib import Path
from typing import Any

import torch
from table import ROWS
from torch import Tensor, nn

from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.core.model.source import open_source
from ecoflap.core.pruning.masks import attach


def half_pruned(name: str, folder: Path | None = None, dtype: torch.dtype | None = None) -> tuple[nn.Module, Adapter]:
    """With every matrix outside the blocks pruned too, and masks attached.

    :param folder: Where to save the model, to read it again in another type as its family has it.
    """
    row = ROWS[name]
    model, adapter = row.build(), row.adapter()
    if folder is not None:
        given = adapter.processor
        adapter.save(model, folder)
        model = adapter.load(open_source(str(folder), Path.cwd()), dtype, "cpu")
        adapter.processor = given
    towers = adapter.towers(model)
    anatomy = Anatomy.of(towers, adapter.layers, [tower.name for tower in towers if tower.outside])
    generator, masks = torch.Generator().manual_seed(5), {}
    for _, layer in anatomy.layers():
        mask = torch.rand(layer.shape, generator=generator) >= 0.5
        layer.weight.data *= mask
        # A kept weight may be zero all the same.
        layer.weight.data[mask.nonzero()[0][0], mask.nonzero()[0][1]] = 0
        masks[layer.name] = mask
    attach(model, masks)
    return model, adapter


def outputs(name: str, model: nn.Module, adapter: Adapter) -> tuple[Tensor, ...]:
    row = ROWS[name]
    with torch.no_grad():
        made: Any = row.outputs(model, adapter.collate(list(row.samples(2))))
    return made if isinstance(made, tuple) else (made,)


def bits(model: nn.Module) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """All of the state dict, a zero being a zero whatever its sign."""
    return {
        name: (
            tensor.dtype,
            tuple(tensor.shape),
            tensor.masked_fill(tensor == 0, 0).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
        for name, tensor in model.state_dict().items()
    }
