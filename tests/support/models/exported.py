"""A row of the table with every layer half pruned, for the exporters' tests."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from table import ALL_ROWS, row_of
from torch import Tensor, nn

from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, PrunedModel
from ecoflap.core.contracts.records import ViewSize
from ecoflap.core.kernel.packed_module import PackedLinear
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.core.model.source import open_source
from ecoflap.core.packed.packing import packed_modules


def half_pruned(name: str, folder: Path | None = None, dtype: torch.dtype | None = None) -> PrunedModel:
    """Build the model of a row and prune it, every matrix outside the blocks too.

    :param folder: Where to save the model, to read it again in another type as its family has it.
    """
    row = row_of(name)
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
        masks[layer.name] = layer.as_stored(mask)
    return PrunedModel(model, adapter, masks)


def planned(model: nn.Module, adapter: Adapter, dtype: str = "auto") -> PlanContext:
    """What an exporter is shown of a model before any weight is read.

    :param dtype: ``model.dtype`` of the recipe.
    """
    options = options_of(AdapterOptions, adapter)
    recipe = SimpleNamespace(model=SimpleNamespace(dtype=dtype))
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers)
    return PlanContext(
        recipe,
        anatomy,
        adapter,
        model,
        lambda: tuple(view.name for view in options.export_views(model)),
        lambda exporter: options.views_refused(model, exporter),
    )


def outputs(name: str, model: nn.Module, adapter: Adapter) -> tuple[Tensor, ...]:
    row = ALL_ROWS[name]
    with torch.no_grad():
        made: Any = row.outputs(model, adapter.collate(model, list(row.samples(2))))
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


def packed_names(model: nn.Module) -> set[str]:
    """Every name under which a module holds a weight packed."""
    return {
        f"{name}.{attribute}"
        for name, module in packed_modules(model)
        for attribute in (["weight"] if isinstance(module, PackedLinear) else module.held)
    }


def view_of(parameters: int, prunable: int, kept: int, width: int) -> ViewSize:
    """Give what a plan knows of a view with so many weights, in memory."""
    return ViewSize(parameters, prunable, kept, parameters, width, False)
