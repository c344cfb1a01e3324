"""Make token ids of texts: rows of unequal lengths in one tensor, and the texts of image-text pairs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int8, Int64
from torch import Tensor, nn

from ecoflap.core.contracts.records import Batch, Sample
from ecoflap.core.errors import DataError

OWN_TOKENIZER = "Put the model's own tokenizer.json beside its config.json."
NO_LIMIT = 10**6  # transformers writes a number far above this where a tokenizer has none


def first_said(sample: Sample) -> str | None:
    """Give the first answer that is not blank, or else the text; None where there is neither."""
    return next((answer for answer in sample.answers if answer.strip()), sample.text)


def padded_rows(
    rows: Sequence[Sequence[int]], fill: int = 0
) -> tuple[Int64[Tensor, "rows longest"], Int64[Tensor, "rows longest"]]:
    """Put rows of unequal lengths into one tensor, padded on the right to the longest.

    :param fill: What the padding holds.
    :return: The tensor, and a mask that is 1 where no padding is.
    """
    shape = len(rows), max(map(len, rows))
    padded, mask = torch.full(shape, fill, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[number, : len(row)] = 1
    return padded, mask


def in_groups(rows: Sequence[Sequence[int]], run: Callable[[list[int]], list[Any]]) -> list[Any]:
    """Run rows of one length together, and give what comes of each row in the rows' order.

    The positions of a row that is padded on the left would be others than those it has alone.

    :param run: Is given the numbers of some rows.
    """
    found: dict[int, Any] = {}
    for length in sorted({len(row) for row in rows}):
        numbers = [number for number, row in enumerate(rows) if len(row) == length]
        found |= dict(zip(numbers, run(numbers), strict=True))
    return [found[number] for number in range(len(rows))]


def row_tensor(rows: Sequence[Sequence[int]], device: torch.device) -> Int64[Tensor, "rows length"]:
    """Make a tensor of rows of one length."""
    return torch.tensor([list(row) for row in rows], dtype=torch.int64, device=device)


def check_lengths(lengths: Sequence[int], longest: int | None) -> None:
    """Refuse a batch with a text of which a model cannot read the end.

    :param lengths: How many tokens each text has, with those of its image.
    :param longest: How many the model has positions for; None where there is no limit.
    :raises DataError: With the first such text.
    """
    number = next((at for at, length in enumerate(lengths) if longest is not None and length > longest), None)
    if number is not None:
        raise DataError(
            f"text {number} of a batch is of {lengths[number]} tokens, and this model has positions for {longest}: "
            f"shorten that text, or leave it out."
        )


def texts_of(processor: Any, samples: Sequence[Sample], limit: int | None = None) -> dict[str, Tensor]:
    """Tokenise the samples' texts, and pad them on the right to the longest.

    :param processor: One that has a tokenizer. Without one, as that of a vision model, texts are left unread.
    :param limit: How many tokens of a text are read; None takes the tokenizer's own limit.
    :return: ``input_ids`` and ``attention_mask``; nothing where no sample has a text, or there is no tokenizer.
    :raises DataError: Where some samples have a text and others have none, or a text has no token.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    texts = [sample.text for sample in samples if sample.text is not None]
    if tokenizer is None or not texts:
        return {}
    if len(texts) < len(samples):
        raise DataError(f"{len(samples) - len(texts)} of {len(samples)} samples have no text: give all of them one.")
    windows = _tokenised(tokenizer, texts, limit or tokenizer.model_max_length)
    if not all(windows):
        raise DataError("a text has no tokens: its tokenizer must put one at its beginning or end.")
    input_ids, mask = padded_rows(windows, padding_token(tokenizer))
    return {"input_ids": input_ids, "attention_mask": mask}


def check_tokens(
    model: nn.Module, ids: Int64[Tensor, "rows tokens"], size: int, tokenizer: Any, way_out: str = OWN_TOKENIZER
) -> None:
    """Refuse tokens for which a model has no embedding.

    :param size: How many embeddings it has.
    :param tokenizer: What made the tokens; None where that is not known.
    :raises DataError: Where there is such a token: the tokenizer is another model's.
    """
    largest = int(ids.max()) if ids.numel() else 0
    if largest >= size:
        known = getattr(tokenizer, "__len__", lambda: getattr(tokenizer, "vocab_size", None))()
        knows = f", which knows {known}," if known else ""
        raise DataError(
            f"the tokenizer{knows} makes token {largest} of a text, and this {type(model).__name__} has embeddings for "
            f"{size}, from 0 on: it is another model's. {way_out}"
        )


def _tokenised(tokenizer: Any, texts: Sequence[str], limit: int) -> list[list[int]]:
    with left_as_it_was(tokenizer):
        cut = {} if limit >= NO_LIMIT else {"truncation": True, "max_length": limit}
        return list(tokenizer(texts, **cut).input_ids)


@contextmanager
def left_as_it_was(tokenizer: Any) -> Iterator[None]:
    """Have a tokenizer cut and pad afterwards as it did before.

    A fast one keeps how it was last asked to, and would write that beside the model.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield
        return
    truncation, padding = backend.truncation, backend.padding
    try:
        yield
    finally:
        backend.no_truncation()
        backend.no_padding()
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def padding_token(tokenizer: Any) -> int:
    """Give the token that pads a text.

    :raises DataError: Where the tokenizer has none.
    """
    if tokenizer.pad_token_id is None:
        raise DataError(f"the {type(tokenizer).__name__} has no padding token: set its pad_token.")
    return int(tokenizer.pad_token_id)


def text_tokens(batch: Batch) -> Int8[Tensor, "batch tokens"]:
    """Say what of a batch's texts is text (1) and what is padding (0), by their attention mask."""
    mask: Tensor = batch["attention_mask"]
    return mask.to(torch.int8)
