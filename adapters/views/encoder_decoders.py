"""Make views of an encoder that reads a text or sees an image, and of the decoder that says one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.adapters.hubs.weightless import lent_weights
from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.views.blip import READ, SEEN, SaidOfImage
from ecoflap.adapters.views.cache import (
    Keeping,
    both_filled,
    cache_argument,
    content,
    in_cache,
    in_turn,
    past_axes,
    past_names,
)
from ecoflap.adapters.views.graphs import ran_empty
from ecoflap.adapters.views.images import IMAGE_AXES, PIXELS
from ecoflap.adapters.views.view import BATCH, PAST, TEXT_AXES, Example, view, without
from ecoflap.core.contracts.records import View

ENCODER_SEQUENCE = "encoder_sequence"


@dataclass(frozen=True)
class Halves:
    """Says how an encoder and its decoder fit together.

    :param encoder: Where the encoder is, with dots between the names.
    :param width: How many numbers it gives of a token.
    :param own: What each of the decoder's layers keeps of a token that it said; empty where it cannot go on.
    :param other: What they keep of a token that the encoder read.
    """

    encoder: str
    width: int
    own: Keeping
    other: Keeping


class Encoder(nn.Module):
    """Runs the stack that reads a text."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        return (self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state,)


class Seeing(nn.Module):
    """Runs the stack that sees an image, and fits what it gives to the decoder's width."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.encoder, self.fit = member(model, "encoder", nn.Module), find(model, "enc_to_dec_proj", nn.Module)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        seen = self.encoder(pixel_values=pixel_values).last_hidden_state
        return (seen if self.fit is None else self.fit(seen),)


class SayingWhatIsSeen(nn.Module):
    """Gives what a decoder says next of an image and what it said so far."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.sees, self.says = Seeing(model), SaidOfImage(member(model, "decoder", nn.Module))

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        says: tuple[Tensor] = self.says(input_ids, attention_mask, *self.sees(pixel_values))
        return says


class Decoder(nn.Module):
    """Runs the stack that says a text, and its head, on what the encoder gave.

    :param model: Without its encoder.
    :param layers: How many layers' keys and values it gives too, as a step with a cache begins with them; 0 for none.
    """

    def __init__(self, model: nn.Module, layers: int) -> None:
        super().__init__()
        self.model, self.layers = model, layers

    def forward(
        self, input_ids: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor
    ) -> tuple[Tensor, ...]:
        given: dict[str, Any] = {"decoder_input_ids": input_ids, "attention_mask": encoder_attention_mask}
        given["encoder_outputs"] = _given(encoder_hidden_states)
        if not self.layers:
            return (self.model(**given, use_cache=False).logits,)
        cache = both_filled((), ())
        logits = self.model(**given, **{cache_argument(self.model): cache}, use_cache=True).logits
        own, other = (content(one, self.layers) for one in (cache.self_attention_cache, cache.cross_attention_cache))
        return logits, *in_turn(own, other)


class DecoderWithPast(nn.Module):
    """Runs a decoder from a cache on, of its own keys and values and those of what the encoder gave.

    :param model: Without its encoder.
    :param width: How many numbers the encoder gives of a token.
    """

    def __init__(self, model: nn.Module, width: int) -> None:
        super().__init__()
        self.model, self.width = model, width

    def forward(self, input_ids: Tensor, encoder_attention_mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        own = [tensor for at, tensor in enumerate(past) if at % 4 < 2]
        other = [tensor for at, tensor in enumerate(past) if at % 4 >= 2]
        cache = both_filled(own, other)
        # what the encoder gave is in the cache: of this its shape alone is looked at
        hidden = encoder_attention_mask[..., None].expand(-1, -1, self.width).to(own[0].dtype)
        logits = self.model(
            decoder_input_ids=input_ids,
            attention_mask=encoder_attention_mask,
            encoder_outputs=_given(hidden),
            use_cache=True,
            **{cache_argument(self.model): cache},
        ).logits
        return logits, *content(cache.self_attention_cache, len(own) // 2)


def views_of_encoder_and_decoder(model: nn.Module, halves: Halves) -> Iterator[View]:
    """Yield ``encoder``, ``decoder``, and where there is a cache that can be filled ``decoder_with_past``.

    As with Optimum a decoder then also gives its keys and values, and those of the encoder's states, because only it
    knows what ``decoder_with_past`` begins with; the latter gives the grown ones alone.
    """
    reads = _words(member(model, halves.encoder), model)
    says = _words(member(model, "get_decoder")(), model)
    layers, rest = len(halves.own.kept), without(model, halves.encoder)

    def mask(example: Example) -> Tensor:
        return example.mask(example.batch, example.length)

    def read(example: Example) -> dict[str, Tensor]:
        ids = example.ids(len(reads), example.batch, example.length)
        return {"input_ids": ids, "attention_mask": mask(example)}

    def begin(example: Example) -> dict[str, Tensor]:
        hidden = example.numbers(says, example.batch, example.length, halves.width)
        ids = example.ids(len(says), example.batch, example.said)
        return {"input_ids": ids, "encoder_hidden_states": hidden, "encoder_attention_mask": mask(example)}

    def go_on(example: Example) -> dict[str, Tensor]:
        own = in_cache(example, says, halves.own.kept, example.past)
        other = in_cache(example, says, halves.other.kept, example.length)
        cached = dict(zip(past, in_turn(own, other), strict=True))
        ids = example.ids(len(says), example.batch, example.said)
        return {"input_ids": ids, "encoder_attention_mask": mask(example), **cached}

    own, other = (past_names("past_key_values", layers, f".{side}") for side in ("decoder", "encoder"))
    past = in_turn(own, other)
    encoded = {0: BATCH, 1: ENCODER_SEQUENCE}
    axes = {"input_ids": TEXT_AXES, "encoder_hidden_states": encoded, "encoder_attention_mask": encoded}
    yield view("encoder", Encoder(member(model, halves.encoder, nn.Module)), read, ("last_hidden_state",), {
        "input_ids": TEXT_AXES, "attention_mask": TEXT_AXES,
    })  # fmt: skip
    gives = in_turn(*(past_names("present", layers, f".{side}") for side in ("decoder", "encoder")))
    yield view("decoder", Decoder(rest, layers), begin, ("logits", *gives), axes)
    if layers:
        axes = {**axes, **past_axes(own, PAST), **past_axes(other, ENCODER_SEQUENCE)}
        grown = past_names("present", layers, ".decoder")
        yield view("decoder_with_past", DecoderWithPast(rest, halves.width), go_on, ("logits", *grown), axes)


def views_of_seeing_encoder_and_decoder(model: nn.Module, image: Sequence[int]) -> Iterator[View]:
    """Yield ``vision``; ``decoder``, which says something of what that gives; and ``all`` in one graph.

    :param image: Channels, height and width.
    """
    decoder = member(model, "decoder", nn.Module)
    words, like = _words(decoder, model), next(member(model, "encoder", nn.Module).parameters())
    with lent_weights(model):
        patches, width = ran_empty(Seeing(model), torch.zeros(1, *image, dtype=like.dtype))[0].shape[1:]

    def images(example: Example) -> dict[str, Tensor]:
        return {PIXELS: example.numbers(like, example.batch, *image)}

    def texts(example: Example) -> dict[str, Tensor]:
        ids = example.ids(len(words), example.batch, example.length)
        return {"input_ids": ids, "attention_mask": example.mask(example.batch, example.length)}

    def of_seen(example: Example) -> dict[str, Tensor]:
        return {**texts(example), "encoder_hidden_states": example.numbers(words, example.batch, patches, width)}

    def both(example: Example) -> dict[str, Tensor]:
        return {**images(example), **texts(example)}

    yield view("vision", Seeing(model), images, ("last_hidden_state",), IMAGE_AXES)
    yield view("decoder", SaidOfImage(decoder), of_seen, ("logits",), {**READ, **SEEN})
    yield view("all", SayingWhatIsSeen(model), both, ("logits",), {**IMAGE_AXES, **READ})


def _words(stack: Any, model: nn.Module) -> Tensor:
    """Give the vectors of the words that a stack reads: the model's, where a stack does not say which it has."""
    weight: Tensor = getattr(stack, "get_input_embeddings", member(model, "get_input_embeddings"))().weight
    return weight


def _given(hidden: Tensor) -> Any:
    """Hold what an encoder gave as transformers' own does; some decoders look at it by name, others by number.

    One of experts looks for what their routers gave, too.
    """
    from transformers import modeling_outputs

    kind = getattr(modeling_outputs, "MoEModelOutput", modeling_outputs.BaseModelOutput)
    return kind(last_hidden_state=hidden)
