"""Perplexity: how many tokens, on average, a language model hesitates between. Lower is better."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ecoflap.core.errors import DataError, ModelError
from ecoflap.core.hookspecs import hookimpl
from ecoflap.core.parts import Adapter, Dataset, Measure


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
            with torch.no_grad():
                means.append(float(adapter.loss(model, adapter.collate([sample]))))
            counts.append(len(sample.tokens) - 1)  # the first token is not predicted
            if not math.isfinite(means[-1]):
                raise ModelError(f"perplexity: the loss of window {number} is {means[-1]}; the model is broken.")
        if not counts:
            raise DataError("perplexity: its data holds no window.")
        return {"perplexity": measure(means, counts)}


def measure(means: Sequence[float], counts: Sequence[int]) -> Measure:
    """From each window's mean loss and number of predicted tokens."""
    windows, tokens = len(means), sum(counts)
    mean = sum(m * n for m, n in zip(means, counts, strict=True)) / tokens
    spread = sum((n / tokens * (m - mean)) ** 2 for m, n in zip(means, counts, strict=True))
    error = math.sqrt(spread * windows / (windows - 1)) if windows > 1 else math.inf
    value = math.exp(mean)
    return Measure(value, n=tokens, standard_error=value * error, unit="tokens", larger_is_better=False)
