"""Adapt encoders of transformers that fill in masked words, such as BERT, which no family's own adapter claims."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

import torch
from jaxtyping import Bool, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.generic.generic_adapter import GenericAdapter
from ecoflap.adapters.generic.watching.examples import Inputs
from ecoflap.adapters.generic.watching.layers_seen import Texts
from ecoflap.adapters.generic.watching.probe import texts_alone
from ecoflap.adapters.shared.losses import IGNORED
from ecoflap.adapters.shared.text_batches import windows_of, within_vocabulary
from ecoflap.adapters.views.impossible import views_impossible
from ecoflap.adapters.views.masked_words import view_of_masked_lm
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Batch, Sample, View
from ecoflap.core.errors import DataError

SHARE = 0.15
"""How many of a text's tokens are masked, as BERT was trained (Devlin et al., NAACL 2019)."""


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["EncoderAdapter"]]:
    return {"encoder": EncoderAdapter}


class EncoderAdapter(GenericAdapter):
    """Adapts BERT, ModernBERT and their likes, with their head for masked words, from a hub id, a folder or memory.

    The loss is the cross entropy of words that are masked. Which these are follows from the text alone.
    """

    priority = -30
    _kind, _mapping = "AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Put windows of tokens side by side, padded on the right to the longest, with some of their words masked.

        :raises DataError: Where the tokenizer has no token for a masked word.
        """
        token = getattr(self.processor, "mask_token_id", None)
        if token is None:
            raise DataError(
                "this model fills in masked words and came without a tokenizer that has a mask_token: put "
                "tokenizer.json beside its config.json, or give ecoflap.run a processor."
            )
        batch = within_vocabulary(model, windows_of(samples))
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        is_masked = torch.stack([_masked(row, real) for row, real in zip(ids, mask, strict=True)])
        masked = ids.masked_fill(is_masked, token)
        return {**batch, "input_ids": masked, "labels": ids.masked_fill(~is_masked, IGNORED)}

    def predicted(self, model: nn.Module, batch: Batch) -> Bool[Tensor, "batch tokens"]:
        """Say which words are masked, of which the loss is the mean."""
        said: Tensor = batch["labels"] != IGNORED
        return said

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give ``encoder``."""
        return [view_of_masked_lm(model)]

    def views_refused(self, model: nn.Module, exporter: str) -> Mapping[str, str]:
        """Say where that cannot be written, and why."""
        return views_impossible(self.export_views(model), exporter, self.max_length(model))

    def _examples(self, model: nn.Module) -> Iterable[tuple[Inputs, Texts]]:
        return texts_alone(model, "encoder")

    def _targets(self, model: nn.Module, batch: Batch) -> Tensor:
        labels: Tensor = batch["labels"]
        return labels

    def _arguments(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return super()._arguments(model, {name: value for name, value in batch.items() if name != "labels"})

    def _tokens_said(self, model: nn.Module, batch: Batch) -> Int8[Tensor, "batch tokens"]:
        return self._tokens_read(model, batch)  # the head is given all of a text


def _masked(ids: Int64[Tensor, " tokens"], real: Bool[Tensor, " tokens"]) -> Bool[Tensor, " tokens"]:
    """Choose a share of a text's tokens, at least one, by the text alone, however it is padded."""
    text = ids[real]
    seed = int.from_bytes(sha256(text.numpy().tobytes()).digest()[:8], "little") >> 1
    order = torch.randperm(len(text), generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros_like(text, dtype=torch.bool)
    chosen[order[: max(1, round(SHARE * len(text)))]] = True
    found = torch.zeros_like(real)
    found[real] = chosen
    return found
