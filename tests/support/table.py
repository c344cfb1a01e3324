"""The table of families, and its samples as a dataset that a recipe can name."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from family import Family
from torch import nn

from ecoflap.core.contracts.protocols import Adapter, Note
from ecoflap.core.contracts.records import Sample

MODULES = {
    "pico_decoder": "transformers",
    "pico_t5": "transformers",
    "pico_blip2": "transformers",
    "pico_clip": "transformers",
    "pico_vit": "transformers",
    "pico_open_clip": "open_clip",
    "pico_timm": "timm",
}


def rows() -> dict[str, Family]:
    """LAVIS lives in an environment of its own, whose other libraries are too old for the rest."""
    if find_spec("lavis") is not None:
        return dict(import_module("pico_lavis").FAMILIES)
    there = [import_module(name) for name, library in MODULES.items() if find_spec(library) and find_spec(name)]
    return {name: family for module in there for name, family in module.FAMILIES.items()}


ROWS = rows()


@dataclass(frozen=True)
class Samples:
    """The samples of one row."""

    row: str
    samples: int

    def __call__(self, adapter: Adapter, model: nn.Module, note: Note) -> Iterator[Sample]:
        yield from ROWS[self.row].samples(self.samples)
