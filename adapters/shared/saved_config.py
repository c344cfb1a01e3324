"""Correct what transformers writes wrongly into the ``config.json`` of a model that it saves."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ecoflap.core.dtypes import dtype_name


def say_untied(folder: Path, *keys: str) -> None:
    """Write into a saved model's configuration that its head is a weight of its own.

    transformers 5 writes the contrary for every T5. It reads an untied one right nevertheless, but versions before it
    throw the head away without an error.

    :param keys: Where in ``config.json`` the text model's configuration is; none where it is all of it.
    """
    _amend(folder, keys, {"tie_word_embeddings": False})


def say_type(folder: Path, dtype: torch.dtype) -> None:
    """Write which type a saved model is in, all but what its class keeps in float32.

    transformers writes the type of the first weight, and in BLIP-2 that is one of those kept in float32: a model in
    float16 would be loaded in float32.
    """
    config = _read(folder)
    key = "dtype" if "dtype" in config else "torch_dtype"  # its name changed in transformers 4.56
    _amend(folder, (), {key: dtype_name(dtype)})


def _read(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def _amend(folder: Path, keys: tuple[str, ...], changes: Mapping[str, Any]) -> None:
    """Change a configuration, which stays in the order and form that transformers writes."""
    config = inner = _read(folder)
    for key in keys:
        inner = inner[key]
    inner.update(changes)
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / "config.json").write_text(f"{text}\n", encoding="utf-8")
