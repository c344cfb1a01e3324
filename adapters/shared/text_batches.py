"""Make batches of text alone, for a decoder or for an encoder and a decoder, and have a decoder go on with a text."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ecoflap.adapters.shared.generation import check_length, check_prompts, generated, gone_on, opening, padded_left
from ecoflap.adapters.shared.losses import IGNORED
from ecoflap.adapters.shared.members import member
from ecoflap.adapters.shared.texts import check_tokens, first_said, padded_rows
from ecoflap.core.contracts.abilities import Generation, Said
from ecoflap.core.contracts.records import Batch, Sample
from ecoflap.core.errors import DataError


def windows_of(samples: Sequence[Sample]) -> Batch:
    """Put windows of tokens side by side, padded on the right to the longest.

    :raises DataError: Where a sample has none.
    """
    windows = [sample.tokens for sample in samples if sample.tokens is not None and len(sample.tokens)]
    if len(windows) < len(samples) or not windows:
        raise DataError(
            "this model reads tokens: each sample needs at least one, and a batch at least one sample. Calibrate it on "
            "the dataset `text`, which cuts texts into windows of tokens."
        )
    input_ids, mask = padded_rows([window.tolist() for window in windows])
    return {"input_ids": input_ids, "attention_mask": mask}


def within_vocabulary(model: nn.Module, batch: Batch) -> Batch:
    """Give a batch of texts, unless a token of theirs is none of the model's.

    :raises DataError: Where one is: the tokenizer is another model's, or it is a label that is left out.
    """
    least = int(batch["input_ids"].min())
    if least < 0:
        raise DataError(
            f"a text holds the token {least}, and tokens count from 0 on: labels that are left out have such numbers, "
            f"and no words."
        )
    check_tokens(model, batch["input_ids"], len(member(model, "get_input_embeddings")().weight), None)
    return batch


Ids = Callable[[str], list[int]]
"""Makes a text its tokens."""


def pairs_of(samples: Sequence[Sample], ids: Ids, said_ids: Ids | None = None) -> Batch:
    """Put the encoder's texts and the decoder's side by side, each padded on the right to the longest.

    They come from a question and its first answer (or text), from tokens, or from text alone, which is cut in the
    middle.

    :param ids: Of what the encoder reads.
    :param said_ids: Of what the decoder says, where that is of another language. No text is cut then.
    """
    pairs = [_pair(number, sample, ids, said_ids) for number, sample in enumerate(samples)]
    if not pairs:
        raise DataError("a batch needs at least one sample.")
    read, said = zip(*pairs, strict=True)
    input_ids, mask = padded_rows(read)
    labels, _ = padded_rows(said, IGNORED)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def _pair(number: int, sample: Sample, ids: Ids, said_ids: Ids | None) -> tuple[list[int], list[int]]:
    """Give what the encoder reads and what the decoder is to say.

    :param number: The sample's place in its batch, for what is said of one that is wrong.
    """
    said = first_said(sample)
    if sample.question is not None and said is not None:
        return ids(sample.question), (said_ids or ids)(said)
    if said_ids is not None:
        raise DataError(
            f"this model says another language than it reads, and sample {number} of a batch is a text of one: the "
            f"half that is to be said would be of the wrong one. Give it texts with what is said of each, as the "
            f"dataset text_pair does: {{use: text_pair, path: pairs.jsonl}}."
        )
    if sample.tokens is None and sample.text is None:
        raise DataError(
            f"this model reads text: sample {number} of a batch holds neither tokens, nor text, nor a question "
            f"with an answer."
        )
    whole = ids(str(sample.text)) if sample.tokens is None else sample.tokens.tolist()
    if len(whole) < 2:
        raise DataError(
            f"sample {number} of a batch holds {len(whole)} tokens: at least two are needed, one for the encoder and "
            f"one for the decoder."
        )
    return whole[: len(whole) // 2], whole[len(whole) // 2 :]


def texts_gone_on_with(
    model: nn.Module, tokenizer: Any, samples: Sequence[Sample], generation: Generation, longest: int | None
) -> list[Said]:
    """Have a model go on with each question.

    :param longest: How many tokens it takes; None where there is no limit.
    """
    check_prompts(samples)
    prompts = [opening(text_ids(tokenizer, str(sample.question)), tokenizer) for sample in samples]
    check_length(prompts, generation, longest, samples)
    ids, mask = padded_left(prompts)
    device = member(model, "get_input_embeddings")().weight.device
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    return generated(model, tokenizer, inputs, generation, ids.shape[1])


def going_on(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Give the tokens of a text that goes on after a blank."""
    ends = [tokenizer.eos_token_id] if tokenizer is not None else []
    return gone_on(text_ids(tokenizer, ":"), text_ids(tokenizer, f": {text}"), ends)


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Give a text's tokens, with those that the tokenizer adds.

    :raises DataError: Where there is no tokenizer.
    """
    if tokenizer is None:
        raise DataError(
            "this model needs a tokenizer to read text: put tokenizer.json beside its config.json, or give ecoflap.run "
            "a processor."
        )
    return list(tokenizer(text)["input_ids"])
