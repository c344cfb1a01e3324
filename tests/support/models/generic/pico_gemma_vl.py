"""Pico PaliGemma, Gemma 3 and 4 and T5Gemma 2, which look at an image from both sides, with their processors."""

from typing import Any

from family import Family
from pico_composites import SIZE, TEXT, TOWER, VISION, images, row
from pico_words import BEGIN, VOCABULARY, captions, chat, token, tokenizer

SIGLIP = {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False}


def paligemma(layers: int) -> Any:
    from transformers import PaliGemmaConfig

    text = {"model_type": "gemma", **TEXT, "num_hidden_layers": layers}
    return PaliGemmaConfig(
        vision_config={**SIGLIP, "projection_dim": 32}, text_config=text, image_token_index=token(0), projection_dim=32,
        hidden_size=32, tie_word_embeddings=False,
    )  # fmt: skip


def paligemma_processor() -> Any:
    from transformers import PaliGemmaProcessor

    seen = images("SiglipImageProcessor", size={"height": SIZE, "width": SIZE})
    seen.image_seq_length = 4
    return PaliGemmaProcessor(seen, tokenizer(begins=False, image_token="<image>"))


def gemma3(layers: int) -> Any:
    from transformers import Gemma3Config

    text = {"model_type": "gemma3_text", **TEXT, "num_hidden_layers": layers, "sliding_window": 8}
    return Gemma3Config(
        vision_config=SIGLIP, text_config=text, image_token_index=token(0), mm_tokens_per_image=1,
        boi_token_index=token(1), eoi_token_index=token(2), tie_word_embeddings=False,
    )  # fmt: skip


def gemma3_processor() -> Any:
    from transformers import Gemma3Processor

    words = tokenizer(image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
    seen = images("Gemma3ImageProcessor", size={"height": SIZE, "width": SIZE})
    return Gemma3Processor(seen, words, image_seq_length=1, chat_template=chat("<start_of_image>"))


def gemma4(layers: int) -> Any:
    from transformers import Gemma4Config

    said = {
        "model_type": "gemma4_text", **TEXT, "num_hidden_layers": layers, "sliding_window": 8, "global_head_dim": 8,
        "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "enable_moe_block": True,
        "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24,
    }  # fmt: skip
    seen = {
        **TOWER, "num_key_value_heads": 4, "head_dim": 8, "patch_size": 4, "pooling_kernel_size": 2,
        "position_embedding_size": 64,
    }  # fmt: skip
    return Gemma4Config(
        text_config=said, vision_config=seen, audio_config=None, image_token_id=token(0), boi_token_id=token(1),
        eoi_token_id=token(2), tie_word_embeddings=False,
    )  # fmt: skip


def gemma4_processor() -> Any:
    from transformers import Gemma4AudioFeatureExtractor, Gemma4Processor, Gemma4VideoProcessor

    names = ("image", "boi", "eoi", "audio", "boa", "eoa")
    words = tokenizer(**{f"{name}_token": f"<|{name}|>" for name in names})
    seen = images("Gemma4ImageProcessor", patch_size=4, max_soft_tokens=70, pooling_kernel_size=2)
    return Gemma4Processor(
        Gemma4AudioFeatureExtractor(), seen, words, Gemma4VideoProcessor(), chat_template=chat("<|image|>"),
        image_seq_length=70,
    )  # fmt: skip


def t5gemma2(layers: int) -> Any:
    from transformers import T5Gemma2Config

    said = {**TEXT, "num_hidden_layers": layers, "sliding_window": 8, "query_pre_attn_scalar": 8}
    marks = {"boi_token_index": token(1), "eoi_token_index": token(2), "image_token_index": token(0)}
    encoder = {
        "text_config": said,
        "vision_config": SIGLIP,
        "mm_tokens_per_image": 1,
        "tie_word_embeddings": False,
        **marks,
    }
    return T5Gemma2Config(
        encoder=encoder,
        decoder=said,
        image_token_index=token(0),
        eoi_token_index=token(2),
        tie_word_embeddings=True,
        decoder_start_token_id=BEGIN,
    )


GEMMA4 = (
    "model.vision_tower.patch_embedder.input_proj", "model.language_model.per_layer_model_projection", "lm_head",
)  # fmt: skip
FAMILIES: dict[str, Family] = {
    "paligemma": row(
        "PaliGemmaForConditionalGeneration", paligemma, paligemma_processor,
        outside=("model.multi_modal_projector.linear", "lm_head"),
    ),
    "gemma3": row("Gemma3ForConditionalGeneration", gemma3, gemma3_processor, captions, outside=("lm_head",)),
    "gemma4": row(
        "Gemma4ForConditionalGeneration", gemma4, gemma4_processor, captions,
        real_patches=lambda batch: (batch["image_position_ids"] != -1).all(-1), outside=GEMMA4,
    ),
    "t5gemma2": row(
        "T5Gemma2ForConditionalGeneration", t5gemma2, gemma3_processor, captions,
        towers=("vision", "encoder", "decoder"), outside=("lm_head.out_proj",),
    ),
}  # fmt: skip
