"""The tables of families, and their samples as a dataset that a recipe can name."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import transformers
from family import Family
from torch import nn

from ecoflap.core.contracts.protocols import Adapter, Note
from ecoflap.core.contracts.records import Sample

MODULES = {
    "pico_decoder": "transformers",
    "pico_t5": "transformers",
    "pico_blip": "transformers",
    "pico_blip2": "transformers",
    "pico_clip": "transformers",
    "pico_vit": "transformers",
    "pico_open_clip": "open_clip",
    "pico_timm": "timm",
}
GENERIC = (
    "pico_llava", "pico_qwen_vl", "pico_idefics", "pico_gemma_vl", "pico_others_vl", "pico_reading_vl", "pico_causal",
    "pico_rows_vl", "pico_seq2seq", "pico_encoders",
)  # fmt: skip
"""Modules with models of transformers that the generic adapters take."""


def rows() -> dict[str, Family]:
    """LAVIS lives in an environment of its own, whose other libraries are too old for the rest."""
    if find_spec("lavis") is not None:
        return dict(import_module("pico_lavis").FAMILIES)
    there = [import_module(name) for name, library in MODULES.items() if find_spec(library) and find_spec(name)]
    return {name: family for module in there for name, family in module.FAMILIES.items()}


def generic_rows() -> dict[str, Family]:
    """Those that this version of transformers has."""
    if find_spec("lavis") is not None:
        return {}
    rows = {name: family for module in GENERIC for name, family in import_module(module).FAMILIES.items()}
    return rows if transformers.__version__ >= "5" else {name: row for name, row in rows.items() if _is_there(row)}


def _is_there(row: Family) -> bool:
    """Say whether this version of transformers has a row's model and what comes with it."""
    with warnings.catch_warnings():  # older ones warn of this torch when they are imported
        warnings.simplefilter("ignore")
        try:
            row.adapter()
            row.build()
        except (ImportError, AttributeError, ValueError, TypeError):
            return False
    return True


ROWS = rows()
GENERIC_ROWS = generic_rows()
ALL_ROWS = ROWS | GENERIC_ROWS
THOROUGH = sorted([*ROWS, *(name for name in ("llava", "mixtral", "gpt2") if name in GENERIC_ROWS)])
"""Rows that the longer tests are run on: every family of its own, and of the generic ones one of each kind."""


@dataclass(frozen=True)
class Samples:
    """The samples of one row."""

    row: str
    samples: int

    def __call__(self, adapter: Adapter, model: nn.Module, note: Note) -> Iterator[Sample]:
        yield from ALL_ROWS[self.row].samples(self.samples)
