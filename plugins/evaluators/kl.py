"""The evaluator ``kl`` tells how far what a pruned model says is from what the dense model said.

    KL = mean_x Σ_c p(c | x) · (log p(c | x) − log q(c | x))      p: the dense model, q: the pruned one

x are the positions that the adapter's loss is about, c the words of the vocabulary. In nats; 0 where nothing was lost.
Kullback & Leibler, On information and sufficiency, 1951. It is what ``distill`` minimises on the calibration data, and
Dutta et al., Accuracy is not all you need, NeurIPS 2024, measure compressed models by.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ecoflap.core.contracts.adapter_answers import max_length_of
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.options import DatasetOptions
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, Dataset, Note
from ecoflap.core.contracts.records import Measure, Sample
from ecoflap.core.errors import ModelError, refuse_below_one
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.core.refining.logits import kl_of_rows
from ecoflap.plugins.evaluators.shared.batches import batches
from ecoflap.plugins.evaluators.shared.means import mean_of_means
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

LOG_PROBABILITIES = "log-probabilities"
"""Begins the name under which a batch's log-probabilities are remembered."""


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["Kl"]]:
    return {"kl": Kl}


@dataclass(frozen=True)
class Kl:
    """Measure KL(dense ‖ pruned) over the vocabulary, in nats, by log-probabilities in float32.

    Those of the dense model are remembered, four bytes for each word of the vocabulary and each position that is looked
    at, and are in memory while the dense model is evaluated; so are the logits of one batch. Each batch counts by all
    its positions, whether looked at or not. The standard error takes batches as independent, which by default are
    single samples. Of the dense model itself there is no measure: it would be 0 whatever the model.

    :param data: What the model could be calibrated on, other samples of it.
    :param positions: At how many positions of a sample, spread evenly, the models are compared; None for all. Of a
        batch they are so many times its samples, spread over all its positions.
    :param batch_size: How many samples are looked at together.
    """

    data: Dataset
    positions: int | None = 32
    batch_size: int = 1

    def __post_init__(self) -> None:
        refuse_below_one("batch_size", self.batch_size)
        if self.positions is not None:
            refuse_below_one("positions", self.positions)

    @property
    def loss_batch_size(self) -> int:
        """Say how many samples the adapter's loss is given at a time."""
        return self.batch_size

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say where the model is known to have no logits."""
        return no_logits("kl", context.model, context.adapter)

    def remembered_bytes(self, context: PlanContext) -> int | None:
        """Multiply the most samples, positions and words; None where one of these shows only when the data are read."""
        data, words = options_of(DatasetOptions, self.data), _vocabulary(context.model)
        tokens = data.tokens_per_sample(max_length_of(context.adapter, context.model))
        limits = [one for one in (self.positions, tokens) if one is not None]
        return 4 * data.samples * min(limits) * words if data.samples and limits and words else None

    def remember(self, model: nn.Module, adapter: Adapter, note: Note) -> Mapping[str, Tensor]:
        """Give the dense model's log-probabilities and the targets, batch by batch."""

        def kept(number: int, said: SaidLogits) -> Mapping[str, Tensor]:
            logarithms = said.at(self._places(said)).log_softmax(-1).cpu()
            return {of_batch(TARGETS, number): said.targets, of_batch(LOG_PROBABILITIES, number): logarithms}

        found = shared_logits("kl", model, adapter, self._batches(model, adapter, note), kept)
        return {name: tensor for one in found for name, tensor in one.items()}

    def __call__(
        self, model: nn.Module, adapter: Adapter, note: Note, dense: Mapping[str, Tensor] | None = None
    ) -> Mapping[str, Measure]:
        return self.dealt(model, adapter, note, ALONE, dense)

    def dealt(
        self, model: nn.Module, adapter: Adapter, note: Note, ranks: Ranks, dense: Mapping[str, Tensor] | None = None
    ) -> Mapping[str, Measure]:
        """Measure as the call does, each process some of the batches."""
        there = given_dense("kl", dense)

        def compare(number: int, said: SaidLogits) -> tuple[float, int, int]:
            check_same_targets("kl", number, said, there)
            logits = said.at(self._places(said))
            rows = kl_of_rows(there[of_batch(LOG_PROBABILITIES, number)].to(logits.device), logits).double()
            if not rows.isfinite().all():
                raise ModelError(f"kl: the divergence of batch {number} is not finite; the model is broken.")
            return float(rows.mean()), len(said.targets), len(rows)

        found = shared_logits("kl", model, adapter, self._batches(model, adapter, note), compare, ranks)
        check_all_compared("kl", len(found), there)
        means, sizes, looked_at = zip(*found, strict=True)
        value, error = mean_of_means(means, sizes)
        return {"kl": Measure(value, sum(looked_at), error, "positions", larger_is_better=False)}

    def _batches(self, model: nn.Module, adapter: Adapter, note: Note) -> Iterator[list[Sample]]:
        return batches(self.data(adapter, model, note), self.batch_size)

    def _places(self, said: SaidLogits) -> Int64[Tensor, " places"]:
        """Choose positions of a batch, each the middle one of a run of about the same length."""
        there = len(said.targets)
        wanted = there if self.positions is None else min(there, self.positions * said.samples)
        return (2 * torch.arange(wanted) + 1) * there // (2 * wanted)


def _vocabulary(model: nn.Module) -> int | None:
    """Count the words that a model of transformers has logits of; None where that is not known."""
    try:
        head = model.get_output_embeddings()  # type: ignore[operator]
        return int(head.weight.shape[0])
    except (AttributeError, NotImplementedError):
        return None
