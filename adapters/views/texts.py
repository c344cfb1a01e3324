"""Make views of decoders: with a cache and without, and of those that read vectors in place of tokens."""

from collections.abc import Iterator, Sequence
from inspect import signature

from torch import Tensor, nn

from ecoflap.adapters.hubs.experts import experts_in_one_product
from ecoflap.adapters.shared.members import member
from ecoflap.adapters.views.cache import (
    Kept,
    cache_argument,
    content,
    filled,
    has_cache,
    in_cache,
    past_axes,
    past_names,
)
from ecoflap.adapters.views.view import BATCH, PAST, SAID, TEXT_AXES, TOTAL, Example, view
from ecoflap.core.contracts.records import View


class CausalLM(nn.Module):
    """Runs a decoder without a cache. Its experts, if any, run without a choice among them in its graph."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        with experts_in_one_product(self.model):
            return (self.model(**given, **_positions(self.model, input_ids, attention_mask), use_cache=False).logits,)


class CausalLMWithPast(nn.Module):
    """Runs a decoder from a cache on, which may be empty; the mask covers what is in it and what is new."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = filled(past)
        given = {"input_ids": input_ids, "attention_mask": attention_mask, cache_argument(self.model): cache}
        with experts_in_one_product(self.model):
            logits = self.model(**given, **_positions(self.model, input_ids, attention_mask), use_cache=True).logits
        return logits, *content(cache, len(past) // 2)


# Its signature has no shapes: where they are checked, as in the tests, a trace would hold the check.
def _positions(model: nn.Module, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Give the positions of tokens where a model takes them: of each, how many real ones are before it.

    So ``generate`` counts them. Without them a model that learnt a vector for each position, as GPT-2, would count
    padding on the left, and every model that on the right once a text goes on behind it.
    """
    if "position_ids" not in signature(model.forward).parameters:
        return {}
    counted = (mask.cumsum(1) - 1).clamp(min=0)
    return {"position_ids": counted[:, mask.shape[1] - ids.shape[1] :]}


class FromEmbeddings(nn.Module):
    """Runs a decoder that reads vectors in place of tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        return (self.model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=False).logits,)


class SaidFromEmbeddings(nn.Module):
    """Runs an encoder that reads vectors in place of tokens, and its decoder."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> tuple[Tensor]:
        read = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        return (self.model(**read, decoder_input_ids=decoder_input_ids, use_cache=False).logits,)


def views_of_decoder(model: nn.Module) -> Iterator[View]:
    """Yield ``decoder``, and ``decoder_with_past`` where this version of transformers has caches that can be filled."""
    blocks = member(model, "model.layers", nn.ModuleList)
    dim = member(blocks[0], "self_attn.head_dim", int)
    heads = member(blocks[0], "self_attn.k_proj.weight", Tensor).shape[0] // dim
    yield from views_of_causal_lm(model, [Kept(heads, dim, dim)] * len(blocks) if has_cache(model) else ())


def views_of_causal_lm(model: nn.Module, kept: Sequence[Kept]) -> Iterator[View]:
    """Yield ``decoder``: tokens in, logits out; and ``decoder_with_past``, which goes on from what it gave.

    :param kept: What each layer keeps of a token; empty where it cannot go on.
    """
    embedding = member(model, "get_input_embeddings")().weight

    def texts(example: Example) -> dict[str, Tensor]:
        ids = example.ids(len(embedding), example.batch, example.length)
        return {"input_ids": ids, "attention_mask": example.mask(*ids.shape)}

    axes = {"input_ids": TEXT_AXES, "attention_mask": TEXT_AXES}
    yield view("decoder", CausalLM(model), texts, ("logits",), axes)
    if not kept:
        return
    past = past_names("past_key_values", len(kept))

    def step(example: Example) -> dict[str, Tensor]:
        ids = example.ids(len(embedding), example.batch, example.said)
        mask = example.mask(example.batch, example.past + example.said).flip(1)  # a text that goes on ends here
        cached = in_cache(example, embedding, kept, example.past)
        return {"input_ids": ids, "attention_mask": mask, **dict(zip(past, cached, strict=True))}

    axes = {"input_ids": TEXT_AXES, "attention_mask": {0: BATCH, 1: TOTAL}, **past_axes(past, PAST)}
    outputs = ("logits", *past_names("present", len(kept)))
    yield view("decoder_with_past", CausalLMWithPast(model), step, outputs, axes)


def view_from_embeddings(model: nn.Module, says: bool) -> View:
    """Give ``language``: a text model that reads vectors.

    :param says: Whether there is a decoder that is given what it said so far.
    """
    embedding = member(model, "get_input_embeddings")().weight

    def made(example: Example) -> dict[str, Tensor]:
        read = example.numbers(embedding, example.batch, example.length, embedding.shape[1])
        inputs = {"inputs_embeds": read, "attention_mask": example.mask(example.batch, example.length)}
        if says:
            inputs["decoder_input_ids"] = example.ids(len(embedding), example.batch, example.said)
        return inputs

    axes = {"inputs_embeds": TEXT_AXES, "attention_mask": TEXT_AXES, "decoder_input_ids": {0: BATCH, 1: SAID}}
    module = SaidFromEmbeddings(model) if says else FromEmbeddings(model)
    return view("language", module, made, ("logits",), axes)
