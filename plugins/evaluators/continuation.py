"""The evaluator ``continuation`` asks a language model which of several endings a text has.

    right = argmin_e loss(beginning + e) is the window's own ending      e: its own, and those of the windows after it

All endings have the same number of tokens and the same beginning, so that the least loss of the whole is the greatest
likelihood of the ending given the beginning, by which HellaSwag (Zellers et al., ACL 2019) and tasks like it choose.
There the wrong endings were written by a machine; here they are real text, and no more than a file of it is needed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Adapter, Dataset, Note
from ecoflap.core.contracts.records import Measure, Sample
from ecoflap.core.errors import DataError, EcoflapError, refuse_below_one
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.plugins.evaluators.shared.means import mean_over_images
from ecoflap.plugins.evaluators.shared.model_calls import batch_loss, predicted


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["Continuation"]]:
    return {"continuation": Continuation}


@dataclass(frozen=True)
class Continuation:
    """Measure the share, from 0 to 1, of windows of which the model finds their own ending the likeliest.

    Who guesses is right in one of ``choices``. A wrong ending is that of one of the windows that come next, and after
    the last come the first: with ``order: consecutive`` mostly one of the same article, which is harder to tell than
    one from elsewhere. An ending that is equal to the right one is passed over. Where two are as likely it counts as
    wrong. The standard error takes windows as independent.

    :param data: A dataset of token windows, such as ``{use: text, order: consecutive, sequence_length: 64}``.
    :param ending: How many tokens at the end of a window are chosen among.
    :param choices: Among how many endings.
    """

    data: Dataset
    ending: int = 16
    choices: int = 4

    loss_batch_size: ClassVar[int] = 1

    def __post_init__(self) -> None:
        refuse_below_one("ending", self.ending)
        if self.choices < 2:
            raise EcoflapError(f"choices is {self.choices}; at least 2 are needed to choose between")

    def lacks(self, sample: Sample) -> str | None:
        """Say so where a sample has too few tokens."""
        if sample.tokens is None:
            return "tokens; a dataset such as text gives them"
        return None if len(sample.tokens) > self.ending else f"beginning before its {self.ending} tokens of ending"

    def __call__(self, model: nn.Module, adapter: Adapter, note: Note) -> Mapping[str, Measure]:
        return self.dealt(model, adapter, note, ALONE)

    def dealt(self, model: nn.Module, adapter: Adapter, note: Note, ranks: Ranks) -> Mapping[str, Measure]:
        """Measure as the call does, each process some of the windows."""

        def is_right(numbered: tuple[int, list[Sample]]) -> bool:
            number, choices = numbered
            losses = [batch_loss("continuation", number, model, adapter, [one]) for one in choices]
            asked = predicted(model, adapter, losses[0])
            if not bool(asked[-self.ending :].all()):
                raise DataError(
                    f"continuation: of window {number} the model is not asked for all of the last {self.ending} "
                    f"tokens, as one that guesses masked words is not. Take perplexity."
                )
            if int(asked.sum()) < self.ending:
                raise DataError(
                    f"continuation: of window {number} the model predicts {int(asked.sum())} tokens and reads the "
                    f"others, so that an ending of {self.ending} is not all its own. Take longer windows."
                )
            right, *wrong = (one.loss for one in losses)
            return right < min(wrong)

        found = ranks.deal(enumerate(self._questions(list(self.data(adapter, model, note)))), is_right)
        return {"continuation": mean_over_images(list(map(float, found)), range(len(found)), "windows")}

    def _questions(self, windows: list[Sample]) -> Iterator[list[Sample]]:
        """Yield of each window itself, and then itself with each of the wrong endings."""
        for number, sample in enumerate(windows):
            lacking = self.lacks(sample)
            if lacking:
                raise DataError(f"continuation: sample {number} of its data has no {lacking}.")
        if len(windows) < self.choices:
            raise DataError(
                f"continuation: its data holds {len(windows)} window(s), of which {self.choices} endings cannot be "
                f"taken. Give it more samples, or fewer choices."
            )
        tokens = [sample.tokens for sample in windows if sample.tokens is not None]
        for number, window in enumerate(tokens):
            beginning, own = window[: -self.ending], window[-self.ending :]
            after = (one[-self.ending :] for one in [*tokens[number + 1 :], *tokens[:number]])
            wrong = [one for one in after if not torch.equal(one, own)][: self.choices - 1]
            if len(wrong) < self.choices - 1:
                raise DataError(
                    f"continuation: only {len(wrong)} window(s) end otherwise than window {number}, and "
                    f"{self.choices - 1} are needed. Give it other text, or fewer choices."
                )
            yield [windows[number], *(Sample(tokens=torch.cat([beginning, one])) for one in wrong)]
