"""Attention by groups against transformers' own, and against softmax by hand in float64."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import ecoflap
from ecoflap.core.errors import ModelError
from ecoflap.core.packed.group_attention import NAME, attend

transformers = pytest.importorskip("transformers", minversion="5.0", reason="attention is set from version 5 on")

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}


def llama(**keys: object) -> nn.Module:
    torch.manual_seed(0)
    sizes = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": None, **keys}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("heads", "groups", "queries"), [(8, 2, 1), (6, 1, 1), (4, 4, 1), (8, 2, 3)])
@pytest.mark.parametrize("masked", [None, "rows", "heads"])
def test_it_is_softmax_by_hand(heads, groups, queries, masked):
    query, key, value = numbers(2, heads, queries, 16), numbers(2, groups, 9, 16), numbers(2, groups, 9, 16)
    shape = {"rows": (2, 1, queries, 9), "heads": (2, heads, queries, 9)}.get(masked or "")
    mask = None if shape is None else numbers(*shape) > -0.5
    module = nn.Module()
    module.is_causal, module.num_key_value_groups = False, heads // groups
    found, _ = attend(module, query, key, value, mask, scaling=0.3)
    keys, values = (one.double().repeat_interleave(heads // groups, 1) for one in (key, value))
    scores = query.double() @ keys.transpose(2, 3) * 0.3
    scores = scores if mask is None else scores.masked_fill(~mask, -math.inf)
    torch.testing.assert_close(found.double(), (scores.softmax(-1) @ values).transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_a_process_that_is_handed_a_model_knows_its_attention():
    from transformers import AttentionInterface

    grouped = llama()
    ecoflap.group_attention(grouped)
    handed = pickle.dumps(grouped)
    del AttentionInterface._global_mapping[NAME]  # as in a process that was spawned
    ids = torch.tensor([[3, 5, 8, 9]])
    with torch.no_grad():
        assert torch.equal(pickle.loads(handed)(ids).logits, grouped(ids).logits)


@pytest.mark.parametrize("padded", [False, True])
def test_a_model_says_the_same(padded):
    model = llama()
    grouped = copy.deepcopy(model)
    ecoflap.group_attention(grouped)
    ecoflap.group_attention(grouped)  # once more does nothing
    assert (model.config._attn_implementation, grouped.config._attn_implementation) == ("sdpa", NAME)
    ids, mask = torch.tensor([[3, 5, 8, 9], [0, 0, 7, 2]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    ids, mask = (ids, mask) if padded else (ids[:1], mask[:1])
    said = [
        one.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0, output_scores=True,
                     return_dict_in_generate=True)
        for one in (model, grouped)
    ]  # fmt: skip
    assert torch.equal(said[0].sequences, said[1].sequences)
    torch.testing.assert_close(said[0].scores, said[1].scores, rtol=1e-4, atol=1e-5)


def test_one_query_of_heads_that_share_keys_goes_by_rows(monkeypatch):
    seen, own = [], torch.nn.functional.scaled_dot_product_attention

    def watched(query, *others, **keys):
        seen.append(tuple(query.shape))
        return own(query, *others, **keys)

    model = llama()
    ecoflap.group_attention(model)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    ids = torch.tensor([[3, 5, 8]])
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    assert seen == [(1, 4, 3, 8)] * 2 + [(1, 2, 2, 8)] * 4  # the prompt, and two tokens of two groups of two heads


def test_what_is_saved_says_nothing_of_it(tmp_path):
    model = llama()
    ecoflap.group_attention(model)
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_what_has_nothing_to_group_is_refused():
    with pytest.raises(ModelError, match="Linear is no model of transformers 5 whose attention can be set"):
        ecoflap.group_attention(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="LlamaForCausalLM has keys of its own for each of 4 heads: none are to be"):
        ecoflap.group_attention(llama(num_key_value_heads=4))
    model = llama()
    model.set_attn_implementation("eager")
    with pytest.raises(
        ModelError, match=r"LlamaForCausalLM attends by 'eager': say model\.set_attn_implementation\('sdpa'\)"
    ):
        ecoflap.group_attention(model)
    type(model)._supports_sdpa, had = False, type(model)._supports_sdpa
    try:
        with pytest.raises(ModelError, match="attends by 'eager': and has no product of torch's instead"):
            ecoflap.group_attention(model)
    finally:
        type(model)._supports_sdpa = had
