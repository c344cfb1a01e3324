"""The dataset ``image_question_answer`` yields images with a question and its answers, as VQAv2 and GQA have them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError
from ecoflap.plugins.datasets.shared.image_tables import Row, Table
from ecoflap.plugins.datasets.shared.indexed_images import IMAGE, IndexedImages
from ecoflap.plugins.datasets.shared.published_files import GQA, VQA, Entries, recognised
from ecoflap.plugins.datasets.shared.question_files import gqa_entries, pattern_problem, vqa_entries
from ecoflap.plugins.datasets.shared.row_texts import texts_of
from ecoflap.plugins.datasets.shared.text_files import missing_path
from ecoflap.plugins.datasets.shared.unusable_rows import UnusableRow


@hookimpl
def ecoflap_register_datasets() -> Mapping[str, type["ImageQuestionAnswer"]]:
    return {"image_question_answer": ImageQuestionAnswer}


@dataclass(frozen=True)
class ImageQuestionAnswer(IndexedImages):
    """Yield images, questions and answers from an index, from published files, or from a data set of the hub.

    :param path: An index (``.jsonl``, ``.json``, ``.csv``), or a folder with one: ``index.jsonl``, ``index.json``,
        ``index.csv``, ``metadata.jsonl`` or ``metadata.csv``. Or the JSON file of the questions of VQAv2, OK-VQA or
        GQA. Or parquet files, or what ``save_to_disk`` wrote; needs ``datasets``.
    :param annotations: The JSON file with the answers to VQAv2's or OK-VQA's questions.
    :param images: The folder that the index names images relative to, where it is not the index's own.
    :param image_name: What image files are called, for questions that have their numbers alone:
        ``"COCO_val2014_{image_id:012d}.jpg"``. Tried without it are that, with the ``data_subtype`` of the questions,
        then ``{image_id:012d}`` and ``{image_id}``, each with ``.jpg``, ``.png`` and ``.jpeg``.
    :param dataset: A data set of the Hugging Face hub instead, or a local one by a path that begins with ``/``, ``./``,
        ``../`` or ``~``, with its ``config`` and ``split``; needs ``datasets``.
    :param columns: Names of the columns, where they are not ``image`` (or ``file_name``), ``question`` and ``answers``
        (or ``answer``): ``{answers: multiple_choice_answer}``. Answers are one text, a list of texts, or of
        ``{"answer": text}``, as VQAv2 has the ten of its annotators; all of them are kept, in their order. ``id`` (or
        ``question_id``), ``image_id`` and ``kind`` (or ``answer_type``; of GQA the structural type) may be there:
        ``{kind: question_type}``.
    :param samples: How many samples it yields; None for all there are.
    :param order: ``random`` draws without replacement, because many indexes are sorted by image. ``first`` takes the
        rows from the first on.
    :param seed: Seed of the random order, which is the same on every machine.
    :param portion: The share of the rows to use: calibrate on ``[0, 0.7]`` and evaluate on ``[0.7, 1]``. Which rows
        these are depends on neither order nor seed. An image with several questions may be in both.
    :param skip: Which rows to pass over and draw others for, instead of an error: ``missing`` files, ``unreadable``
        images, ``empty`` questions or answers; true for all of these.
    """

    annotations: Path | None = None
    image_name: str | None = None

    name: ClassVar[str] = "image_question_answer"
    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "image": IMAGE,
        "question": ("question",),
        "answers": ("answers", "answer"),
        "id": ("id", "question_id"),
        "image_id": ("image_id", "imageId", "img_id"),
        "kind": ("kind", "answer_type", "types.structural"),
    }
    optional: ClassVar[tuple[str, ...]] = ("id", "image_id", "kind")
    empty: ClassVar[str] = "have no question or no answer"

    def _wrong_parameters(self) -> Iterator[str]:
        yield from super()._wrong_parameters()
        problem = pattern_problem(self.image_name) if self.image_name is not None else None
        if problem:
            yield problem
        if self.annotations is not None and not self.annotations.is_file():
            yield f"annotations: {missing_path(self.annotations)}"

    def _published(self, document: Any, file: Path) -> Entries:
        if recognised(document, file, (VQA, GQA)) is VQA:
            return vqa_entries(document, file, self.annotations, self.image_name)
        if self.annotations is not None:
            raise DataError(f"{file} holds GQA's questions with their answers. Leave annotations out.")
        return gqa_entries(document, file, self.image_name)

    def _table(self) -> Table:
        table = super()._table()
        unused = [name for name in ("annotations", "image_name") if getattr(self, name) is not None]
        if unused and not table.hint:
            verb = "belong" if len(unused) > 1 else "belongs"
            raise DataError(
                f"{self.name}: {' and '.join(unused)} {verb} with the question files of VQA, and {table.where} is "
                "none: its rows name their images and answers."
            )
        return table

    def _indexes(self) -> Iterator[Path]:
        yield from super()._indexes()
        yield from filter(None, [self.annotations])

    def _rest(self, row: Row) -> Sample:
        questions, answers = texts_of(row, "question"), texts_of(row, "answers", keep_blank=True)
        if not questions or not answers:
            raise UnusableRow("empty", f"{row.where} (no {'question' if not questions else 'answer'})")
        if len(questions) > 1:
            raise UnusableRow("malformed", f"{row.where} (it holds {len(questions)} questions)")
        return Sample(question=questions[0], answers=tuple(answers))
