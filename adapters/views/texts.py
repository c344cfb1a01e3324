"""Make views of text models: decoders, and encoders that a decoder reads, each with a cache and without."""

from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any

from torch import Tensor, nn

from ecoflap.adapters.shared.members import member
from ecoflap.adapters.views.view import BATCH, PAST, SAID, TEXT_AXES, TOTAL, Example, view, without
from ecoflap.core.contracts.records import View

KEY_AND_VALUE = ("key", "value")
ENCODER_SEQUENCE = "encoder_sequence"


class CausalLM(nn.Module):
    """Runs a decoder without a cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        return (self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits,)


class CausalLMWithPast(nn.Module):
    """Runs a decoder from a cache on, which may be empty; the mask covers what is in it and what is new."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = _filled(past)
        given = {"input_ids": input_ids, "attention_mask": attention_mask, _argument(self.model): cache}
        logits = self.model(**given, use_cache=True).logits
        return logits, *_content(cache, len(past) // 2)


class Encoder(nn.Module):
    """Runs the stack that reads a text."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        return (self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state,)


class Decoder(nn.Module):
    """Runs the stack that says a text, and its head, on what the encoder gave.

    :param layers: How many layers' keys and values it gives too, as a step with a cache begins with them; 0 for none.
    """

    def __init__(self, model: nn.Module, layers: int) -> None:
        super().__init__()
        self.model, self.layers = without(model, "encoder"), layers

    def forward(
        self, input_ids: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor
    ) -> tuple[Tensor, ...]:
        given: dict[str, Any] = {"decoder_input_ids": input_ids, "attention_mask": encoder_attention_mask}
        given["encoder_outputs"] = (encoder_hidden_states,)
        if not self.layers:
            return (self.model(**given, use_cache=False).logits,)
        cache = _both((), ())
        logits = self.model(**given, **{_argument(self.model): cache}, use_cache=True).logits
        own, other = (_content(one, self.layers) for one in (cache.self_attention_cache, cache.cross_attention_cache))
        return logits, *_in_turn(own, other)


class DecoderWithPast(nn.Module):
    """Runs a decoder from a cache on, of its own keys and values and those of what the encoder gave."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = without(model, "encoder")
        self.width: int = member(model, "config.d_model", int)

    def forward(self, input_ids: Tensor, encoder_attention_mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        own = [tensor for at, tensor in enumerate(past) if at % 4 < 2]
        other = [tensor for at, tensor in enumerate(past) if at % 4 >= 2]
        cache = _both(own, other)
        # what the encoder gave is in the cache: of this its shape alone is looked at
        hidden = encoder_attention_mask[..., None].expand(-1, -1, self.width).to(own[0].dtype)
        logits = self.model(
            decoder_input_ids=input_ids,
            attention_mask=encoder_attention_mask,
            encoder_outputs=(hidden,),
            use_cache=True,
            **{_argument(self.model): cache},
        ).logits
        return logits, *_content(cache.self_attention_cache, len(own) // 2)


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
    embedding = member(model, "model.embed_tokens.weight", Tensor)
    blocks = member(model, "model.layers", nn.ModuleList)

    def texts(example: Example) -> dict[str, Tensor]:
        ids = example.ids(len(embedding), example.batch, example.length)
        return {"input_ids": ids, "attention_mask": example.mask(*ids.shape)}

    axes = {"input_ids": TEXT_AXES, "attention_mask": TEXT_AXES}
    yield view("decoder", CausalLM(model), texts, ("logits",), axes)
    if not has_cache(model):
        return
    past = _past_names("past_key_values", len(blocks))
    dim = member(blocks[0], "self_attn.head_dim", int)
    heads = member(blocks[0], "self_attn.k_proj.weight", Tensor).shape[0] // dim

    def step(example: Example) -> dict[str, Tensor]:
        ids = example.ids(len(embedding), example.batch, example.said)
        mask = example.mask(example.batch, example.past + example.said).flip(1)  # a text that goes on ends here
        cached = example.numbers(embedding, len(past), example.batch, heads, example.past, dim)
        return {"input_ids": ids, "attention_mask": mask, **dict(zip(past, cached, strict=True))}

    axes = {"input_ids": TEXT_AXES, "attention_mask": {0: BATCH, 1: TOTAL}, **_axes(past, PAST)}
    outputs = ("logits", *_past_names("present", len(blocks)))
    yield view("decoder_with_past", CausalLMWithPast(model), step, outputs, axes)


def views_of_encoder_and_decoder(model: nn.Module) -> Iterator[View]:
    """Yield ``encoder``, ``decoder``, and where transformers has caches that can be filled ``decoder_with_past``.

    As with Optimum a decoder then also gives its keys and values, and those of the encoder's states, because only it
    knows what ``decoder_with_past`` begins with; the latter gives the grown ones alone.
    """
    shared, config = member(model, "shared.weight", Tensor), member(model, "config")
    layers = len(member(model, "decoder.block", nn.ModuleList)) if has_cache(model) else 0

    def mask(example: Example) -> Tensor:
        return example.mask(example.batch, example.length)

    def read(example: Example) -> dict[str, Tensor]:
        ids = example.ids(len(shared), example.batch, example.length)
        return {"input_ids": ids, "attention_mask": mask(example)}

    def begin(example: Example) -> dict[str, Tensor]:
        hidden = example.numbers(shared, example.batch, example.length, config.d_model)
        ids = example.ids(len(shared), example.batch, example.said)
        return {"input_ids": ids, "encoder_hidden_states": hidden, "encoder_attention_mask": mask(example)}

    def go_on(example: Example) -> dict[str, Tensor]:
        shape = 2 * layers, example.batch, config.num_heads
        own = example.numbers(shared, *shape, example.past, config.d_kv)
        other = example.numbers(shared, *shape, example.length, config.d_kv)
        cached = dict(zip(past, _in_turn([*own], [*other]), strict=True))
        ids = example.ids(len(shared), example.batch, example.said)
        return {"input_ids": ids, "encoder_attention_mask": mask(example), **cached}

    own, other = (_past_names("past_key_values", layers, f".{side}") for side in ("decoder", "encoder"))
    past = _in_turn(own, other)
    encoded = {0: BATCH, 1: ENCODER_SEQUENCE}
    axes = {"input_ids": TEXT_AXES, "encoder_hidden_states": encoded, "encoder_attention_mask": encoded}
    yield view("encoder", Encoder(member(model, "encoder", nn.Module)), read, ("last_hidden_state",), {
        "input_ids": TEXT_AXES, "attention_mask": TEXT_AXES,
    })  # fmt: skip
    gives = _in_turn(*(_past_names("present", layers, f".{side}") for side in ("decoder", "encoder")))
    yield view("decoder", Decoder(model, layers), begin, ("logits", *gives), axes)
    if layers:
        axes = {**axes, **_axes(own, PAST), **_axes(other, ENCODER_SEQUENCE)}
        grown = _past_names("present", layers, ".decoder")
        yield view("decoder_with_past", DecoderWithPast(model), go_on, ("logits", *grown), axes)


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


def has_cache(model: nn.Module) -> bool:
    """Say whether this version of transformers has caches that are filled by hand, and the model takes one."""
    import transformers

    if not hasattr(transformers, "EncoderDecoderCache") or not getattr(model, "_supports_cache_class", True):
        return False
    return _argument(model) in signature(model.forward).parameters


def _argument(model: nn.Module) -> str:
    """Name the argument of a model's forward that is its cache, which is ``cache`` since transformers 5.20."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def _past_names(begins: str, layers: int, side: str = "") -> list[str]:
    return [f"{begins}.{layer}{side}.{kind}" for layer in range(layers) for kind in KEY_AND_VALUE]


def _axes(names: Sequence[str], length: str) -> dict[str, dict[int, str]]:
    return {name: {0: BATCH, 2: length} for name in names}


def _in_turn(own: Sequence[Any], other: Sequence[Any]) -> list[Any]:
    """Give for each layer the decoder's own key and value, then those of the encoder's states."""
    pairs = zip(own[::2], own[1::2], other[::2], other[1::2], strict=True)
    return [one for layer in pairs for one in layer]


def _filled(past: Sequence[Tensor]) -> Any:
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (key, value) in enumerate(zip(past[::2], past[1::2], strict=True)):
        cache.update(key, value, layer)
    return cache


def _both(own: Sequence[Tensor], other: Sequence[Tensor]) -> Any:
    from transformers import EncoderDecoderCache

    return EncoderDecoderCache(_filled(own), _filled(other))


def _content(cache: Any, layers: int) -> list[Tensor]:
    """Give keys and values in turn; they moved into an object for each layer in transformers 4.54."""
    if hasattr(cache, "layers"):
        return [tensor for layer in cache.layers[:layers] for tensor in (layer.keys, layer.values)]
    return [tensor for at in range(layers) for tensor in (cache.key_cache[at], cache.value_cache[at])]
