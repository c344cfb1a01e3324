"""Perplexity: how many tokens, on average, a language model hesitates between. Lower is better."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Adapter, Dataset
from ecoflap.core.contracts.records import Batch, Measure
from ecoflap.core.errors import DataError, ModelError

IGNORED = -100  # the mark of a label that is padding


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["Perplexity"]]:
    return {"perplexity": Perplexity}


@dataclass(frozen=True)
class Perplexity:
    """``exp`` of the mean negative log-likelihood of a token, over windows that are read one at a time.

    Each window is read without the text before it, as the pruning literature reports it. The standard error takes the
    windows as independent: perplexity times the standard error of their mean (the delta method).

    :param data: A dataset of token windows, such as ``{use: text, order: consecutive}``.
    """

    data: Dataset

    def __call__(self, model: nn.Module, adapter: Adapter) -> Mapping[str, Measure]:
        means: list[float] = []
        counts: list[int] = []
        for number, sample in enumerate(self.data(adapter, model)):
            if sample.tokens is None:
                raise DataError(
                    f"perplexity: sample {number} of its data holds no tokens; a dataset such as text does."
                )
            batch = adapter.collate([sample])
            with torch.no_grad():
                means.append(float(adapter.loss(model, batch)))
            counts.append(predicted(batch, len(sample.tokens)))
            if not math.isfinite(means[-1]):
                raise ModelError(f"perplexity: the loss of window {number} is {means[-1]}; the model is broken.")
        if not counts:
            raise DataError("perplexity: its data holds no window.")
        return {"perplexity": measure(means, counts)}


def predicted(batch: Batch, tokens: int) -> int:
    """How many tokens of a window the loss is the mean over.

    Where an encoder reads part of it, the decoder's labels say so. Otherwise it is all but the first.
    """
    labels = batch.get("labels")
    return tokens - 1 if labels is None else int((labels != IGNORED).sum())


def measure(means: Sequence[float], counts: Sequence[int]) -> Measure:
    """From each window's mean loss and number of predicted tokens."""
    mean, error = mean_of_means(means, counts)
    value = math.exp(mean)
    return Measure(value, n=sum(counts), standard_error=value * error, unit="tokens", larger_is_better=False)


def mean_of_means(means: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Over all that the means are over, with its standard error where the means are independent of each other."""
    number, total = len(means), sum(counts)
    mean = sum(m * n for m, n in zip(means, counts, strict=True)) / total
    spread = sum((n / total * (m - mean)) ** 2 for m, n in zip(means, counts, strict=True))
    return mean, math.sqrt(spread * number / (number - 1)) if number > 1 else math.inf
