"""The evaluator ``vqa`` tells how many questions about images a model answers as people do.

    accuracy of an answer = min(1, matches / 3), averaged over the ten ways to leave one of ten people out

It is the paper's main measure. Antol et al., VQA: Visual Question Answering, ICCV 2015.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import nn

from ecoflap.core.contracts.abilities import Generates, Generation, Said
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Adapter, Dataset, Note
from ecoflap.core.contracts.records import Answered, Measure, Sample
from ecoflap.core.errors import EcoflapError, refuse_below_one
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.plugins.evaluators.shared.batches import complete
from ecoflap.plugins.evaluators.shared.checks import check_ability, check_generation
from ecoflap.plugins.evaluators.shared.means import image_of, mean_over_images
from ecoflap.plugins.evaluators.shared.model_calls import shared_texts
from ecoflap.plugins.evaluators.shared.vqa_answers import ANNOTATORS, accuracy, consensus, normalised

PLACE = "{}"
"""Where the question goes in the prompt."""


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["Vqa"]]:
    return {"vqa": Vqa}


@dataclass(frozen=True)
class Vqa:
    """Measure VQA accuracy, from 0 to 1, of the texts that a model makes, and the share of them that it ended itself.

    With ten answers or more to a question these are the official scorer's numbers (:mod:`vqa_answers`); with fewer, as
    of GQA, an answer is right if it is one of them in the scorer's wording. The standard error takes images as
    independent, and the questions on one image together. The settings are those of the paper and of LAVIS, whose
    ``min_len`` of 1 counts the token that a decoder begins with, and so lets it say nothing.

    :param data: Images with questions and answers, such as ``{use: image_question_answer, samples: null}``.
    :param prompt: What the model reads, with the question in place of ``{}``.
    :param num_beams: How many beginnings are gone on with; 1 takes the likeliest token each time.
    :param max_new_tokens: After how many tokens a text is broken off that does not end by itself.
    :param min_new_tokens: Before how many tokens it may not end.
    :param length_penalty: A beam's log-likelihood is divided by its length to this power; below 0 prefers short ones.
    :param batch_size: How many questions are answered at a time.
    :param score: By ``text``, or by ``tokens``: right is then what begins with the tokens of an answer. A model that
        goes on after its answer, as one may that has lost the token which ends a text, loses nothing by that.
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

    wants: ClassVar[type[Any]] = Generates

    def __post_init__(self) -> None:
        if self.prompt.count(PLACE) != 1:
            raise EcoflapError(
                f"prompt is {self.prompt!r}; it is to hold {PLACE} once, where the question goes, such as "
                f"'Question: {PLACE} Short answer:'"
            )
        check_generation(self._generation)
        refuse_below_one("batch_size", self.batch_size)

    def __call__(self, model: nn.Module, adapter: Adapter, note: Note) -> Mapping[str, Measure]:
        return self.dealt(model, adapter, note, ALONE)

    def dealt(self, model: nn.Module, adapter: Adapter, note: Note, ranks: Ranks) -> Mapping[str, Measure]:
        """Measure as the call does, each process having some of the questions answered."""
        answers = self._answers(model, adapter, note, ranks)
        silent = sum(answer.is_empty for answer in answers)
        if silent:
            note(f"{silent} of {len(answers)} answers are empty, and count as wrong.")
        images = [answer.image for answer in answers]
        ended = mean_over_images([answer.ended for answer in answers], images, "questions")
        found = {"vqa": _accuracy(answers), "vqa ended": ended}
        for kind in sorted({answer.kind for answer in answers if answer.kind}) if self.by else ():
            name = f"vqa {kind}"
            while name in found:  # the data may call a kind as another measure is called
                name = name.replace("vqa ", "vqa kind ", 1)
            found[name] = _accuracy([answer for answer in answers if answer.kind == kind])
        return found

    def answers(self, model: nn.Module, adapter: Adapter, note: Note) -> Iterator[Answered]:
        """Give what the model answers to each question, in the official scorer's wording, right or not."""
        return (Answered(answer.said, answer.image) for answer in self._answers(model, adapter, note, ALONE))

    @property
    def _generation(self) -> Generation:
        return Generation(self.max_new_tokens, self.min_new_tokens, self.num_beams, self.length_penalty)

    def _answers(self, model: nn.Module, adapter: Any, note: Note, ranks: Ranks) -> list["Answer"]:
        """Let the model answer every question."""
        check_ability("vqa", Generates, adapter, model)
        samples = complete("vqa", self.data(adapter, model, note), self.batch_size, self.lacks)
        asked = (replace(one, question=self.prompt.replace(PLACE, str(one.question))) for one in samples)

        def judged(number: int, sample: Sample, said: Said) -> Answer:
            right, wording = self._right(model, adapter, sample, said), normalised(said.text)
            return Answer(wording, right, float(said.ended), not said.text, image_of(sample, number), sample.kind)

        return shared_texts(model, adapter, asked, self._generation, self.batch_size, judged, ranks)

    def lacks(self, sample: Sample) -> str | None:
        """Name what a sample is without: a question, an answer, or a kind where measures are by kind."""
        if not sample.question:
            return "question"
        if not any(answer.strip() for answer in sample.answers):
            return "answer"
        return "kind, and by asks for measures by kind" if self.by and sample.kind is None else None

    def _right(self, model: nn.Module, adapter: Any, sample: Sample, said: Said) -> float:
        """Tell how right an answer is, from 0 to 1."""
        if self.score == "text":
            return accuracy(said.text, sample.answers)
        own = [adapter.tokens_of(model, answer) for answer in sample.answers]
        begins = [bool(tokens) and said.tokens[: len(tokens)] == tokens for tokens in own]
        return consensus(begins) if len(begins) >= ANNOTATORS else float(any(begins))


@dataclass(frozen=True)
class Answer:
    """Holds what is remembered of one question.

    :param said: The model's text in the scorer's wording.
    :param right: How right it was, from 0 to 1.
    :param ended: 1 where the model ended its text itself, else 0.
    :param is_empty: Whether it said nothing.
    :param image: What questions on one image have in common.
    :param kind: What the data sort the question under.
    """

    said: str
    right: float
    ended: float
    is_empty: bool
    image: Hashable
    kind: str | None


def _accuracy(answers: list[Answer]) -> Measure:
    return mean_over_images([answer.right for answer in answers], [answer.image for answer in answers], "questions")
