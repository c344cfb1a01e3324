"""The tables of families, and their samples as a dataset that a recipe can name."""

import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import transformers
from family import Family
from torch import nn
from transformers_version import is_before

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
    "pico_rows_vl", "pico_seq2seq", "pico_encoders", "pico_grids_vl", "pico_seen_vl", "pico_seeing_pairs",
    "pico_newest_vl",
)  # fmt: skip
"""Modules with models of transformers that the generic adapters take."""

_PROJECTOR = ("multi_modal_projector.linear_1", "multi_modal_projector.linear_2", "language_model.lm_head")
_X_ATTN = tuple(f"x_attn.{name}" for name in ("k_proj", "v_proj", "q_proj", "out_proj"))
OUTSIDE_BEFORE_5 = {
    **dict.fromkeys(
        (
            "aya_vision",
            "llava",
            "llava_next",
            "llava_next_video",
            "llava_onevision",
            "llava_two_layers",
            "pixtral",
            "vipllava",
        ),
        _PROJECTOR,
    ),
    "mistral3": ("multi_modal_projector.patch_merger.merging_layer", *_PROJECTOR),
    "gemma3": ("language_model.lm_head",),
    "gpt_neox": ("embed_out",),
    "kosmos2": (*(f"image_to_text_projection.{name}" for name in ("dense", *_X_ATTN)), "text_model.lm_head"),
}
"""What transformers before 5 calls the matrices outside the blocks, or has them in another order."""

SINCE = {"llava_onevision1_5": "5.25", "ovis2_5": "5.25"}
"""The version of transformers that brought a model, where others that are tested lack it."""


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
    known = {name: family for module in GENERIC for name, family in import_module(module).FAMILIES.items()}
    rows = {name: row for name, row in known.items() if name not in SINCE or not is_before(SINCE[name])}
    if not is_before("5"):
        return rows
    older = {name: replace(row, outside=OUTSIDE_BEFORE_5.get(name, row.outside)) for name, row in rows.items()}
    return {name: row for name, row in older.items() if _is_there(row)}


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
VARIANTS = {
    "blip2_llama", "blip_retrieval", "blip_vqa", "clip_vision", "deit_teacher", "dinov2_classifier", "dinov3",
    "llama-tied", "mt5", "open_clip_custom", "open_clip_eva", "open_clip_siglip", "t5_untied_gated", "timm_eva",
    "timm_vit",
}  # fmt: skip
"""Rows of families that have another, by which they are tested each time."""
OF_EACH_KIND = {"bart", "bert", "gpt2", "idefics3", "llava", "mixtral", "mllama", "qwen2_vl"}
"""Rows of the generic adapters that are tested each time."""
DOUBLES = {
    "aya_vision", "blenderbot", "cohere2_vision", "deepseek_vl", "exaone4_5", "glm46v", "glm4v", "glm_ocr", "got_ocr2",
    "granite_docling", "idefics2", "internvl", "lighton_ocr", "llava_next_video", "m2m_100", "marian", "mbart",
    "mistral3", "mistral4", "qwen2_5_omni_thinker", "qwen3_5", "qwen3_vl", "video_llama_3", "vipllava", "vit_gpt2",
}  # fmt: skip
"""Rows of the generic adapters that are so like others that even what all rows go through is for the slow tests."""
SHARING = {"blip2_opt", "blip2_retrieval", "dinov2", "open_clip", "siglip", "vit_classifier"}
"""Rows of adapters that have another row, or the blocks of one, so that runs from end to end may leave them to it."""
ALIKE = VARIANTS | (GENERIC_ROWS.keys() - OF_EACH_KIND)


def marked(names: Iterable[str], alike: Collection[str] = ALIKE) -> list[Any]:
    """Give rows to parametrize a test with: those that are like others are for the slow tests."""
    return [pytest.param(name, marks=pytest.mark.slow if name in alike else ()) for name in names]


def row_of(name: str) -> Family:
    """Give a row; a test that asks for a model which an older transformers lacks is skipped there."""
    if name not in ALL_ROWS and is_before(SINCE.get(name, "5")):
        pytest.skip(f"transformers {transformers.__version__} has not all that {name} is built from")
    return ALL_ROWS[name]


@dataclass(frozen=True)
class Samples:
    """The samples of one row."""

    row: str
    samples: int

    def __call__(self, adapter: Adapter, model: nn.Module, note: Note) -> Iterator[Sample]:
        yield from ALL_ROWS[self.row].samples(self.samples)
