"""The evaluator ``perplexity`` tells how many tokens, on average, a language model hesitates between.

    perplexity = exp(Σ −log p(token | those before it in its window) / number of tokens)

Lower is better.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Adapter, Dataset, Note
from ecoflap.core.contracts.records import Measure, Sample
from ecoflap.core.errors import DataError
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.plugins.evaluators.shared.means import mean_of_means
from ecoflap.plugins.evaluators.shared.model_calls import BatchLoss, predicted, shared_losses

_LARGEST = math.log(sys.float_info.max)
"""Nats whose exponential is a float still."""


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["Perplexity"]]:
    return {"perplexity": Perplexity}


@dataclass(frozen=True)
class Perplexity:
    """Measure ``exp`` of the mean negative log-likelihood of a token, over windows that are read one at a time.

    Each window is read without the text before it, as the pruning literature reports it. Its first token is read and
    never predicted: the begin token where the dataset puts one there, so that all of the text is predicted; otherwise
    the first of the text. The standard error takes the windows as independent: it is the perplexity times the standard
    error of their mean (the delta method).

    :param data: A dataset of token windows, such as ``{use: text, order: consecutive}``.
    """

    data: Dataset

    loss_batch_size: ClassVar[int] = 1

    def lacks(self, sample: Sample) -> str | None:
        """Say so where a sample has no tokens, which a dataset such as text gives."""
        return "tokens; a dataset such as text gives them" if sample.tokens is None else None

    def __call__(self, model: nn.Module, adapter: Adapter, note: Note) -> Mapping[str, Measure]:
        return self.dealt(model, adapter, note, ALONE)

    def dealt(self, model: nn.Module, adapter: Adapter, note: Note, ranks: Ranks) -> Mapping[str, Measure]:
        """Measure as the call does, each process some of the windows."""
        windows = _windows(self.data(adapter, model, note))

        def counted(window: BatchLoss) -> int:
            return int(predicted(model, adapter, window).sum())

        found = shared_losses("perplexity", model, adapter, windows, counted, ranks)
        if not found:
            raise DataError("perplexity: its data holds no window.")
        means, counts = zip(*found, strict=True)
        return {"perplexity": measure(means, counts)}


def _windows(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Yield each sample alone, which has to be a window of tokens."""
    for number, sample in enumerate(samples):
        if sample.tokens is None:
            raise DataError(f"perplexity: sample {number} of its data holds no tokens; a dataset such as text does.")
        yield [sample]


def measure(means: Sequence[float], counts: Sequence[int]) -> Measure:
    """Make the perplexity of each window's mean loss and number of predicted tokens."""
    mean, error = mean_of_means(means, counts)
    value = math.exp(mean) if mean < _LARGEST else math.inf
    return Measure(value, n=sum(counts), standard_error=value * error, unit="tokens", larger_is_better=False)
