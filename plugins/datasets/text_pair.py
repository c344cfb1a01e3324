"""The dataset ``text_pair`` yields texts with what is said of each: prompts and answers, or translations."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from torch import nn

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, Note
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, nearest
from ecoflap.plugins.datasets.shared.image_tables import Row, Table, index_table
from ecoflap.plugins.datasets.shared.portions import Portion, portion_problem, rows_in
from ecoflap.plugins.datasets.shared.published_files import Entries, recognised
from ecoflap.plugins.datasets.shared.row_texts import texts_of
from ecoflap.plugins.datasets.shared.stored_tables import Stored, is_stored, library_problem, stored_table
from ecoflap.plugins.datasets.shared.text_files import missing_path, named_problems
from ecoflap.plugins.datasets.shared.unusable_rows import RowTally, UnusableRow
from ecoflap.plugins.datasets.shared.wanted_columns import WantedColumns

NAME = "text_pair"
READS = {
    "question": ("question", "source", "input", "prompt"),
    "answers": ("answers", "answer", "target", "output", "completion"),
}
"""By what is read, the names that its column may have."""


@hookimpl
def ecoflap_register_datasets() -> Mapping[str, type["TextPair"]]:
    return {NAME: TextPair}


@dataclass(frozen=True)
class TextPair:
    """Yield texts with what is said of each, for a model that reads one text and says another.

    A translation model needs such pairs: a text of one language cannot be cut into what it reads and what it says.

    :param path: A ``.jsonl`` file (an object a line), a ``.json`` file (a list of objects) or a ``.csv`` file with a
        header. Or parquet files, or what ``save_to_disk`` wrote; needs ``datasets``.
    :param dataset: A data set of the Hugging Face hub instead, with its ``config`` and ``split``; needs ``datasets``.
    :param columns: Names of the columns, where they are not ``question`` (or ``source``, ``input``, ``prompt``) and
        ``answers`` (or ``answer``, ``target``, ``output``, ``completion``): ``{question: en, answers: de}``. Of several
        answers the first is what the model is to say.
    :param samples: How many pairs it yields; None for all there are.
    :param order: ``random`` draws without replacement. ``first`` takes the rows from the first on.
    :param seed: Seed of the random order, which is the same on every machine.
    :param portion: The share of the rows to use: calibrate on ``[0, 0.7]`` and evaluate on ``[0.7, 1]``. Which rows
        these are depends on neither order nor seed.
    """

    path: Path | None = None
    dataset: str | None = None
    config: str | None = None
    split: str = "train"
    columns: Mapping[str, str] | None = None
    samples: int | None = 128
    order: Literal["random", "first"] = "random"
    seed: int = 0
    portion: Portion = (0.0, 1.0)

    def __call__(self, adapter: Adapter, model: nn.Module, note: Note) -> Iterator[Sample]:
        wrong = [*self._wrong_parameters()]
        if wrong:
            raise DataError(*wrong)
        yield from self._walk()

    @property
    def fetches(self) -> bool:
        """Say whether the pairs may come over a network."""
        return self.dataset is not None

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say what is wrong with the parameters and the rows that are drawn. Nothing is fetched."""
        wrong = [*self._wrong_parameters()]
        yield from wrong
        if wrong or self.fetches:
            return
        try:
            for _ in self._walk():
                pass
        except DataError as error:
            yield from error.problems

    def files(self) -> Iterator[Path]:
        """Name every file that is read, so that a change of any is seen."""
        path = self.path if self.dataset is None else Path(self.dataset)
        if path is not None and path.is_dir():
            yield from (file for file in sorted(path.rglob("*")) if file.is_file())
        elif path is not None and path.exists():
            yield path

    def _wrong_parameters(self) -> Iterator[str]:
        return (f"{NAME}: {problem}" for problem in self._problems())

    def _problems(self) -> Iterator[str]:
        if (self.path is None) == (self.dataset is None):
            yield "either path or dataset is needed, and not both."
        stored = self.path is not None and is_stored(self.path)
        if stored or self.dataset is not None:
            yield from filter(None, [library_problem(f"{self.path}" if stored else "dataset")])
        if self.samples is not None and self.samples < 1:
            yield f"samples is {self.samples}; at least 1 is needed, or null for all there are."
        yield from filter(None, [portion_problem(self.portion)])
        for what in (what for what in self.columns or () if what not in READS):
            yield f"columns names {what!r}, which is not read.{nearest(what, READS)} Known: {', '.join(READS)}."

    def _table(self) -> Table:
        with named_problems(NAME):
            if self.dataset is not None:
                return stored_table(Stored.of_hub(self.dataset, self.config, self.split), Path(), self._columns)
            path = self.path
            assert path is not None  # _problems() has seen to it
            if not path.exists():
                raise DataError(missing_path(path))
            if is_stored(path):
                return stored_table(Stored(str(path), self.config, self.split, str(path)), Path(), self._columns)
            return index_table(path, None, self._columns, _published)

    def _columns(self, there: Sequence[str], where: str) -> dict[str, str]:
        return WantedColumns(READS, (), self.columns or {}).find(there, where)

    def _walk(self) -> Iterator[Sample]:
        """Yield the pairs that are drawn; after a row that is an error none, but all others that are one are named."""
        table = self._table()
        numbers = rows_in(self.portion, table.size)
        if len(numbers) < (self.samples or 1):
            way_out = f"Set samples: {len(numbers)}, or null for all there are; or give more." if numbers else ""
            raise DataError(
                f"{NAME}: {self.samples or 'all'} samples are asked for, and portion {list(self.portion)} of "
                f"{table.where} has {len(numbers)}. {way_out or 'Give more.'}"
            )
        if self.order == "random":
            Random(self.seed).shuffle(numbers)
        tally = RowTally(NAME, {"malformed": "hold no pair of texts"}, ())
        for number in numbers[: self.samples]:
            try:
                sample = _pair(table.row(number))
            except UnusableRow as found:
                tally.add(found)
                continue
            tally.usable += 1
            if not tally.refused:
                yield sample
        if tally.refused:
            raise DataError(*tally.errors())


def _pair(row: Row) -> Sample:
    """Make a sample of a row.

    :raises UnusableRow: Where it lacks one of the texts, or holds several to be read.
    """
    questions, answers = texts_of(row, "question"), texts_of(row, "answers")
    if len(questions) != 1 or not answers:
        lacking = "its answers are empty" if len(questions) == 1 else f"it holds {len(questions)} questions"
        raise UnusableRow("malformed", f"{row.where} ({lacking})")
    return Sample(question=questions[0], answers=tuple(answers))


def _published(document: Any, file: Path) -> Entries:
    """Refuse a JSON file that is no list, and say which dataset reads it, where one does."""
    recognised(document, file, ())
    raise AssertionError("unreachable")  # of no layout, everything is refused
