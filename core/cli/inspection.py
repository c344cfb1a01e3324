"""A model taken apart for reading: its towers, blocks and layers, and what of it is kept and why."""

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

from torch import nn

from ecoflap.core.cli.tables import Section
from ecoflap.core.model.anatomy import Anatomy, Tower
from ecoflap.core.model.never_pruned import kept_in, tied_to
from ecoflap.core.model.source import open_source
from ecoflap.core.registry.adapter_for import adapter_for
from ecoflap.core.registry.registry import Registry


def inspection(source: str, adapter: str | None, registry: Registry) -> list[Section]:
    """What ``ecoflap inspect`` prints; reads no weights."""
    opened = open_source(source, Path.cwd())
    named = registry.find("adapter", adapter)() if adapter else adapter_for(opened, registry)
    model = named.load(opened, None, "meta")
    towers = named.towers(model)
    anatomy = Anatomy.of(towers, named.layers)
    outside = [tower for tower in towers if tower.outside]
    sections = [
        Section(
            f"{source}: {_counted(model.parameters())}",
            ("tower", ">blocks", ">layers", ">prunable", "by default"),
            [_tower(anatomy, tower) for tower in anatomy.towers],
        ),
        Section("layers of each block", ("blocks", "layer", ">shape", ">weights", "reads"), list(_layers(anatomy))),
        Section(
            "outside the blocks: kept unless a recipe's include: names it",
            ("matrix", ">shape", ">weights", "the same weight as"),
            [_matrix(model, tower, named) for tower in outside],
        ),
        _kept(model, anatomy, towers),
    ]
    return [section for section in sections if section.rows]


def _counted(parameters: Any) -> str:
    return f"{sum(parameter.numel() for parameter in parameters):,} parameters"


def _tower(anatomy: Anatomy, tower: Tower) -> tuple[str, ...]:
    layers = [layer for _, layer in anatomy.layers(tower.blocks)]
    size = sum(layer.size for layer in layers)
    default = "pruned" if tower.prunable else f"kept unless a recipe says include: [{tower.name}]"
    return tower.name, f"{len(tower.blocks)}", f"{len(layers)}", f"{size:,}", default


def _layers(anatomy: Anatomy) -> Iterator[tuple[str, ...]]:
    """Blocks of one shape are told once."""
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
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)})"


def _matrix(model: nn.Module, tower: Tower, adapter: Any) -> tuple[str, ...]:
    (layer,) = adapter.layers(tower.blocks[0])
    out, inputs = layer.shape
    return tower.name, f"{out}×{inputs}", f"{layer.size:,}", ", ".join(tied_to(model, layer.name))


def _kept(model: nn.Module, anatomy: Anatomy, towers: Sequence[Tower]) -> Section:
    """What lies in no block, by name, and what the first block of each tower keeps, as an example of its like."""
    outside = [tower.name for tower in towers if tower.outside]
    kept = [one for one in kept_in(model, anatomy, towers) if one.name.removesuffix(".weight") not in outside]
    later = tuple(f"{block.name}." for tower in anatomy.towers for block in tower.blocks[1:])
    rows = [
        (one.name, "×".join(map(str, one.shape)) or "1", one.reason) for one in kept if not one.name.startswith(later)
    ]
    size = sum(prod(one.shape) for one in kept)
    return Section(f"never pruned: {size:,} parameters", ("parameter", ">shape", "being"), rows)
