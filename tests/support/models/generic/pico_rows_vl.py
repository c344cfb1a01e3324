"""Pico LFM2-VL, which reads images as rows of patches with padding behind them, and its processor."""

from typing import Any

from family import Family
from pico_composites import PATCH, TEXT, TOWER, images, row
from pico_words import chat, token, tokenizer


def lfm2_vl(layers: int) -> Any:
    from transformers import Lfm2VlConfig

    types = ["conv", "full_attention", "full_attention"][:layers]
    return Lfm2VlConfig(
        vision_config={"model_type": "siglip2_vision_model", **TOWER, "patch_size": PATCH, "num_patches": 16},
        text_config={
            "model_type": "lfm2",
            **TEXT,
            "num_hidden_layers": layers,
            "layer_types": types,
            "block_multiple_of": 16,
        },
        image_token_id=token(0),
        downsample_factor=2,
        projector_hidden_size=32,
        tie_word_embeddings=False,
    )


def lfm2_vl_processor() -> Any:
    from transformers import Lfm2VlProcessor

    words = tokenizer(
        begins=False,
        image_token="<image>",
        image_start_token="<begin>",
        image_end_token="<end>",
        image_thumbnail="<small>",
    )
    seen = images(
        "Lfm2VlImageProcessor",
        encoder_patch_size=PATCH,
        downsample_factor=2,
        do_image_splitting=False,
        min_image_tokens=1,
        max_image_tokens=4,
        max_num_patches=16,
        tile_size=4 * PATCH,
    )
    return Lfm2VlProcessor(seen, words, chat_template=chat("<image>"))


FAMILIES: dict[str, Family] = {
    "lfm2_vl": row(
        "Lfm2VlForConditionalGeneration",
        lfm2_vl,
        lfm2_vl_processor,
        real_patches=lambda batch: batch["pixel_attention_mask"].bool(),
        outside=("model.vision_tower.embeddings.patch_embedding", "lm_head"),
    )
}
