"""Show a model taken apart: its towers, blocks and layers, and what of it is never pruned and why."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ecoflap.core.cli.tables import Section
from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.errors import ModelError
from ecoflap.core.model.anatomy import Anatomy, Block, Layer, Source, Tower
from ecoflap.core.model.never_pruned import never_pruned, tied_names
from ecoflap.core.model.parameter_masks import parameter_and_part
from ecoflap.core.model.source import open_source
from ecoflap.core.registry.adapter_for import adapter_for
from ecoflap.core.registry.named_adapter import adapter_named, knows, refusing_misfit
from ecoflap.core.registry.parameters import code_name
from ecoflap.core.registry.registry import Registry
from ecoflap.core.text.columns import left, right


def inspection(source: str, adapter: str | None, registry: Registry) -> list[Section]:
    """Make the tables that ``ecoflap inspect`` prints, without reading a weight.

    :param source: As a recipe names a model.
    :param adapter: The adapter's name or import path; None for the one that claims the model.
    :raises EcoflapError: Where there is no such model, or no adapter for it.
    """
    opened = open_source(source, Path.cwd())
    chosen = adapter_named(adapter, registry) if adapter else adapter_for(opened, registry)
    with refusing_misfit(chosen, adapter, opened):
        model, towers, anatomy, matrices = _taken_apart(chosen, opened)
    sections = [
        Section("adapter", left("adapter", "why this one"), [_adapter(chosen, opened, registry, adapter is not None)]),
        Section(
            f"{source}: {_counted(model.parameters())}",
            (*left("tower"), *right("blocks", "layers", "prunable"), *left("by default")),
            [_tower(anatomy, tower) for tower in anatomy.towers],
        ),
        Section(
            "layers of each block",
            (*left("blocks", "layer"), *right("shape", "weights"), *left("reads")),
            list(_layers(anatomy)),
        ),
        Section(
            "outside the blocks: kept unless a recipe's include: names it",
            (*left("matrix"), *right("shape", "weights"), *left("the same weight as")),
            [_matrix(model, name, layer) for name, layer in matrices.items()],
        ),
        _never_pruned(model, anatomy, towers, options_of(AdapterOptions, chosen).left_out(model)),
    ]
    return [section for section in sections if section.rows]


class _TakenApart(NamedTuple):
    """Holds a model as its adapter takes it apart.

    :param model: The model without weights.
    :param towers: All of its towers, with the matrices outside the blocks.
    :param anatomy: Of the blocks.
    :param matrices: The matrices outside the blocks, by name.
    """

    model: nn.Module
    towers: Sequence[Tower]
    anatomy: Anatomy
    matrices: Mapping[str, Layer]


def _taken_apart(adapter: Adapter, source: Source) -> _TakenApart:
    """Ask an adapter for all that is shown, and name it where its code raises."""
    with blaming(f"the adapter {type(adapter).__name__}, taking {source.name} apart,"):
        model = adapter.load(source, None, "meta")
        towers = adapter.towers(model)
        matrices = {}
        for tower in towers:
            if tower.outside:
                (matrices[tower.name],) = adapter.layers(tower.blocks[0])
        return _TakenApart(model, towers, Anatomy.of(towers, adapter.layers), matrices)


def _adapter(adapter: Adapter, source: Source, registry: Registry, is_named: bool) -> tuple[str, str]:
    """Write an adapter's row: its name, and how sure it is that the model is one of its own."""
    return _name(adapter, registry), _how_sure(adapter, source, registry, is_named)


def _name(adapter: Adapter, registry: Registry) -> str:
    known = [name for name in registry.names("adapter") if registry.find("adapter", name) is type(adapter)]
    return (known or [code_name(adapter)])[0]


def _how_sure(adapter: Adapter, source: Source, registry: Registry, is_named: bool) -> str:
    if not knows(adapter, source):
        return "named, and it does not claim this model: hold it to the model with ecoflap.check_adapter"
    if options_of(AdapterOptions, adapter).priority < 0:
        if is_named and (other := _otherwise(adapter, source, registry)):
            return f"named, and generic: without that it would be {other}"
        return "generic: no family's own adapter claims it; what runs was found by watching a forward without weights"
    return "special: written for this family, which the model's configuration names"


def _counted(parameters: Any) -> str:
    return f"{sum(parameter.numel() for parameter in parameters):,} parameters"


def _otherwise(adapter: Adapter, source: Source, registry: Registry) -> str:
    """Name the adapter that would be taken if none were named; nothing where it is the same."""
    try:
        found = adapter_for(source, registry)
    except ModelError:
        return "one of several that claim the model"
    return "" if type(found) is type(adapter) else _name(found, registry)


def _tower(anatomy: Anatomy, tower: Tower) -> tuple[str, ...]:
    """Write a tower's row: how much of it can be pruned, and whether it is."""
    layers = [layer for _, layer in anatomy.layers(tower.blocks)]
    size = sum(layer.size for layer in layers)
    default = "pruned" if tower.prunable else f"kept unless a recipe says include: [{tower.name}]"
    return tower.name, f"{len(tower.blocks)}", f"{len(layers)}", f"{size:,}", default


def _layers(anatomy: Anatomy) -> Iterator[tuple[str, ...]]:
    """List the layers of each block; blocks of a tower whose layers are alike share their rows."""
    alike: dict[tuple[Any, ...], list[str]] = {}
    for block in anatomy.blocks:
        alike.setdefault((block.tower, tuple(_rows(block, anatomy.layers_of[block.name]))), []).append(block.name)
    for (_, rows), blocks in alike.items():
        for index, row in enumerate(rows):
            yield _range(blocks) if index == 0 else "", *row


def _rows(block: Block, layers: Sequence[Layer]) -> Iterator[tuple[str, ...]]:
    """Write a row for each layer of a block; the experts of one parameter share theirs."""
    for (name, (out, inputs), reads), group in groupby(layers, lambda layer: _kind(block, layer)):
        parts = [layer.part for layer in group]
        many = f"[{parts[0]} … {parts[-1]}] ({len(parts)})" if len(parts) > 1 else ""
        each = " each" if many else ""
        yield f"{name}{many}", f"{out}×{inputs}", f"{out * inputs:,}{each}", reads


def _kind(block: Block, layer: Layer) -> tuple[str, tuple[int, int], str]:
    """Give what the experts of one parameter have in common, and no two other layers."""
    name = parameter_and_part(layer.name)[0] if isinstance(layer.part, int) else layer.name
    return name.removeprefix(f"{block.name}."), layer.shape, layer.reads or block.tower


def _range(names: Sequence[str]) -> str:
    """Write names as the first, the last and how many there are."""
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)})"


def _matrix(model: nn.Module, name: str, layer: Layer) -> tuple[str, ...]:
    """Write the row of a matrix outside the blocks, with the other names of its weight."""
    out, inputs = layer.shape
    return name, f"{out}×{inputs}", f"{layer.size:,}", ", ".join(tied_names(model, layer.name))


def _never_pruned(model: nn.Module, anatomy: Anatomy, towers: Sequence[Tower], left_out: Mapping[str, str]) -> Section:
    """List what is never pruned: outside the blocks everything, and of each tower what its first block has."""
    outside = [tower.name for tower in towers if tower.outside]
    everything = never_pruned(model, anatomy, towers, left_out)
    found = [one for one in everything if one.name.removesuffix(".weight") not in outside]
    later = tuple(f"{block.name}." for tower in anatomy.towers for block in tower.blocks[1:])
    rows = [
        (one.name, "×".join(map(str, one.shape)) or "1", one.reason) for one in found if not one.name.startswith(later)
    ]
    size = sum(prod(one.shape) for one in found)
    return Section(f"never pruned: {size:,} parameters", (*left("parameter"), *right("shape"), *left("being")), rows)
