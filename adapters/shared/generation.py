"""Make texts by transformers' own ``generate``, always the same ones, by no setting of the checkpoint's.

A checkpoint may come with settings of its own, such as a temperature or a penalty for repetition. With them two models
would be compared in two ways, so only what ends a text and what a decoder begins with are taken over.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.shared.texts import padded_rows
from ecoflap.core.contracts.abilities import Generation, Said
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, cut


def generated(
    model: nn.Module,
    tokenizer: Any,
    inputs: Mapping[str, Tensor],
    generation: Generation,
    begins: int = 0,
    ends: Sequence[int] | None = None,
    start: Sequence[int] = (),
) -> list[Said]:
    """Have a text model of transformers make a text for each row of its inputs.

    :param inputs: The arguments of its ``generate``, on the model's device.
    :param begins: How many tokens of each row that ``generate`` returns were given to it.
    :param ends: Tokens that end a text; None takes the model's.
    :param start: What a decoder begins with, where the inputs have it too; else it is the model's.
    """
    ends = ends_of(model, tokenizer) if ends is None else ends
    config = _configuration(model, tokenizer, generation, ends)
    if start:  # else transformers puts the model's own before it
        config.decoder_start_token_id = start[0]
    model.eval()
    with torch.no_grad(), _configured(model, config):
        rows = member(model, "generate")(**inputs, generation_config=config)
    return [said(tokenizer, row[begins:], ends) for row in rows.tolist()]


def said(tokenizer: Any, tokens: Sequence[int], ends: Sequence[int]) -> Said:
    """Give the text that stands before the first token that ends one; after it there is only padding."""
    at = next((number for number, token in enumerate(tokens) if token in ends), None)
    own = tuple(tokens[:at])
    return Said(tokenizer.decode(list(own), skip_special_tokens=True).strip(), own, at is not None)


def ends_of(model: nn.Module, tokenizer: Any) -> tuple[int, ...]:
    """Give every token that ends a text by the model's configurations, or by its tokenizer where they name none."""
    named = (find(model, f"{config}.eos_token_id") for config in ("config", "generation_config"))
    found = [token for ends in named if ends is not None for token in (ends if isinstance(ends, list) else [ends])]
    own = getattr(tokenizer, "eos_token_id", None)
    return tuple(dict.fromkeys(found)) or (() if own is None else (own,))


def padded_left(
    rows: Sequence[Sequence[int]],
) -> tuple[Int64[Tensor, "rows longest"], Int64[Tensor, "rows longest"]]:
    """Put rows into one tensor so that all end together, as a decoder goes on with them.

    :return: The tensor, and a mask that is 1 where no padding is.
    """
    ids, mask = padded_rows([row[::-1] for row in rows])
    return ids.flip(1), mask.flip(1)


def opening(tokens: Sequence[int], tokenizer: Any) -> list[int]:
    """Take off what a tokenizer put at the end of a text that is to be gone on with.

    The first token stays: some tokenizers begin a text with the very token that ends one.
    """
    return [*tokens[:1], *without_ends(tokens[1:], [tokenizer.eos_token_id])]


def without_ends(tokens: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Take off the tokens that end a text."""
    kept = list(tokens)
    while kept and kept[-1] in ends:
        kept.pop()
    return kept


def gone_on(before: Sequence[int], whole: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    """Give the tokens by which a text goes on.

    They are read off the whole text, because a tokenizer may join a blank to the word after it.

    :param before: The beginning by itself.
    :param whole: The whole text.
    """
    before, whole = without_ends(before, ends), without_ends(whole, ends)
    return tuple(whole[shared(before, whole) :])


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens that both begin with."""
    at = 0
    while at < min(len(one), len(other)) and one[at] == other[at]:
        at += 1
    return at


def check_prompts(samples: Sequence[Sample]) -> None:
    """Refuse samples that give a text model nothing to answer or go on with.

    :raises DataError: Where there is no sample, or one without a question.
    """
    silent = [number for number, sample in enumerate(samples) if not sample.question]
    if silent or not samples:
        what = f"sample {silent[0]} of a batch has no question" if silent else "a batch needs at least one sample"
        raise DataError(f"this model goes on with a text or answers one: {what}.")


def check_length(
    prompts: Sequence[Sequence[int]], generation: Generation, longest: int | None, samples: Sequence[Sample] = ()
) -> None:
    """Refuse prompts for whose answers the model has no room.

    :param longest: How many tokens the model takes; None where there is no limit.
    :param samples: What the prompts were made of, so that the longest can be found by its sample.
    :raises DataError: Where prompt and answer together are longer than that.
    """
    number = max(range(len(prompts)), key=lambda at: len(prompts[at]))
    tokens, new = len(prompts[number]), generation.max_new_tokens
    if longest is not None and tokens + new > longest:
        raise DataError(
            f"a prompt of {tokens} tokens{_of(samples[number]) if samples else ''} and max_new_tokens: {new} are more "
            f"than the {longest} tokens that this model takes: lower max_new_tokens, or shorten the prompt."
        )


def _of(sample: Sample) -> str:
    """Say which sample it is, by its question and the name that it has in its data; nothing where it has neither."""
    told = (sample.id, cut(sample.question or ""))
    names = [repr(one) for one in told if one not in (None, "")]
    return f" ({': '.join(names)})" if names else ""


def distinct_images(samples: Sequence[Sample]) -> tuple[list[Sample], Int64[Tensor, " samples"]]:
    """Find samples that share an image, so that several questions on one image need one pass of the vision tower.

    :return: One sample for each image, and for every sample which of them has its image.
    """
    seen: dict[Any, int] = {}
    first: list[Sample] = []
    which = []
    for sample in samples:
        image = sample.image
        key = (image.size, image.mode, image.tobytes()) if hasattr(image, "tobytes") else id(sample)
        if key not in seen:
            seen[key] = len(first)
            first.append(sample)
        which.append(seen[key])
    return first, torch.tensor(which, dtype=torch.int64)


def images_put_in(words: Tensor, is_image: Bool[Tensor, "rows tokens"], images: Tensor) -> Tensor:
    """Replace the embeddings at each row's places for its image by those of that image, in their order."""
    return words.masked_scatter(is_image[..., None], images.to(words))


def _configuration(model: nn.Module, tokenizer: Any, generation: Generation, ends: Sequence[int]) -> Any:
    from transformers import GenerationConfig

    known = (find(model, "config"), find(model, "generation_config"), tokenizer)
    pads = (getattr(one, "pad_token_id", None) for one in known)
    starts = (getattr(one, "decoder_start_token_id", None) for one in known)
    pad = next((number for number in pads if number is not None), ends[0] if ends else 0)
    # without beams transformers warns of a setting that belongs to them
    beams = {"num_beams": generation.num_beams, "length_penalty": generation.length_penalty}
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=generation.max_new_tokens,
        min_new_tokens=generation.min_new_tokens or None,
        eos_token_id=ends[0] if len(ends) == 1 else list(ends) or None,  # older versions know no list
        pad_token_id=pad,
        decoder_start_token_id=next((number for number in starts if number is not None), None),
        use_cache=True,
        **(beams if generation.num_beams > 1 else {}),
    )


@contextmanager
def _configured(model: Any, config: Any) -> Iterator[None]:
    """Exchange the model's own configuration, from which transformers fills in what the one it is given leaves open."""
    own = getattr(model, "generation_config", None)
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own
