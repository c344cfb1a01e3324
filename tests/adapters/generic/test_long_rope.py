"""Models that write into their own rotary frequencies as they run are watched like any other."""

import pytest
from pico_words import BEGIN, END, PAD, VOCABULARY
from transformers_version import is_before

from ecoflap.adapters.generic.causal_lm import CausalLMAdapter

pytestmark = pytest.mark.skipif(is_before("5"), reason="transformers before 5 has other settings for rotary positions")


def test_phi3_of_long_texts_is_taken_apart():
    from transformers import Phi3Config, Phi3ForCausalLM

    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    config = Phi3Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, original_max_position_embeddings=32, rope_parameters=rope,
        pad_token_id=PAD, bos_token_id=BEGIN, eos_token_id=END,
    )  # fmt: skip
    for model in (Phi3ForCausalLM(config), Phi3ForCausalLM(config).to("meta")):
        towers = CausalLMAdapter().towers(model)
        assert [(tower.name, len(tower.blocks)) for tower in towers] == [("language", 2), ("lm_head", 1)]
