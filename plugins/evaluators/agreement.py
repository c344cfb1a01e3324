"""The evaluator ``agreement`` tells how often a pruned model says the same as the dense model did.

    agreement = the share of positions, or of answers, at which the likeliest word, or the answer, is the dense model's

A model may answer as many questions rightly as before and yet answer many otherwise. Dutta et al., Accuracy is not all
you need, NeurIPS 2024, count "flips", answers that went from right to wrong or back; here one wrong answer in place of
another counts as well, and nobody has to know which is right. Between a student and its teacher it is known as top-1
agreement: Stanton et al., Does knowledge distillation really work?, NeurIPS 2021.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.options import EvaluatorOptions
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, Dataset, Evaluator, Note
from ecoflap.core.contracts.records import Answered, Measure, Sample
from ecoflap.core.errors import DataError, EcoflapError, refuse_below_one
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.plugins.evaluators.shared.batches import batches
from ecoflap.plugins.evaluators.shared.means import mean_of_means, mean_over_images
from ecoflap.plugins.evaluators.shared.said_logits import (
    TARGETS,
    SaidLogits,
    check_all_compared,
    check_same_targets,
    given_dense,
    no_logits,
    of_batch,
    shared_logits,
)

LIKELIEST = "likeliest"
"""Begins the name under which a batch's likeliest words are remembered."""
ANSWERS = "answers"
"""The name under which the SHA-256 of each answer is remembered, in their order."""


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["Agreement"]]:
    return {"agreement": Agreement}


@dataclass(frozen=True)
class Agreement:
    """Measure the share, from 0 to 1, of what a pruned model says that is what the dense model said.

    With ``data`` it looks at all positions that the adapter's loss is about, each after the words that the data have
    there, and compares the likeliest words; of two that are as likely the first counts. Of a vision model with labelled
    images these are classes. The standard error takes batches as independent, which by default are single samples.

    With ``of`` it compares the answers of another evaluator, whole texts or classes, and takes images as independent.
    Whether an answer is right does not matter. The measure is then called ``agreement of answers``. Of the dense model
    itself there is none: it would be 1.

    :param data: What the model could be calibrated on, other samples of it.
    :param of: An evaluator with single answers, in place of ``data``: ``vqa``, ``classification``, ``zero_shot``.
    :param batch_size: How many samples of ``data`` are looked at together.
    """

    data: Dataset | None = None
    of: Evaluator | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        refuse_below_one("batch_size", self.batch_size)
        if (self.data is None) == (self.of is None):
            given = "neither data nor of" if self.data is None else "both data and of"
            raise EcoflapError(
                f"it has {given}: give one, data for the likeliest words, or of: {{use: vqa, data: …}} for answers"
            )
        if self.of is not None and options_of(EvaluatorOptions, self.of).answers is None:
            raise EcoflapError(
                f"of is {type(self.of).__name__}, which gives no single answers. Evaluators that do are vqa, "
                f"classification, zero_shot, and any with a method answers; data looks at the likeliest words instead"
            )

    @property
    def loss_batch_size(self) -> int | None:
        """Say how many samples the adapter's loss is given at a time."""
        return None if self.data is None else self.batch_size

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say where the model is known to have no logits that ``data`` could be compared by."""
        if self.data is not None:
            yield from no_logits("agreement", context.model, context.adapter)

    def remember(self, model: nn.Module, adapter: Adapter, note: Note) -> Mapping[str, Tensor]:
        """Give the dense model's likeliest words and the targets, batch by batch; or a SHA-256 of each answer."""
        if self.of is not None:
            return {ANSWERS: _digests(self._answers(model, adapter, note))}

        def kept(number: int, said: SaidLogits) -> Mapping[str, Tensor]:
            return {of_batch(TARGETS, number): said.targets, of_batch(LIKELIEST, number): said.likeliest}

        found = shared_logits("agreement", model, adapter, self._batches(model, adapter, note), kept)
        return {name: tensor for one in found for name, tensor in one.items()}

    def __call__(
        self, model: nn.Module, adapter: Adapter, note: Note, dense: Mapping[str, Tensor] | None = None
    ) -> Mapping[str, Measure]:
        return self.dealt(model, adapter, note, ALONE, dense)

    def dealt(
        self, model: nn.Module, adapter: Adapter, note: Note, ranks: Ranks, dense: Mapping[str, Tensor] | None = None
    ) -> Mapping[str, Measure]:
        """Measure as the call does, each process some of the batches; answers are asked for by the first alone."""
        there = given_dense("agreement", dense)
        if self.of is not None:
            of_answers = ranks.first(lambda: _of_answers(self._answers(model, adapter, note), there[ANSWERS]))
            return {"agreement of answers": of_answers}

        def compare(number: int, said: SaidLogits) -> tuple[float, int]:
            check_same_targets("agreement", number, said, there)
            return float((said.likeliest == there[of_batch(LIKELIEST, number)]).double().mean()), len(said.targets)

        found = shared_logits("agreement", model, adapter, self._batches(model, adapter, note), compare, ranks)
        check_all_compared("agreement", len(found), there)
        shares, sizes = zip(*found, strict=True)
        value, error = mean_of_means(shares, sizes)
        return {"agreement": Measure(value, sum(sizes), error, "positions")}

    def _batches(self, model: nn.Module, adapter: Adapter, note: Note) -> Iterator[list[Sample]]:
        assert self.data is not None  # __post_init__ has seen to it
        return batches(self.data(adapter, model, note), self.batch_size)

    def _answers(self, model: nn.Module, adapter: Adapter, note: Note) -> list[Answered]:
        asked = options_of(EvaluatorOptions, self.of).answers
        assert asked is not None  # __post_init__ has seen to it
        found = list(asked(model, adapter, note))
        if not found:
            raise DataError(f"agreement: {type(self.of).__name__} gave no answer.")
        return found


def _of_answers(answers: list[Answered], dense: UInt8[Tensor, "answers 32"]) -> Measure:
    """Compare each answer with the dense model's.

    :param dense: The SHA-256 of each of its answers.
    """
    if len(answers) != len(dense):
        raise DataError(f"agreement: there are {len(answers)} answers, and the dense model gave {len(dense)}.")
    same = (_digests(answers) == dense).all(1).double().tolist()
    return mean_over_images(same, [one.image for one in answers], "answers")


def _digests(answers: Iterable[Answered]) -> UInt8[Tensor, "answers 32"]:
    digests = (sha256(str(one.answer).encode()).digest() for one in answers)
    return torch.tensor([list(digest) for digest in digests], dtype=torch.uint8)
