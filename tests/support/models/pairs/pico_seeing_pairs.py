"""Pico pairs of an encoder that sees and a decoder that says, of those that the adapter ``image_to_text`` takes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from family import Family
from pico_composites import PATCH, SIZE, SQUARE, TOWER, drawn, images, reload
from pico_words import BEGIN, END, PAD, POISON, VOCABULARY, captions, tokenizer
from torch import Tensor
from transformers_version import is_before

from ecoflap.adapters.generic.image_to_text import ImageToTextAdapter
from ecoflap.core.contracts.records import Batch

VIT = {"model_type": "vit", **TOWER, "image_size": SIZE, "patch_size": PATCH}
SWIN = {
    "model_type": "donut-swin", "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 2,
    "image_size": SIZE, "patch_size": 7, "mlp_ratio": 2.0,
}  # fmt: skip
WORDS = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END}
TROCR = {
    "model_type": "trocr", **WORDS, "d_model": 32, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
    "max_position_embeddings": 64, "decoder_start_token_id": END, "cross_attention_hidden_size": 32,
}  # fmt: skip
MBART = {
    "model_type": "mbart", **WORDS, "d_model": 32, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
    "max_position_embeddings": 64, "forced_eos_token_id": None, "is_encoder_decoder": False,
    "add_final_layer_norm": True,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", **WORDS, "n_embd": 24, "n_head": 4, "n_positions": 64}
DEPTH = {"trocr": "decoder_layers", "mbart": "decoder_layers", "gpt2": "n_layer"}


def build(seeing: dict[str, Any], saying: dict[str, Any], layers: int) -> Any:
    """A pair; its generation settings say what the decoder begins with."""
    from transformers import AutoConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

    says = {**saying, DEPTH[saying["model_type"]]: layers}
    sees, says = (AutoConfig.for_model(**one) for one in (seeing, says))
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(sees, says)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = BEGIN, PAD, END
    return drawn(VisionEncoderDecoderModel(config))


def processor(kind: str) -> Any:
    from transformers import TrOCRProcessor

    return TrOCRProcessor(images(kind, size=SQUARE), tokenizer())


def adapter(kind: str) -> ImageToTextAdapter:
    made = ImageToTextAdapter()
    made.processor = processor(kind)
    return made


def outputs(model: Any, batch: Batch) -> Tensor:
    given = {name: value for name, value in batch.items() if name != "labels"}
    given["pixel_values"] = given["pixel_values"].to(next(model.parameters()).dtype)
    logits: Tensor = model(**given, use_cache=False).logits
    return logits


def poisoned(model: Any, batch: Batch) -> Batch:
    """Padding holds a token that is embedded as 1e6."""
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = 1e6
    padding = batch["decoder_attention_mask"] == 0
    return {**batch, "decoder_input_ids": batch["decoder_input_ids"].masked_fill(padding, POISON)}


def row(seeing: dict[str, Any], saying: dict[str, Any], kind: str, outside: tuple[str, ...]) -> Family:
    made: dict[str, Callable[..., Any]] = {
        name: partial(build, seeing, saying, layers) for name, layers in (("build", 2), ("build_other", 3))
    }
    return Family(
        **made, adapter=partial(adapter, kind), samples=captions, towers=("vision", "decoder"), outside=outside,
        reload=partial(reload, "VisionEncoderDecoderModel"), outputs=outputs, poisoned=poisoned,
        is_compared=not is_before("5"),
    )  # fmt: skip


FAMILIES = {
    "trocr": row(VIT, TROCR, "ViTImageProcessor", ("decoder.output_projection",)),
    "vit_gpt2": row(VIT, GPT2, "ViTImageProcessor", ("enc_to_dec_proj", "decoder.lm_head")),
}
if not is_before("5"):  # it cannot build a Swin transformer without weights
    FAMILIES["donut"] = row(SWIN, MBART, "ViTImageProcessor", ("decoder.lm_head",))
