"""Tiny images in files, and what a dataset yields."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from plan_contexts import context
from torch import nn

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.protocols import ignore
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., str]:
    """Writes an image of one colour below ``tmp_path`` and returns its name: ``picture("a.png", shade=3)``."""

    def write(name: str, shade: int = 0, size: tuple[int, int] = (4, 3)) -> str:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (shade, shade, shade)).save(file)
        return name

    return write


@pytest.fixture
def index(tmp_path: Path) -> Callable[..., Path]:
    """Writes an index of rows, ``index.jsonl`` by default."""

    def write(rows: Sequence[Any], name: str = "index.jsonl") -> Path:
        file = tmp_path / name
        if file.suffix == ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        else:
            file.write_text(json.dumps(rows), encoding="utf-8")
        return file

    return write


@pytest.fixture
def read() -> Callable[[Any], list[Sample]]:
    """All samples of a dataset, each with an RGB image."""

    def samples(data: Any) -> list[Sample]:
        found = list(data(LlamaAdapter(), nn.Identity(), ignore))
        assert all(sample.image.mode == "RGB" for sample in found)
        return found

    return samples


@pytest.fixture
def noted() -> Callable[[Any], list[str]]:
    """What a dataset notes when all of its samples are read."""

    def notes(data: Any) -> list[str]:
        sentences: list[str] = []
        assert list(data(LlamaAdapter(), nn.Identity(), sentences.append))
        return sentences

    return notes


@pytest.fixture
def told(read: Callable[[Any], list[Sample]]) -> Callable[[Any], tuple[str, ...]]:
    """What is wrong with a dataset: said by ``problems``, and raised in the same words when it is read."""

    def problems(data: Any) -> tuple[str, ...]:
        with pytest.raises(DataError) as caught:
            read(data)
        assert list(data.problems(context())) == list(caught.value.problems)
        return caught.value.problems

    return problems


@pytest.fixture
def told_when_read(read: Callable[[Any], list[Sample]]) -> Callable[[Any], tuple[str, ...]]:
    """What is raised when a dataset is read, and could not be known without opening images."""

    def problems(data: Any) -> tuple[str, ...]:
        assert list(data.problems(context())) == []
        with pytest.raises(DataError) as caught:
            read(data)
        return caught.value.problems

    return problems
