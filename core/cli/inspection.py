"""Show a model taken apart: its towers, blocks and layers, and what of it is never pruned and why."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ecoflap.core.cli.tables import Section
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.conformance import contract_problems
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.errors import RegistryError
from ecoflap.core.model.anatomy import Anatomy, Layer, Source, Tower
from ecoflap.core.model.never_pruned import never_pruned, tied_names
from ecoflap.core.model.source import open_source
from ecoflap.core.registry.adapter_for import adapter_for
from ecoflap.core.registry.registry import Registry
from ecoflap.core.text.columns import left, right


def inspection(source: str, adapter: str | None, registry: Registry) -> list[Section]:
    """Make the tables that ``ecoflap inspect`` prints, without reading a weight.

    :param source: As a recipe names a model.
    :param adapter: The adapter's name or import path; None for the one that claims the model.
    :raises EcoflapError: Where there is no such model, or no adapter for it.
    """
    opened = open_source(source, Path.cwd())
    chosen = _named(adapter, registry) if adapter else adapter_for(opened, registry)
    model, towers, anatomy, matrices = _taken_apart(chosen, opened)
    sections = [
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
        _never_pruned(model, anatomy, towers),
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


def _named(name: str, registry: Registry) -> Adapter:
    """Make the adapter of a name or an import path, and refuse what is none."""
    with blaming(f"the adapter {name}"):
        adapter: Adapter = registry.find("adapter", name)()
    problems = [f"{name}: {problem}" for problem in contract_problems("adapter", adapter, ())]
    if problems:
        raise RegistryError(*problems)
    return adapter


def _counted(parameters: Any) -> str:
    return f"{sum(parameter.numel() for parameter in parameters):,} parameters"


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
        inside = anatomy.layers_of[block.name]
        shape = tuple(
            (layer.name.removeprefix(f"{block.name}."), layer.shape, layer.reads or block.tower) for layer in inside
        )
        alike.setdefault((block.tower, shape), []).append(block.name)
    for (_, shape), blocks in alike.items():
        for index, (name, (out, inputs), reads) in enumerate(shape):
            yield _range(blocks) if index == 0 else "", name, f"{out}×{inputs}", f"{out * inputs:,}", reads


def _range(names: Sequence[str]) -> str:
    """Write names as the first, the last and how many there are."""
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)})"


def _matrix(model: nn.Module, name: str, layer: Layer) -> tuple[str, ...]:
    """Write the row of a matrix outside the blocks, with the other names of its weight."""
    out, inputs = layer.shape
    return name, f"{out}×{inputs}", f"{layer.size:,}", ", ".join(tied_names(model, layer.name))


def _never_pruned(model: nn.Module, anatomy: Anatomy, towers: Sequence[Tower]) -> Section:
    """List what is never pruned: outside the blocks everything, and of each tower what its first block has."""
    outside = [tower.name for tower in towers if tower.outside]
    found = [one for one in never_pruned(model, anatomy, towers) if one.name.removesuffix(".weight") not in outside]
    later = tuple(f"{block.name}." for tower in anatomy.towers for block in tower.blocks[1:])
    rows = [
        (one.name, "×".join(map(str, one.shape)) or "1", one.reason) for one in found if not one.name.startswith(later)
    ]
    size = sum(prod(one.shape) for one in found)
    return Section(f"never pruned: {size:,} parameters", (*left("parameter"), *right("shape"), *left("being")), rows)
