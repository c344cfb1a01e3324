"""Pico models that read a text and say another, of the families that the adapter ``seq2seq_lm`` takes."""

from functools import partial
from typing import Any

import pico_t5
from family import Family
from pico_composites import drawn, poisoned, reload
from pico_words import BEGIN, END, PAD, VOCABULARY
from torch import Tensor

from ecoflap.adapters.generic.seq2seq_lm import Seq2SeqLMAdapter
from ecoflap.core.contracts.records import Batch

SETTINGS = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": PAD, "bos_token_id": BEGIN,
    "eos_token_id": END, "decoder_start_token_id": END, "forced_eos_token_id": None,
}  # fmt: skip
KINDS = ("bart", "mbart", "pegasus", "m2m_100", "blenderbot", "marian")


def build(kind: str, layers: int) -> Any:
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    config = AutoConfig.for_model(kind, **SETTINGS, encoder_layers=layers, decoder_layers=layers)
    return drawn(AutoModelForSeq2SeqLM.from_config(config))


def adapter() -> Seq2SeqLMAdapter:
    made = Seq2SeqLMAdapter()
    made.processor = pico_t5.tokenizer()
    return made


def outputs(model: Any, batch: Batch) -> Tensor:
    logits: Tensor = model(**batch, use_cache=False).logits
    return logits


def row(kind: str) -> Family:
    return Family(
        build=partial(build, kind, 2),
        build_other=partial(build, kind, 3),
        adapter=adapter,
        samples=pico_t5.questions,
        towers=("encoder", "decoder"),
        outside=("lm_head",),
        reload=partial(reload, "AutoModelForSeq2SeqLM"),
        outputs=outputs,
        poisoned=poisoned,
    )


FAMILIES = {kind: row(kind) for kind in KINDS}
