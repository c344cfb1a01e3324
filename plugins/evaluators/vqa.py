"""Visual question answering: how many questions about images a model answers as people do. The paper's main measure."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from torch import nn

from ecoflap.core.contracts.abilities import Generates, Generation, Said
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Adapter, Dataset
from ecoflap.core.contracts.records import Measure, Sample
from ecoflap.plugins.evaluators.shared.generating import complete, image_of, mean, refuse_settings, said_of
from ecoflap.plugins.evaluators.shared.vqa_answers import ANNOTATORS, accuracy, consensus

PLACE = "{}"


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["Vqa"]]:
    return {"vqa": Vqa}


@dataclass(frozen=True)
class Vqa:
    """VQA accuracy, from 0 to 1, of the texts that a model makes; and the share of them that it ended itself.

    With ten answers or more to a question these are the official scorer's numbers (:mod:`vqa_answers`); with fewer, as
    of GQA, an answer is right if it is one of them in the scorer's wording. The standard error takes images as
    independent, and the questions on one image together. The settings are those of the paper and of LAVIS, whose
    ``min_len`` of 1 counts the token that a decoder begins with, and so lets it say nothing.

    :param data: Images with questions and answers, such as ``{use: image_question_answer, samples: null}``.
    :param prompt: What the model reads, with the question in place of ``{}``.
    :param num_beams: How many beginnings are gone on with; 1 takes the likeliest token each time.
    :param max_new_tokens: Where a text is broken off that does not end by itself.
    :param min_new_tokens: Before this many it may not end.
    :param length_penalty: A beam's log-likelihood is divided by its length to this power; below 0 prefers short ones.
    :param batch_size: Questions that are answered at a time.
    :param score: ``text``, or ``tokens``: right is what begins with the tokens of an answer. A model that goes on after
        its answer, as one may that has lost the token which ends a text, then loses nothing by it.
    :param by: ``kind`` for a measure of its own for each kind of question that the data tell apart.
    """

    data: Dataset
    prompt: str = "Question: {} Short answer:"
    num_beams: int = 5
    max_new_tokens: int = 10
    min_new_tokens: int = 0
    length_penalty: float = -1.0
    batch_size: int = 16
    score: Literal["text", "tokens"] = "text"
    by: Literal["kind"] | None = None
    notes: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    wants: ClassVar = Generates

    def __post_init__(self) -> None:
        if self.prompt.count(PLACE) != 1:
            raise ValueError(
                f"prompt is {self.prompt!r}; it is to hold {PLACE} once, where the question goes, such as "
                f"'Question: {PLACE} Short answer:'"
            )
        refuse_settings(self._generation, self.batch_size)

    def __call__(self, model: nn.Module, adapter: Adapter) -> Mapping[str, Measure]:
        answers = [*self._answers(model, adapter)]
        rights, ended, images, kinds = zip(*((a.right, a.ended, a.image, a.kind) for a in answers), strict=True)
        silent = sum(answer.is_empty for answer in answers)
        self.notes[:] = [f"{silent} of {len(answers)} answers are empty, and count as wrong."] if silent else []
        found = {"vqa": mean(rights, images, "questions"), "vqa ended": mean(ended, images, "questions")}
        for kind in sorted(set(filter(None, kinds))) if self.by else ():
            own = [answer for answer in answers if answer.kind == kind]
            found[f"vqa {kind}"] = mean([a.right for a in own], [a.image for a in own], "questions")
        return found

    @property
    def _generation(self) -> Generation:
        return Generation(self.max_new_tokens, self.min_new_tokens, self.num_beams, self.length_penalty)

    def _answers(self, model: nn.Module, adapter: Any) -> Iterator["Answer"]:
        samples = complete("vqa", self.data(adapter, model), self.batch_size, self._lacks)
        pairs = said_of("vqa", model, adapter, samples, self._generation, self.batch_size, self._asked)
        for number, (sample, said) in enumerate(pairs):
            right = self._right(adapter, sample, said)
            yield Answer(right, float(said.ended), not said.text, image_of(sample, number), sample.kind)

    def _lacks(self, sample: Sample) -> str | None:
        if not sample.question:
            return "question"
        if not any(answer.strip() for answer in sample.answers):
            return "answer"
        return "kind, and by asks for measures by kind" if self.by and sample.kind is None else None

    def _asked(self, sample: Sample) -> Sample:
        return replace(sample, question=self.prompt.replace(PLACE, str(sample.question)))

    def _right(self, adapter: Any, sample: Sample, said: Said) -> float:
        if self.score == "text":
            return accuracy(said.text, sample.answers)
        own = [adapter.tokens_of(answer) for answer in sample.answers]
        begins = [bool(tokens) and said.tokens[: len(tokens)] == tokens for tokens in own]
        return consensus(begins) if len(begins) >= ANNOTATORS else float(any(begins))


@dataclass(frozen=True)
class Answer:
    """What is kept of one question.

    :param right: From 0 to 1.
    :param ended: 1 where the model ended its text itself, else 0.
    :param image: What questions on one image have in common.
    """

    right: float
    ended: float
    is_empty: bool
    image: Hashable
    kind: str | None
