"""What a model keeps of a text is read off the cache that it left."""

from typing import Any

import pytest
import torch

from ecoflap.adapters.generic.causal_lm import CausalLMAdapter
from ecoflap.adapters.views.cache import Keeping, Kept, cache_of, in_cache, kept_in, kept_in_both
from ecoflap.adapters.views.view import EXAMPLES

transformers = pytest.importorskip("transformers", minversion="5.0")

from transformers import DynamicCache, EncoderDecoderCache, Gemma2Config  # noqa: E402


def filled(*shapes: tuple[int, int, int]) -> Any:
    """A cache of five tokens: for each layer heads, numbers of a key, numbers of a value."""
    cache = DynamicCache()
    for layer, (heads, key, value) in enumerate(shapes):
        cache.update(torch.zeros(2, heads, 5, key), torch.zeros(2, heads, 5, value), layer)
    return cache


class StateLayer:
    """Keeps something of another kind."""


def test_each_layer_has_its_own_heads_and_sizes():
    assert kept_in(filled((2, 8, 4), (1, 16, 16))) == Keeping((Kept(2, 8, 4), Kept(1, 16, 16)))


def test_a_layer_that_drops_what_is_out_of_its_window_keeps_keys_and_values():
    cache = DynamicCache(config=Gemma2Config(sliding_window=4, num_hidden_layers=2))
    for layer in range(2):
        cache.update(torch.zeros(2, 2, 5, 8), torch.zeros(2, 2, 5, 8), layer)
    assert {layer.keys.shape[2] for layer in cache.layers} == {3, 5}
    assert kept_in(cache) == Keeping((Kept(2, 8, 8),) * 2)


def test_a_state_is_no_key_and_value():
    cache = filled((2, 8, 8), (2, 8, 8), (2, 8, 8))
    cache.layers[1] = cache.layers[2] = StateLayer()
    found = kept_in(cache)
    assert found.kept == ()
    assert found.why_not == (
        "a StateLayer is what 2 of its 3 layers keep of a text, not keys and values that grow with it"
    )


def test_a_layer_that_keeps_nothing_is_named():
    cache = filled((2, 8, 8), (2, 8, 8))
    cache.layers[1].keys = None
    assert kept_in(cache).why_not == "its layer 1 keeps nothing of a text: it reads what another layer keeps"


def test_caches_of_another_kind_are_named():
    assert "the model keeps a dict of a text" in kept_in({}).why_not
    own, other = kept_in_both(filled((2, 8, 8)))
    assert own == other
    assert "the model keeps a DynamicCache of its texts" in own.why_not


def test_a_decoder_keeps_of_both_texts_or_of_neither():
    own, other = kept_in_both(EncoderDecoderCache(filled((2, 8, 8)), filled((4, 8, 8))))
    assert (own.kept, other.kept) == ((Kept(2, 8, 8),), (Kept(4, 8, 8),))
    broken = EncoderDecoderCache(filled((2, 8, 8)), filled((4, 8, 8)))
    broken.cross_attention_cache.layers[0] = StateLayer()
    own, other = kept_in_both(broken)
    assert own == other
    assert own.kept == ()
    assert own.why_not.startswith("a StateLayer")


def test_examples_of_a_cache_have_its_shapes_and_no_two_are_equal():
    kept = [Kept(2, 8, 4), Kept(1, 3, 3)]
    drawn = in_cache(EXAMPLES[0], torch.zeros(1, dtype=torch.bfloat16), kept, 6)
    assert [tuple(one.shape) for one in drawn] == [(2, 2, 6, 8), (2, 2, 6, 4), (2, 1, 6, 3), (2, 1, 6, 3)]
    assert {one.dtype for one in drawn} == {torch.bfloat16}
    assert not torch.equal(drawn[2], drawn[3])


def test_a_model_that_gives_no_cache_back_has_none():
    found = Keeping(why_not="the model gives back nothing that it keeps of a text")
    for output in (transformers.modeling_outputs.MaskedLMOutput(), transformers.modeling_outputs.BaseModelOutput()):
        assert cache_of(output) is None
        assert kept_in(cache_of(output)) == found
        assert kept_in_both(cache_of(output)) == (found, found)


def test_a_decoder_whose_output_has_none_is_exported_without():
    """XLM's causal model gives what one of masked words gives."""
    config = transformers.XLMConfig(vocab_size=50, emb_dim=32, n_layers=2, n_heads=2, mask_index=5)
    model, adapter = transformers.XLMWithLMHeadModel(config).eval(), CausalLMAdapter()
    assert [view.name for view in adapter.export_views(model)] == ["decoder"]
    assert "nothing that it keeps" in adapter.views_refused(model, "onnx")["decoder_with_past"]
