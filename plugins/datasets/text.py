"""The dataset ``text`` yields windows of plain text, the usual calibration data of one-shot pruning.

Wanda and SparseGPT draw 128 of them from C4, at random places of random documents that are long enough.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Literal

from torch import nn

from ecoflap.core.contracts.adapter_answers import max_length_of
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, Note
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, first_of, nearest
from ecoflap.core.text.strict_yaml import described
from ecoflap.plugins.datasets.shared.portions import Portion, portion_bounds, portion_problem
from ecoflap.plugins.datasets.shared.stored_tables import (
    HubOrPath,
    Stored,
    files_of_dataset,
    is_saved,
    is_stored,
    library_problem,
    missing_dataset,
)
from ecoflap.plugins.datasets.shared.text_files import (
    json_lines,
    missing_path,
    named_problems,
    read_text,
)
from ecoflap.plugins.datasets.shared.token_windows import Begin, TokenWindows

PLAIN, LINES = (".txt", ".md"), (".jsonl", ".json")
"""Endings of files that are one document, and of those with one a line."""
TABLES = (".parquet", ".arrow", ".csv", ".tsv")
"""Endings of files that may hold text and are not read: whoever names a folder of them hears of it."""
LONG = 64_000_000
"""Bytes of text that are read, and in consecutive order tokenised, in about half a minute."""
USUAL_LENGTH = 2048
"""Tokens in a window at most, where nothing else is said: as many as the pruning literature takes."""


@hookimpl
def ecoflap_register_datasets() -> Mapping[str, type["Text"]]:
    return {"text": Text}


@dataclass(frozen=True)
class Text:
    """Yield token windows of equal length from documents: by default from the Wikipedia articles that ship.

    A ``.txt`` or ``.md`` file is one document; each line of a ``.jsonl`` or ``.json`` file is one, an object with its
    text under ``column``; any of them may be ``.gz``. Tokens are those of the model's own tokenizer, and each window
    begins as it begins a text.

    :param path: Files, or folders that are searched for them in alphabetical order.
    :param dataset: A data set of the Hugging Face hub instead, or a local one by a path that begins with ``/``, ``./``,
        ``../`` or ``~``, with its ``config`` and ``split``; needs ``datasets``.
    :param column: Where the text is in a data set, or in a line of JSON.
    :param samples: How many windows it yields; None for all there are, which random order has not.
    :param sequence_length: Tokens in a window, with those that begin it; None for the model's longest, but 2048 at
        most.
    :param seed: Seed of the random choice, which is the same on every machine.
    :param order: ``random`` takes a window at a random place of a random document that is long enough, or of all
        documents joined where none is. ``consecutive`` joins all documents by an empty line and cuts them from the
        start, without overlap, as perplexities are reported. ``spread`` takes ``samples`` of those windows that lie
        evenly over the text.
    :param bos: What every window begins with. ``auto`` is what the tokenizer itself puts at the beginning of a text,
        such as ``<bos>`` of Gemma and LLaMA, and nothing for SmolLM2 or T5; True its begin token in any case; False
        nothing, as the code of Wanda and SparseGPT cuts its windows.
    :param portion: The share of the documents to use: calibrate on ``[0, 0.7]`` and evaluate on ``[0.7, 1]``.
    """

    path: tuple[Path, ...] | Path | None = None
    dataset: HubOrPath | None = None
    config: str | None = None
    column: str = "text"
    split: str = "train"
    samples: int | None = 128
    sequence_length: int | None = None
    seed: int = 0
    order: Literal["random", "consecutive", "spread"] = "random"
    portion: Portion = (0.0, 1.0)
    bos: Begin = "auto"

    def __call__(self, adapter: Adapter, model: nn.Module, note: Note) -> Iterator[Sample]:
        wrong = [*self._wrong_parameters()]
        if wrong:
            raise DataError(*wrong)
        windows = TokenWindows.of(adapter, self.bos, self.tokens_per_sample(max_length_of(adapter, model)))
        with named_problems("text"):
            documents = self._portion(self._documents(note))
        for passed_over in filter(None, map(_passed_over, self._paths())):
            note(passed_over)
        if self.order == "random":
            assert self.samples is not None  # _wrong_parameters() has seen to it
            cut = windows.random(documents, self.samples, self.seed, note)
        else:
            cut = windows.consecutive(documents, self.samples, spread=self.order == "spread")
        yield from (Sample(tokens=window) for window in cut)

    @property
    def fetches(self) -> bool:
        """Say whether the text may come over a network."""
        return isinstance(self.dataset, str)

    @property
    def slow_to_begin(self) -> bool:
        """Say whether there is so much text that reading it takes long: the first window is drawn from all of it."""
        return sum(file.stat().st_size for file in self.files()) > LONG

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say what is wrong with the parameters, and which files are missing."""
        return self._wrong_parameters()

    def files(self) -> Iterator[Path]:
        """Name every file that is read, so that a change of any is seen."""
        named = (file for path in self._paths() if path.exists() for file in _files(path))
        return chain(named, files_of_dataset(self.dataset))

    def tokens_per_sample(self, longest: int | None) -> int:
        """Tell how many tokens a window has.

        :param longest: The longest text that the model takes, in tokens; None where it has no limit.
        :raises DataError: Where a longer window is asked for.
        """
        if self.sequence_length is None:
            return min(USUAL_LENGTH, longest or USUAL_LENGTH)
        if longest is not None and self.sequence_length > longest:
            raise DataError(
                f"text: sequence_length is {self.sequence_length}; this model reads {longest} tokens at most."
            )
        return self.sequence_length

    def _wrong_parameters(self) -> Iterator[str]:
        problems = [*self._wrong_numbers(), *(problem for path in self._paths() for problem in _problems_of(path))]
        return (f"text: {problem}" for problem in problems)

    def _wrong_numbers(self) -> Iterator[str]:
        if self.path is not None and self.dataset is not None:
            yield "path and dataset exclude each other."
        if self.dataset is not None:
            yield from filter(None, [library_problem("dataset"), missing_dataset(self.dataset)])
        if self.samples is None and self.order == "random":
            yield "samples is needed in random order; without it, set order: consecutive."
        if self.samples is not None and self.samples < 1:
            yield f"samples is {self.samples}; at least 1 is needed."
        if self.sequence_length is not None and self.sequence_length < 2:
            yield f"sequence_length is {self.sequence_length}; at least 2 tokens are needed to predict one."
        yield from filter(None, [portion_problem(self.portion)])

    def _paths(self) -> tuple[Path, ...]:
        if self.path is None:
            shipped = Path(str(files("ecoflap") / "recipes" / "data" / "wikipedia.jsonl"))
            return (shipped,) if self.dataset is None else ()
        return self.path if isinstance(self.path, tuple) else (self.path,)

    def _documents(self, note: Note) -> list[str]:
        """Read all documents that are not blank."""
        if self.dataset is not None:
            return _documents_of(Stored.of_hub(self.dataset, self.config, self.split), self.column, note)
        found = [text for path in self._paths() for file in _files(path) for text in _read(file, self.column)]
        documents = [text for text in found if text.strip()]
        if not documents:
            raise DataError(f"no text in {', '.join(map(str, self._paths()))}.")
        return documents

    def _portion(self, documents: Sequence[str]) -> Sequence[str]:
        start, end = portion_bounds(self.portion, len(documents))
        if start == end:
            raise DataError(
                f"portion {list(self.portion)} of {len(documents)} document(s) holds none. A .txt file is one "
                "document; give several files, or a .jsonl file with a document a line."
            )
        return documents[start:end]


def _suffix(file: Path) -> str:
    """Give a file's ending before ``.gz``, in lower case."""
    return Path(file.name.lower().removesuffix(".gz")).suffix


def _files(path: Path) -> list[Path]:
    """List the files that are read of a path."""
    if path.is_file():
        return [path]
    return _files_with(PLAIN + LINES, path)


def _files_with(endings: Sequence[str], folder: Path) -> list[Path]:
    """List files in a folder and its subfolders, without what has a name that begins with a dot."""
    found = (file for file in sorted(folder.rglob("*")) if _suffix(file) in endings and file.is_file())
    return [file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def _passed_over(path: Path) -> str | None:
    """Say which tables of a folder are not read, beside the files that are; None where there are none."""
    tables = _files_with(TABLES, path)  # none of a path that is a file
    if not tables:
        return None
    read, left_out = (first_of([str(file.relative_to(path)) for file in found]) for found in (_files(path), tables))
    return f"text: of the folder {path} only {read} is read, and not {left_out}: tables are read by dataset: {path}"


def _problems_of(path: Path) -> Iterator[str]:
    """Say why nothing can be read of a path."""
    known = ", ".join(PLAIN + LINES)
    if not path.exists():
        yield missing_path(path)
    elif is_stored(path) if path.is_file() else is_saved(path):
        yield f"{path} is a table: it is read by dataset: {path} in place of path."
    elif path.is_file() and _suffix(path) not in PLAIN + LINES:
        yield f"{path} is of a kind that is not read. Known: {known}, and each of these with .gz."
    elif not _files(path):
        yield f"the folder {path} holds no text. Known: {known}, and each of these with .gz."


def _read(file: Path, column: str) -> Iterator[str]:
    """Read the documents of a file."""
    if _suffix(file) in PLAIN:
        yield read_text(file)
        return
    for number, row in json_lines(file):
        where = f"{file}:{number}"
        if column not in row:
            raise DataError(_no_column(column, list(row), where))
        if not isinstance(row[column], str):
            raise DataError(
                f"{where} has no text in column {column!r}: it holds {described(row[column])}. Mend the line, or name "
                f"the right one by column. Known: {', '.join(row)}."
            )
        yield row[column]


def _documents_of(stored: Stored, column: str, note: Note) -> list[str]:
    """Read the documents of a data set that are not blank; rows of a hub's that hold none are for nobody to mend."""
    table = stored.load()
    if column not in table.column_names:
        raise DataError(_no_column(column, table.column_names, stored.where))
    texts = list(table[column])
    documents = [text for text in texts if isinstance(text, str) and text.strip()]
    if not documents:
        raise DataError(f"{stored.where} holds no text in column {column!r}.")
    nothing = sum(text is None for text in texts)
    if nothing:
        note(f"text: {nothing} of {len(texts)} rows of {stored.where} hold nothing in {column!r}, and are left out")
    return documents


def _no_column(column: str, columns: list[str], where: str) -> str:
    return f"{where} has no text in column {column!r}.{nearest(column, columns)} Known: {', '.join(columns)}."
