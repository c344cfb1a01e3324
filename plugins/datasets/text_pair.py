"""The dataset ``text_pair`` yields texts with what is said of each: prompts and answers, or translations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Sample
from ecoflap.plugins.datasets.shared.image_tables import Row
from ecoflap.plugins.datasets.shared.indexed_rows import IndexedRows
from ecoflap.plugins.datasets.shared.row_texts import texts_of
from ecoflap.plugins.datasets.shared.unusable_rows import RowTally, UnusableRow


@hookimpl
def ecoflap_register_datasets() -> Mapping[str, type["TextPair"]]:
    return {"text_pair": TextPair}


@dataclass(frozen=True)
class TextPair(IndexedRows):
    """Yield texts with what is said of each, for a model that reads one text and says another.

    A translation model needs such pairs: a text of one language cannot be cut into what it reads and what it says.

    :param path: A ``.jsonl`` file (an object a line), a ``.json`` file (a list of objects) or a ``.csv`` file with a
        header; or a folder with one, ``index.jsonl`` or another of the names that the image datasets know. Or parquet
        files, or what ``save_to_disk`` wrote; needs ``datasets``.
    :param dataset: A data set of the Hugging Face hub instead, or a local one by a path that begins with ``/``, ``./``,
        ``../`` or ``~``, with its ``config`` and ``split``; needs ``datasets``.
    :param columns: Names of the columns, where they are not ``question`` (or ``source``, ``input``, ``prompt``) and
        ``answers`` (or ``answer``, ``target``, ``output``, ``completion``): ``{question: en, answers: de}``. Of several
        answers the first is what the model is to say.
    :param samples: How many pairs it yields; None for all there are.
    :param order: ``random`` draws without replacement. ``first`` takes the rows from the first on.
    :param seed: Seed of the random order, which is the same on every machine.
    :param portion: The share of the rows to use: calibrate on ``[0, 0.7]`` and evaluate on ``[0.7, 1]``. Which rows
        these are depends on neither order nor seed.
    """

    name: ClassVar[str] = "text_pair"
    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "question": ("question", "source", "input", "prompt"),
        "answers": ("answers", "answer", "target", "output", "completion"),
    }

    def _new_tally(self) -> RowTally:
        return RowTally(self.name, {"malformed": "hold no pair of texts"}, ())

    def _at_a_glance(self, row: Row) -> Sample:
        """Make a sample of a row.

        :raises UnusableRow: Where it lacks one of the texts, or holds several to be read.
        """
        questions, answers = texts_of(row, "question"), texts_of(row, "answers")
        if len(questions) != 1 or not answers:
            lacking = "its answers are empty" if len(questions) == 1 else f"it holds {len(questions)} questions"
            raise UnusableRow("malformed", f"{row.where} ({lacking})")
        return Sample(question=questions[0], answers=tuple(answers))
