"""Pico decoders of the families that the adapter ``causal_lm`` takes."""

from functools import partial
from typing import Any

import torch
from family import Family
from pico_composites import drawn, outputs, poisoned, reload
from pico_decoder import samples
from pico_words import BEGIN, END, PAD, VOCABULARY

from ecoflap.adapters.generic.causal_lm import CausalLMAdapter

SETTINGS = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": PAD, "bos_token_id": BEGIN,
    "eos_token_id": END, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
HEADS: dict[str, Any] = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4, "first_k_dense_replace": 1, "head_dim": None,
}  # fmt: skip
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
KINDS: dict[str, dict[str, Any]] = {
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 8},
    "gemma3_text": {"sliding_window": 8},
    "phi": {},
    "phi3": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_neox": {},
    "falcon": {"head_dim": None, "multi_query": False, "alibi": True, "new_decoder_architecture": False},
    "bloom": {"n_head": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"sliding_window": 8},
    "stablelm": {},
    "starcoder2": {},
    "glm4": {},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"], "max_position_embeddings": 256},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, **EXPERTS},
    "qwen2_moe": {"num_experts": 4, **EXPERTS, "shared_expert_intermediate_size": 32},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, **EXPERTS, **HEADS},
    "deepseek_v4": {  # so many heads that no two windows score the same, of which each runtime takes others
        "n_routed_experts": 4, "q_lora_rank": 16, "num_key_value_heads": 1, "o_groups": 2, "o_lora_rank": 8,
        "index_n_heads": 16, "index_head_dim": 8, "index_topk": 2, "sliding_window": 8, **EXPERTS,
        "layer_types": ["compressed_sparse_attention", "heavily_compressed_attention"],
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 3},
        "mlp_layer_types": ["hash_moe", "moe"],
    },
    "jamba": {
        "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "gemma4_text": {
        "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "sliding_window": 8,
        "global_head_dim": 16, "layer_types": ["sliding_attention", "full_attention"],
    },
    "mistral4": {"n_routed_experts": 4, **EXPERTS, **HEADS},
    "sarvam_moe": {"n_routed_experts": 4, **EXPERTS},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8, "rope_parameters": ROPE},
    "dbrx": {
        "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "gemma3n_text": {
        "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "laurel_rank": 4,
        "num_kv_shared_layers": 1, "sliding_window": 8,
        "layer_types": ["sliding_attention", "sliding_attention"],
    },
    "mamba2": {"num_heads": 8, "expand": 2, "n_groups": 1, "state_size": 8, "chunk_size": 8, "head_dim": 8},
    "llama4_text": {
        "num_local_experts": 4, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 1, "attention_chunk_size": 64,
    },
}  # fmt: skip
"""By ``model_type``. What is unlike the others of a family, such as a logit scale, is set so that it matters."""
OUTSIDE = {
    "opt": ("model.decoder.project_in", "model.decoder.project_out"),
    "gemma4_text": ("model.per_layer_model_projection",),
    "gemma3n_text": tuple(f"model.altup_{way}projections.{number}" for way in ("", "unembed_") for number in range(3)),
}


CLASSES = {"mistral4": "Mistral4ForCausalLM"}
"""Of those that are not in transformers' table."""


def build(kind: str, layers: int, **keys: Any) -> Any:
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**SETTINGS, "num_hidden_layers": layers, **keys}
    if layers == 3:
        settings |= {name: 3 for name in ("n_layer", "n_layers") if name in keys}
        for name in ("layer_types", "mlp_layer_types"):
            settings.pop(name, None)
    config = AutoConfig.for_model(kind, **{name: value for name, value in settings.items() if value is not None})
    own = getattr(transformers, CLASSES[kind])(config) if kind in CLASSES else None
    model = drawn(own or AutoModelForCausalLM.from_config(config))
    for name, table in model.named_buffers():
        if name.endswith("tid2eid"):  # which experts a token has, as a checkpoint brings it
            table.copy_((torch.arange(table.numel()) * 7 // 3 % 4).reshape(table.shape))
    return model


def row(kind: str, **keys: Any) -> Family:
    return Family(
        build=partial(build, kind, 2, **keys),
        build_other=partial(build, kind, 3, **keys),
        adapter=CausalLMAdapter,
        samples=samples,
        towers=("language",),
        outside=(*OUTSIDE.get(kind, ()), "lm_head"),
        reload=partial(reload, CLASSES.get(kind, "AutoModelForCausalLM")),
        outputs=outputs,
        poisoned=poisoned,
        multiplies={"falcon": "x @ weight.T"}.get(kind, ""),
    )


FAMILIES = {kind: row(kind, **keys) for kind, keys in KINDS.items()}
