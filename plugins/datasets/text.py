"""Windows of plain text, the usual calibration data of one-shot pruning (C4 in Wanda and SparseGPT)."""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, nearest
from ecoflap.core.model.anatomy import Anatomy

PLAIN, LINES = (".txt", ".md"), (".jsonl", ".json")
USUAL_LENGTH = 2048
BETWEEN = "\n\n"


@hookimpl
def ecoflap_register_datasets() -> Mapping[str, type["Text"]]:
    return {"text": Text}


@dataclass(frozen=True)
class Text:
    """Token windows of equal length from documents: by default from the Wikipedia articles that ship.

    A ``.txt`` or ``.md`` file is one document; each line of a ``.jsonl`` or ``.json`` file is one, an object with its
    text under ``column``; any of them may be ``.gz``. Tokens are those of the model's own tokenizer, none special.

    :param path: Files, or folders that are searched for them in alphabetical order.
    :param dataset: A data set of the Hugging Face hub instead, with its ``config`` and ``split``; needs ``datasets``.
    :param column: Where the text is in a data set, or in a line of JSON.
    :param samples: How many windows; None for all there are, in consecutive order only.
    :param sequence_length: Tokens in a window; None for the model's longest, but 2048 at most.
    :param seed: Of the random choice, which is the same on every machine.
    :param order: ``random``: a window at a random place of a random document that is long enough, and of all documents
        joined where none is. ``consecutive``: all documents joined by an empty line and cut from the start, without
        overlap, as perplexities are reported. ``spread``: of those windows, ``samples`` that lie evenly over the text.
    :param portion: The share of the documents to use: calibrate on ``[0, 0.7]`` and evaluate on ``[0.7, 1]``.
    """

    path: tuple[Path, ...] | Path | None = None
    dataset: str | None = None
    config: str | None = None
    column: str = "text"
    split: str = "train"
    samples: int | None = 128
    sequence_length: int | None = None
    seed: int = 0
    order: Literal["random", "consecutive", "spread"] = "random"
    portion: tuple[float, float] = (0.0, 1.0)

    def __call__(self, adapter: Adapter, model: nn.Module) -> Iterator[Sample]:
        wrong = [*self.problems()]
        if wrong:
            raise DataError(*wrong)
        length = self.tokens_per_sample(adapter.max_length(model))
        tokenize = _tokenizer(adapter)
        documents = self._portion(self._documents())
        cut = self._random if self.order == "random" else self._consecutive
        for window in cut(documents, tokenize, length):
            yield Sample(tokens=window)

    def problems(self, anatomy: Anatomy | None = None, recipe: Any = None) -> Iterator[str]:
        """What is wrong with the parameters, missing files included; said before a model is loaded."""
        if self.path is not None and self.dataset is not None:
            yield "text: path and dataset exclude each other."
        if self.dataset is not None and find_spec("datasets") is None:
            yield "text: dataset needs the datasets library: pip install 'ecoflap[datasets]'."
        if self.samples is None and self.order == "random":
            yield "text: samples is needed in random order; without it, set order: consecutive."
        if self.samples is not None and self.samples < 1:
            yield f"text: samples is {self.samples}; at least 1 is needed."
        if self.sequence_length is not None and self.sequence_length < 2:
            yield f"text: sequence_length is {self.sequence_length}; at least 2 tokens are needed to predict one."
        if not 0 <= self.portion[0] < self.portion[1] <= 1:
            yield f"text: portion is {list(self.portion)}; two rising numbers from 0 to 1 are needed, such as [0, 0.7]."
        for path in self._paths():
            yield from _problems_of(path)

    def files(self) -> Iterator[Path]:
        """Every file that is read, so that a change of any is seen."""
        return (file for path in self._paths() if path.exists() for file in _files(path))

    def _paths(self) -> tuple[Path, ...]:
        if self.path is None:
            shipped = Path(str(files("ecoflap") / "recipes" / "data" / "wikipedia.jsonl"))
            return (shipped,) if self.dataset is None else ()
        return self.path if isinstance(self.path, tuple) else (self.path,)

    def tokens_per_sample(self, longest: int | None) -> int:
        """Tokens in a window.

        :param longest: What the model reads at most.
        """
        if self.sequence_length is None:
            return min(USUAL_LENGTH, longest or USUAL_LENGTH)
        if longest is not None and self.sequence_length > longest:
            raise DataError(
                f"text: sequence_length is {self.sequence_length}; this model reads {longest} tokens at most."
            )
        return self.sequence_length

    def _documents(self) -> list[str]:
        if self.dataset is not None:
            return _of_dataset(self.dataset, self.config, self.split, self.column)
        found = [text for path in self._paths() for file in _files(path) for text in _read(file, self.column)]
        documents = [text for text in found if text.strip()]
        if not documents:
            raise DataError(f"text: no text in {', '.join(map(str, self._paths()))}.")
        return documents

    def _portion(self, documents: Sequence[str]) -> Sequence[str]:
        # read as exact decimals, so that 0.7 ends one portion where it begins the next
        start, end = (int(Fraction(str(share)) * len(documents)) for share in self.portion)
        if start == end:
            raise DataError(
                f"text: portion {list(self.portion)} of {len(documents)} document(s) holds none. A .txt file is one "
                "document; give several files, or a .jsonl file with a document a line."
            )
        return documents[start:end]

    def _random(
        self, documents: Sequence[str], tokenize: "Tokenize", length: int
    ) -> Iterator[Int64[Tensor, " tokens"]]:
        """As Wanda and SparseGPT draw from C4: a document that is too short is passed over, here for good."""
        assert self.samples is not None  # problems() has seen to it
        random, candidates, drawn = Random(self.seed), list(range(len(documents))), 0
        while candidates and drawn < self.samples:
            place = random.randrange(len(candidates))
            tokens = tokenize(documents[candidates[place]])
            if len(tokens) < length:
                del candidates[place]
                continue
            yield _window(tokens, random.randrange(len(tokens) - length + 1), length)
            drawn += 1
        if drawn == self.samples:
            return
        tokens = self._joined(documents, tokenize, length)
        for _ in range(self.samples):
            yield _window(tokens, random.randrange(len(tokens) - length + 1), length)

    def _consecutive(
        self, documents: Sequence[str], tokenize: "Tokenize", length: int
    ) -> Iterator[Int64[Tensor, " tokens"]]:
        tokens = self._joined(documents, tokenize, length)
        available = len(tokens) // length
        if self.samples is not None and available < self.samples:
            raise DataError(
                f"text: {self.samples} windows of {length} tokens are asked for and the text gives {available}. Set "
                f"samples: {available}, or null for all there are; or lower sequence_length, or give more text."
            )
        wanted = available if self.samples is None else self.samples
        of = available if self.order == "spread" else wanted
        yield from (_window(tokens, index * of // wanted * length, length) for index in range(wanted))

    def _joined(self, documents: Sequence[str], tokenize: "Tokenize", length: int) -> list[int]:
        tokens = tokenize(BETWEEN.join(documents))
        if len(tokens) < length:
            raise DataError(
                f"text: all of it is {len(tokens)} tokens, and one window needs {length}. Give more text, or set "
                f"sequence_length: {len(tokens)} or less."
            )
        return tokens


Tokenize = Callable[[str], list[int]]


def _tokenizer(adapter: Adapter) -> Tokenize:
    """From text to token numbers; a processor of images and text has its tokenizer inside."""
    tokenizer = getattr(adapter.processor, "tokenizer", adapter.processor)
    if tokenizer is None:
        raise DataError(
            "text: this model came without a tokenizer. Put its tokenizer files beside config.json, or give "
            "ecoflap.run a processor."
        )

    def tokenize(text: str) -> list[int]:
        # verbose would warn that the text is longer than the model reads; it is cut afterwards
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    return tokenize


def _window(tokens: Sequence[int], start: int, length: int) -> Int64[Tensor, " tokens"]:
    return torch.tensor(tokens[start : start + length], dtype=torch.int64)


def _suffix(file: Path) -> str:
    """Without ``.gz``."""
    return Path(file.name.removesuffix(".gz")).suffix


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [file for file in sorted(path.rglob("*")) if file.is_file() and _suffix(file) in PLAIN + LINES]


def _problems_of(path: Path) -> Iterator[str]:
    known = ", ".join(PLAIN + LINES)
    if not path.exists():
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        yield f"text: {path} does not exist.{nearest(path.name, beside)}"
    elif path.is_file() and _suffix(path) not in PLAIN + LINES:
        yield f"text: {path} is of a kind that is not read. Known: {known}, and each of these with .gz."
    elif not _files(path):
        yield f"text: the folder {path} holds no text. Known: {known}, and each of these with .gz."


def _read(file: Path, column: str) -> Iterator[str]:
    try:
        raw = file.read_bytes()
        text = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"text: {file} cannot be read as UTF-8 text: {error}.") from error
    if _suffix(file) in PLAIN:
        yield text
        return
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also split inside a string, at U+2028
        if line.strip():
            yield _column(line, column, f"{file}:{number}")


def _column(line: str, column: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"text: {where} is not JSON: {error}. One object a line is expected.") from error
    if not isinstance(row, dict):
        raise DataError(f"text: {where} is not a JSON object.")
    if not isinstance(row.get(column), str):
        raise DataError(_no_column(column, list(row), where))
    return str(row[column])


def _no_column(column: str, columns: list[str], where: str) -> str:
    return f"text: {where} has no text in column {column!r}.{nearest(column, columns)} Known: {', '.join(columns)}."


def _of_dataset(name: str, config: str | None, split: str, column: str) -> list[str]:
    from datasets import load_dataset

    try:
        table = load_dataset(name, config, split=split)
    except (OSError, ValueError, KeyError) as error:  # all that it raises, a missing network included
        raise DataError(f"text: dataset {name!r} cannot be loaded: {error}") from error
    if column not in table.column_names:
        raise DataError(_no_column(column, table.column_names, f"dataset {name!r}"))
    documents = [text for text in table[column] if isinstance(text, str) and text.strip()]
    if not documents:
        raise DataError(f"text: dataset {name!r} holds no text in column {column!r}.")
    return documents
