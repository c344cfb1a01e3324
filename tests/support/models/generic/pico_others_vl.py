"""Pico InternVL, Ovis 2 and Aya Vision, with their processors."""

from typing import Any

from family import Family
from pico_composites import PATCH, SIZE, SQUARE, VISION, images, row, text
from pico_words import VOCABULARY, chat, token, tokenizer


def internvl(layers: int) -> Any:
    from transformers import InternVLConfig

    vision = {**VISION, "image_size": [SIZE, SIZE], "patch_size": [PATCH, PATCH]}
    return InternVLConfig(
        vision_config=vision,
        text_config=text("qwen2", layers),
        image_token_id=token(0),
        image_seq_length=1,
        tie_word_embeddings=False,
    )


def internvl_processor() -> Any:
    from transformers import InternVLProcessor, InternVLVideoProcessor

    words = tokenizer(
        begins=False,
        context_image_token="<IMG_CONTEXT>",
        start_image_token="<img>",
        end_image_token="</img>",
        video_token="<video>",
    )
    seen = images("GotOcr2ImageProcessor", size=SQUARE, crop_to_patches=False)
    return InternVLProcessor(
        seen, words, InternVLVideoProcessor(size=SQUARE), image_seq_length=1, chat_template=chat("<IMG_CONTEXT>")
    )


def ovis2(layers: int) -> Any:
    from transformers import Ovis2Config

    vision = {**VISION, "vocab_size": 64, "num_visual_indicator_tokens": 5, "hidden_stride": 2}
    return Ovis2Config(
        vision_config=vision,
        text_config=text("qwen2", layers),
        image_token_id=token(0),
        hidden_size=32,
        visual_indicator_token_ids=[token(1), token(2), token(3), token(4), token(5)],
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
    )


def ovis2_processor() -> Any:
    from transformers import Ovis2Processor

    marks = ["<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    words = tokenizer(
        begins=False, **{f"mark_{number}": mark for number, mark in enumerate(marks)}, image_token="<image>"
    )
    seen = images("Ovis2ImageProcessor", size=SQUARE, crop_to_patches=False)
    return Ovis2Processor(seen, words, chat_template=chat("<image>"), image_seq_length=1)


def aya(layers: int) -> Any:
    from transformers import AyaVisionConfig

    vision = {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False}
    return AyaVisionConfig(
        vision_config=vision,
        text_config=text("cohere2", layers),
        image_token_index=token(2),
        downsample_factor=2,
        adapter_layer_norm_eps=1e-6,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )


def aya_processor() -> Any:
    from transformers import AyaVisionProcessor

    marks = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL"]
    words = tokenizer(
        begins=False, **{f"mark_{number}": mark for number, mark in enumerate(marks)}, image_token="<image>"
    )
    seen = images("GotOcr2ImageProcessor", size=SQUARE, crop_to_patches=False)
    return AyaVisionProcessor(
        seen, words, patch_size=PATCH, img_size=SIZE, downsample_factor=2, chat_template=chat("<image>")
    )


PROJECTOR = ("model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2", "lm_head")
FAMILIES: dict[str, Family] = {
    "internvl": row(
        "InternVLForConditionalGeneration",
        internvl,
        internvl_processor,
        outside=PROJECTOR,
    ),
    "ovis2": row(
        "Ovis2ForConditionalGeneration", ovis2, ovis2_processor, outside=("model.vision_tower.head_linear", "lm_head")
    ),
    "aya_vision": row(
        "AyaVisionForConditionalGeneration",
        aya,
        aya_processor,
        outside=PROJECTOR,
    ),
}
