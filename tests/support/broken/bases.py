"""Recipes and a registry to break: of a text model, a CLIP and a BLIP-2, whose models and data lie in one folder."""

import json
from pathlib import Path
from random import Random
from typing import Any

from family import Family
from pico_clip import tokenizer
from table import ROWS

TEXT = {"use": "text", "path": "text.jsonl", "sequence_length": 16, "portion": [0, 0.7], "samples": 4, "seed": 1}
PAIRS = {"use": "image_text", "path": "pairs.jsonl", "samples": 4, "order": "first", "columns": {"text": "text"}}
ASKED = {"use": "image_question_answer", "path": "asked.jsonl", "samples": 4, "order": "first", "skip": True}

RECIPES: dict[str, dict[str, Any]] = {
    "llama": {
        "version": 1,
        "seed": 3,
        "model": {"source": "./llama", "dtype": "float32", "adapter": "llama", "device": "cpu"},
        "calibration": {**TEXT, "batch_size": 2},
        "sparsity": 0.5,
        "towers": {"language": {"sparsity": 0.4, "prune": {"use": "sparsegpt", "damping": 0.01, "block_size": 16}}},
        "include": ["lm_head"],
        "score": {
            "use": "zeroth_order",
            "samples": 2,
            "noises": 1,
            "eps": 0.001,
            "joint": True,
            "granularity": "block",
            "aggregate": "mean",
            "calibration": {**TEXT, "batch_size": 1},
        },
        "allocate": {"use": "ecoflap", "max_sparsity": 0.7},
        "prune": {"use": "wanda", "compare": "row"},
        "evaluate": [
            {"use": "perplexity", "data": {**TEXT, "portion": [0.7, 1.0], "order": "spread"}},
            {"use": "loss", "data": TEXT, "batch_size": 2},
        ],
        "export": [
            {"use": "safetensors", "shard_bytes": 10000},
            "hugging_face",
            {"use": "torchscript", "views": ["decoder"], "weights": "bitmask", "tolerance": 0.001},
        ],
    },
    "clip": {
        "version": 1,
        "model": "./clip",
        "calibration": {**PAIRS, "batch_size": 2},
        "sparsity": "2:4",
        "towers": {"text": "keep"},
        "prune": "magnitude",
        "evaluate": [
            {
                "use": "zero_shot",
                "data": {"use": "image", "path": "classes.jsonl", "samples": 4},
                "batch_size": 2,
                "classes": ["red", "blue"],
                "templates": ["a photo of {}."],
            },
            {"use": "retrieval", "data": PAIRS, "rerank": None, "shared": False, "batch_size": 2},
        ],
        "export": {"use": "onnx", "views": ["vision"], "weights": "dense", "opset": 20, "tolerance": 0.001},
    },
    "blip2": {
        "version": 1,
        "model": {"source": "./blip2", "dtype": "auto"},
        "calibration": {**ASKED, "batch_size": 2},
        "sparsity": 0.45,
        "towers": {"vision": {"sparsity": 0.3}},
        "score": {"use": "first_order", "measure": "magnitude_gradient", "samples": 2, "granularity": "block"},
        "allocate": {"use": "ecoflap", "max_sparsity": 0.9},
        "prune": {"use": "sparsegpt", "block_size": 8},
        "evaluate": [
            {
                "use": "vqa",
                "data": ASKED,
                "prompt": "w3 {}",
                "num_beams": 1,
                "max_new_tokens": 2,
                "batch_size": 4,
                "score": "text",
            },
            {
                "use": "caption",
                "data": {**PAIRS, "captions": "first"},
                "num_beams": 1,
                "metrics": ["bleu"],
                "max_new_tokens": 3,
                "min_new_tokens": 1,
            },
        ],
    },
}
REGISTRY: dict[str, Any] = {
    "version": 1,
    "plugins": {"mine": "ecoflap.plugins.pruners.wanda"},
    "disable": ["owl", "lavis_blip2"],
    "aliases": {"pruner": {"best": "wanda"}, "scorer": {"zo": "zeroth_order"}},
    "defaults": {"pruner": {"sparsegpt": {"block_size": 64}}, "dataset": {"text": {"seed": 3, "order": "first"}}},
}

MODELS = {"llama": "llama", "clip": "clip", "blip2": "blip2_t5"}
"""Rows of the table of families."""


def write_bases(folder: Path) -> None:
    """Write the models, and the data that the recipes read."""
    for name, row in MODELS.items():
        save_model(ROWS[row], folder / name)
    tokenizer().save_pretrained(folder / "llama")
    draw = Random(0)
    texts = [" ".join(f"w{draw.randrange(30)}" for _ in range(80)) for _ in range(12)]
    _lines(folder / "text.jsonl", [{"text": text} for text in texts])
    names = [f"{number}.png" for number in range(6)]
    for name in names:
        _picture(draw).save(folder / name)
    _lines(folder / "pairs.jsonl", [{"image": name, "text": "w4 w5 w6"} for name in names])
    _lines(folder / "classes.jsonl", [{"image": name, "label": index % 2} for index, name in enumerate(names)])
    _lines(folder / "asked.jsonl", [{"image": name, "question": "w4 w5", "answers": ["w6"]} for name in names])


def save_model(row: Family, folder: Path) -> None:
    """Save a row's pico model with its processor, as its adapter does."""
    folder.mkdir(parents=True)
    row.adapter().save(row.build(), folder)


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _picture(draw: Random) -> Any:
    from PIL import Image

    return Image.frombytes("RGB", (5, 5), draw.randbytes(75)).resize((40, 33))
