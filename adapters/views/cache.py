"""Fill a cache of transformers by hand, read what is in it, and say what a model keeps in one of each token."""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from math import prod
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ecoflap.adapters.views.view import BATCH, Example

GROWING = "not keys and values that grow with it"
NO_CACHES = "this version of transformers, or the model, has no cache that can be filled by hand"
KEY_AND_VALUE = ("key", "value")


@dataclass(frozen=True)
class Kept:
    """Says what a layer keeps of each token: in how many heads, and how many numbers of its key and of its value."""

    heads: int
    key: int
    value: int


@dataclass(frozen=True)
class Keeping:
    """Says what each layer keeps of a token; nothing where a view cannot begin with it, and why.

    :param why_not: A clause, for ``views_refused``.
    """

    kept: tuple[Kept, ...] = ()
    why_not: str = ""


def in_cache(
    example: Example, like: Tensor, kept: Sequence[Kept], length: int
) -> list[Float[Tensor, "batch heads length numbers"]]:
    """Draw the keys and values, in turn, that a cache holds of so many tokens."""
    shapes = [(example.batch, one.heads, length, numbers) for one in kept for numbers in (one.key, one.value)]
    drawn = example.numbers(like, sum(map(prod, shapes))).split([*map(prod, shapes)])
    return [numbers.reshape(shape) for numbers, shape in zip(drawn, shapes, strict=True)]


PLAIN = ("DynamicLayer", "DynamicSlidingWindowLayer")
"""Layers of a cache that hold keys and values of tokens and nothing else. The latter drops those out of its window,
which is to save memory: the model's mask leaves them out, too, where they are there."""


def kept_in(cache: Any) -> Keeping:
    """Read off a cache that a model left what each of its layers keeps of a token, or why that is not to be had."""
    if type(cache).__name__ != "DynamicCache":
        return _of_another_kind(cache, "a text")
    kinds = [type(layer).__name__ for layer in getattr(cache, "layers", ())]
    if strange := [kind for kind in kinds if kind not in PLAIN]:
        where = f"{len(strange)} of its {len(kinds)} layers"
        return Keeping(why_not=f"a {strange[0]} is what {where} keep of a text, {GROWING}")
    found = content(cache, len(kinds) or len(cache.key_cache))
    if absent := [at for at, one in enumerate(found) if not isinstance(one, Tensor) or one.ndim != 4]:
        return Keeping(why_not=f"its layer {absent[0] // 2} keeps nothing of a text: it reads what another layer keeps")
    pairs = zip(found[::2], found[1::2], strict=True)
    return Keeping(tuple(Kept(key.shape[1], key.shape[3], value.shape[3]) for key, value in pairs))


def kept_in_both(cache: Any) -> tuple[Keeping, Keeping]:
    """Say what a decoder keeps of its own text and of the encoder's; nothing of either where one is not to be had."""
    if type(cache).__name__ != "EncoderDecoderCache":
        neither = _of_another_kind(cache, "its texts")
        return neither, neither
    own, other = kept_in(cache.self_attention_cache), kept_in(cache.cross_attention_cache)
    if own.kept and other.kept:
        return own, other
    neither = Keeping(why_not=own.why_not or other.why_not)
    return neither, neither


def _of_another_kind(cache: Any, read: str) -> Keeping:
    """Say what a model keeps of what it read in the place of the cache that a view fills."""
    if cache is None:
        return Keeping(why_not="the model gives back nothing that it keeps of a text")
    return Keeping(why_not=f"the model keeps a {type(cache).__name__} of {read}, {GROWING}")


def has_cache(model: nn.Module) -> bool:
    """Say whether this version of transformers has caches that are filled by hand, and the model takes one."""
    import transformers

    if not hasattr(transformers, "EncoderDecoderCache") or not getattr(model, "_supports_cache_class", True):
        return False
    return cache_argument(model) in signature(model.forward).parameters


def cache_argument(model: nn.Module) -> str:
    """Name the argument of a model's forward that is its cache, which is ``cache`` since transformers 5.20."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def cache_of(output: Any) -> Any:
    """Give the cache of what a model gave, called ``cache`` since transformers 5.20; None where there is none."""
    return output.cache if hasattr(output, "cache") else getattr(output, "past_key_values", None)


def past_names(begins: str, layers: int, side: str = "") -> list[str]:
    """Name the keys and values of each layer as Optimum does: ``past_key_values.0.key``."""
    return [f"{begins}.{layer}{side}.{kind}" for layer in range(layers) for kind in KEY_AND_VALUE]


def past_axes(names: Sequence[str], length: str) -> dict[str, dict[int, str]]:
    """Say which axes of keys and values vary: the batch, and the length under this name."""
    return {name: {0: BATCH, 2: length} for name in names}


def in_turn(own: Sequence[Any], other: Sequence[Any]) -> list[Any]:
    """Give for each layer the decoder's own key and value, then those of the encoder's states."""
    pairs = zip(own[::2], own[1::2], other[::2], other[1::2], strict=True)
    return [one for layer in pairs for one in layer]


def filled(past: Sequence[Tensor]) -> Any:
    """Make a cache of keys and values, which come in turn."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (key, value) in enumerate(zip(past[::2], past[1::2], strict=True)):
        cache.update(key, value, layer)
    return cache


def both_filled(own: Sequence[Tensor], other: Sequence[Tensor]) -> Any:
    """Make the cache of a decoder that reads an encoder."""
    from transformers import EncoderDecoderCache

    return EncoderDecoderCache(filled(own), filled(other))


def content(cache: Any, layers: int) -> list[Any]:
    """Give keys and values in turn; they moved into an object for each layer in transformers 4.54."""
    if hasattr(cache, "layers"):
        return [tensor for layer in cache.layers[:layers] for tensor in (layer.keys, layer.values)]
    return [tensor for at in range(layers) for tensor in (cache.key_cache[at], cache.value_cache[at])]
