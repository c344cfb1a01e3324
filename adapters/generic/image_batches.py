"""Make batches of images and texts by a model's own processor."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ecoflap.adapters.generic.watching.examples import arguments_of, image_token
from ecoflap.adapters.generic.wording import is_unknown, is_written_in, placeholder, tokenizer_of
from ecoflap.adapters.shared.images import images_of
from ecoflap.adapters.shared.losses import IGNORED
from ecoflap.adapters.shared.members import member
from ecoflap.adapters.shared.texts import check_tokens, left_as_it_was
from ecoflap.core.contracts.records import Batch, Sample
from ecoflap.core.errors import DataError, one_line

ADDED = 4
"""How many tokens a processor may put behind a text, at most."""


def processed(
    model: nn.Module,
    processor: Any,
    texts: Sequence[str],
    samples: Sequence[Sample],
    side: Literal["left", "right"],
    **beside: Any,
) -> dict[str, Any]:
    """Have a processor make the arguments of a model's forward of images and texts.

    :param side: Where padding goes.
    :param beside: Other arguments of the processor's.
    :raises DataError: Where it cannot, or the text has no place for its image.
    """
    made = _with_images(processor, images_of(samples), text=list(texts), padding_side=side, **beside)
    _check_places(model, processor, made["input_ids"])
    _check_words(model, processor, made["input_ids"])
    known = arguments_of(model.forward)
    return {name: value for name, value in made.items() if name in known}


def _with_images(processor: Any, images: list[Any], **arguments: Any) -> dict[str, Any]:
    """Have a processor make tensors of images, one for each text: a list for each, or one list for who refuses that."""
    if not is_written_in(processor):
        return _made(processor, images=images, **arguments)
    try:
        return _made(processor, images=[[image] for image in images], **arguments)
    except DataError:
        with suppress(DataError):
            return _made(processor, images=images, **arguments)
        raise


def _made(processor: Any, **arguments: Any) -> dict[str, Any]:
    """Have a processor make tensors.

    :raises DataError: Where it cannot.
    """
    tokenizer = tokenizer_of(processor)
    if tokenizer.pad_token_id is None:
        raise DataError(f"the {type(tokenizer).__name__} has no padding token: set its pad_token.")
    before, tokenizer.padding_side = tokenizer.padding_side, arguments["padding_side"]  # some look at this alone
    try:
        with left_as_it_was(tokenizer), warnings.catch_warnings():
            # some of transformers' processors make arrays of tensors, of which numpy 2 warns
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            return dict(processor(**arguments, return_tensors="pt", padding=True))
    except Exception as error:  # a processor raises whatever it likes where it does not fit its images or texts
        written = placeholder(processor)
        if written and is_unknown(processor, written):  # of which a processor says something that misleads
            raise DataError(f"the {type(processor).__name__} cannot be used:{_unknown(processor, written)}") from error
        reason = one_line(error) or type(error).__name__
        raise DataError(
            f"the {type(processor).__name__} cannot read the images and texts: {reason.rstrip('.')}. Is it the one "
            f"that belongs to the model?{_of_places(processor, arguments['text'])}"
        ) from error
    finally:
        tokenizer.padding_side = before


def _of_places(processor: Any, texts: Sequence[str]) -> str:
    """Say what there is to say of the places of images in texts, as a sentence to add; nothing where they have none."""
    written = placeholder(processor)
    if not written:
        return ""
    if any(written not in text for text in texts):
        return f" Its chat template writes no {written!r} for an image: take the model's own chat_template.jinja."
    return f" {written!r} is put in for each image, and must not be in a text of the data too."


def _unknown(processor: Any, written: str) -> str:
    return (
        f" {written!r} stands for an image, and its {type(tokenizer_of(processor)).__name__} has no such token: put "
        f"the model's own tokenizer.json and tokenizer_config.json beside its config.json."
    )


def refuse_padded_images(batch: Batch) -> None:
    """Refuse images that were padded to one size: what stands in the padding would be taken for image.

    :raises DataError: Where an image is padded; one that is nothing but padding is read by no model.
    """
    mask = batch.get("pixel_attention_mask")
    if mask is None or mask.ndim < 3:
        return
    inside = mask.bool().flatten(-2)
    if bool((inside.any(-1) & ~inside.all(-1)).any()):
        raise DataError(
            "the images of a batch are of unequal shapes, and this model pads them to one: set batch_size to 1, or "
            "give images of one shape."
        )


def labelled(
    input_ids: Int64[Tensor, "rows tokens"], mask: Int64[Tensor, "rows tokens"], said: Sequence[Sequence[int]]
) -> Int64[Tensor, "rows tokens"]:
    """Label the tokens that are said, which come last in each row before its padding and what a processor adds."""
    labels = torch.full_like(input_ids, IGNORED)
    for row, tokens in enumerate(said):
        real = mask[row].nonzero().flatten()
        read, count = input_ids[row, real].tolist(), len(tokens)
        likely = range(len(real), max(count, len(real) - ADDED) - 1, -1)
        ends = (end for end in likely if read[end - count : end] == [*tokens])
        end = next(ends, len(real))
        places = real[end - count : end]
        labels[row, places] = input_ids[row, places]
    return labels


def _check_places(model: nn.Module, processor: Any, input_ids: Int64[Tensor, "rows tokens"]) -> None:
    token = image_token(model.config)
    without = [] if token is None else (~(input_ids == token).any(1)).nonzero().flatten().tolist()
    if without:
        written = placeholder(processor)
        why = " They do not fit each other, or the chat template leaves images out."
        if written and is_unknown(processor, written):
            why = _unknown(processor, written)
        raise DataError(
            f"sample {without[0]} of a batch has no place for its image: the model looks for token {token} in its "
            f"text, and the {type(processor).__name__} writes {written!r}.{why}"
        )


def _check_words(model: nn.Module, processor: Any, input_ids: Int64[Tensor, "rows tokens"]) -> None:
    """Refuse words that the model has no embedding for; its places for images may lie behind them."""
    words = input_ids[input_ids != (image_token(model.config) or 0)]
    check_tokens(model, words[None], len(member(model, "get_input_embeddings")().weight), tokenizer_of(processor))
