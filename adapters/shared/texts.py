"""The texts of image-text pairs as token ids, through a tokenizer of transformers."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ecoflap.adapters.shared.rows import padded_rows
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError

NO_LIMIT = 10**6  # transformers writes a number far above this where a tokenizer has none


def texts_of(processor: Any, samples: Sequence[Sample], limit: int | None = None) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask``, padded on the right to the longest; empty where no sample has a text.

    :param processor: One with a tokenizer; texts are left unread where it has none, as that of a vision model.
    :param limit: Texts are cut to so many tokens; None takes the tokenizer's own limit.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    texts = [sample.text for sample in samples if sample.text is not None]
    if tokenizer is None or not texts:
        return {}
    if len(texts) < len(samples):
        raise DataError(f"{len(samples) - len(texts)} of {len(samples)} samples have no text: give all of them one.")
    limit = limit or tokenizer.model_max_length
    windows = (tokenizer(texts, truncation=True, max_length=limit) if limit < NO_LIMIT else tokenizer(texts)).input_ids
    if not all(windows):
        raise DataError("a text has no tokens: its tokenizer must put one at its beginning or end.")
    input_ids, mask = padded_rows(windows, padding_token(tokenizer))
    return {"input_ids": input_ids, "attention_mask": mask}


def padding_token(tokenizer: Any) -> int:
    """:raises DataError: Where the tokenizer has none."""
    if tokenizer.pad_token_id is None:
        raise DataError(f"the {type(tokenizer).__name__} has no padding token: set its pad_token.")
    return int(tokenizer.pad_token_id)
