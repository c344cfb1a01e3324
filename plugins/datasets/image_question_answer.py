"""Images with a question and its answers, as VQAv2, GQA and OK-VQA have them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ecoflap.core.hookspecs import hookimpl
from ecoflap.core.parts import Sample
from ecoflap.plugins.datasets.flaws import Flaw
from ecoflap.plugins.datasets.image_tables import Row
from ecoflap.plugins.datasets.indexed_images import IMAGE, IndexedImages, words_of


@hookimpl
def ecoflap_register_datasets() -> Mapping[str, type["ImageQuestionAnswer"]]:
    return {"image_question_answer": ImageQuestionAnswer}


@dataclass(frozen=True)
class ImageQuestionAnswer(IndexedImages):
    """Images, questions and answers from an index or from a data set of the hub.

    :param path: An index (``.jsonl``, ``.json``, ``.csv``), or a folder with one: ``index.jsonl``, ``index.json``,
        ``index.csv``, ``metadata.jsonl`` or ``metadata.csv``.
    :param images: The folder that the index names images relative to, where it is not its own.
    :param dataset: A data set of the Hugging Face hub instead, with its ``config`` and ``split``; needs ``datasets``.
    :param columns: Where they are not ``image`` (or ``file_name``), ``question`` and ``answers`` (or ``answer``):
        ``{answers: multiple_choice_answer}``. Answers are one text, a list of texts, or of ``{"answer": text}``, as
        VQAv2 has the ten of its annotators; all of them are kept, in their order.
    :param samples: How many; None for all there are.
    :param order: ``random``: without replacement, for many indexes are sorted by image. ``first``: from the first row
        on.
    :param seed: Of the random order, which is the same on every machine.
    :param portion: The share of the rows to use: calibrate on ``[0, 0.7]`` and evaluate on ``[0.7, 1]``. Which rows
        these are depends on neither order nor seed. An image with several questions may be in both.
    :param skip: Which rows to pass over and draw others for, instead of an error: ``missing`` files, ``unreadable``
        images, ``empty`` questions or answers; true for all of these.
    """

    name: ClassVar[str] = "image_question_answer"
    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "image": IMAGE,
        "question": ("question",),
        "answers": ("answers", "answer"),
    }
    empty: ClassVar[str] = "have no question or no answer"

    def _rest(self, row: Row) -> Sample:
        questions, answers = words_of(row, "question"), words_of(row, "answers")
        if not questions or not answers:
            raise Flaw("empty", f"{row.where} (no {'question' if not questions else 'answer'})")
        if len(questions) > 1:
            raise Flaw("malformed", f"{row.where} (it holds {len(questions)} questions)")
        return Sample(question=questions[0], answers=tuple(answers))
