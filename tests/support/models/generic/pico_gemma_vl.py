"""Pico PaliGemma and Gemma 3, which look at an image from both sides, with their processors."""

from typing import Any

from family import Family
from pico_composites import SIZE, TEXT, VISION, images, row
from pico_words import captions, chat, token, tokenizer

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


FAMILIES: dict[str, Family] = {
    "paligemma": row(
        "PaliGemmaForConditionalGeneration", paligemma, paligemma_processor,
        outside=("model.multi_modal_projector.linear", "lm_head"),
    ),
    "gemma3": row("Gemma3ForConditionalGeneration", gemma3, gemma3_processor, captions, outside=("lm_head",)),
}  # fmt: skip
