"""Pico LLaVA of each kind, with their processors."""

import json
from pathlib import Path
from random import Random
from typing import Any

from family import Family
from pico_composites import PATCH, SIZE, SQUARE, TEXT, VISION, images, row, text
from pico_words import captions, chat, picture, sentence, token, tokenizer

TILES = [[28, 56], [56, 28], [56, 56]]
PROJECTOR = ("model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2")


def llava(layers: int, **keys: Any) -> Any:
    from transformers import LlavaConfig

    vision = {"model_type": "clip_vision_model", **VISION, "num_hidden_layers": 3}
    text = {"model_type": "llama", **TEXT, "num_hidden_layers": layers}
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=token(0), **{"tie_word_embeddings": False, **keys}
    )


def llava_processor() -> Any:
    from transformers import LlavaProcessor

    return LlavaProcessor(
        images("CLIPImageProcessor", size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}),
        tokenizer(image_token="<image>"), patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip


def llava_next(layers: int) -> Any:
    from transformers import LlavaNextConfig

    vision = {"model_type": "clip_vision_model", **VISION, "num_hidden_layers": 3}
    text = {"model_type": "mistral", **TEXT, "num_hidden_layers": layers}
    return LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_index=token(0), image_grid_pinpoints=TILES,
        image_seq_length=4, tie_word_embeddings=False,
    )  # fmt: skip


def llava_next_processor() -> Any:
    from transformers import LlavaNextProcessor

    square = {"height": SIZE, "width": SIZE}
    return LlavaNextProcessor(
        images("LlavaNextImageProcessor", size={"shortest_edge": SIZE}, crop_size=square, image_grid_pinpoints=TILES),
        tokenizer(image_token="<image>"), patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip


def onevision(layers: int) -> Any:
    from transformers import LlavaOnevisionConfig

    vision = {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False}
    text = {"model_type": "qwen2", **TEXT, "num_hidden_layers": layers}
    return LlavaOnevisionConfig(
        vision_config=vision, text_config=text, image_token_index=token(0), video_token_index=token(1),
        image_grid_pinpoints=TILES, tie_word_embeddings=False,
    )  # fmt: skip


def onevision_processor() -> Any:
    from transformers import LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

    square = {"height": SIZE, "width": SIZE}
    return LlavaOnevisionProcessor(
        images("LlavaOnevisionImageProcessor", size=square, image_grid_pinpoints=TILES),
        tokenizer(begins=False, image_token="<image>", video_token="<video>"),
        LlavaOnevisionVideoProcessor(size=square), num_image_tokens=4, vision_feature_select_strategy="full",
        chat_template=chat("<image>"),
    )  # fmt: skip


PIXTRAL = {
    "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "head_dim": 8, "image_size": 56, "patch_size": PATCH,
}  # fmt: skip


def pixtral(layers: int) -> Any:
    from transformers import LlavaConfig

    return LlavaConfig(
        vision_config=PIXTRAL, text_config={"model_type": "mistral", **TEXT, "num_hidden_layers": layers},
        image_token_index=token(0), vision_feature_layer=-1, vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )  # fmt: skip


def mistral3(layers: int) -> Any:
    from transformers import Mistral3Config

    return Mistral3Config(
        vision_config=PIXTRAL, text_config={"model_type": "mistral", **TEXT, "num_hidden_layers": layers},
        image_token_index=token(0), spatial_merge_size=2, tie_word_embeddings=False,
    )  # fmt: skip


def pixtral_processor(merge: int = 1) -> Any:
    from transformers import PixtralProcessor

    words = tokenizer(image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]")
    sizes = {"size": {"longest_edge": 56}, "patch_size": {"height": merge * PATCH, "width": merge * PATCH}}
    return PixtralProcessor(
        images("PixtralImageProcessor", **sizes), words, patch_size=PATCH, spatial_merge_size=merge,
        chat_template=chat("[IMG]"),
    )  # fmt: skip


CLIP = {"model_type": "clip_vision_model", **VISION, "num_hidden_layers": 3}


def vipllava(layers: int) -> Any:
    from transformers import VipLlavaConfig

    return VipLlavaConfig(
        vision_config=CLIP, text_config=text("llama", layers), image_token_index=token(0),
        vision_feature_layer=[-2, -1], image_seq_length=4, tie_word_embeddings=False,
    )  # fmt: skip


def llava_next_video(layers: int) -> Any:
    from transformers import LlavaNextVideoConfig

    return LlavaNextVideoConfig(
        vision_config=CLIP, text_config=text("llama", layers), image_token_index=token(0), video_token_index=token(1),
        image_grid_pinpoints=TILES, image_seq_length=4, tie_word_embeddings=False,
    )  # fmt: skip


def llava_next_video_processor() -> Any:
    from transformers import LlavaNextVideoProcessor, LlavaNextVideoVideoProcessor

    return LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(size={"shortest_edge": SIZE}, crop_size=SQUARE),
        images("LlavaNextImageProcessor", size={"shortest_edge": SIZE}, crop_size=SQUARE, image_grid_pinpoints=TILES),
        tokenizer(image_token="<image>", video_token="<video>"), chat_template=chat("<image>"), patch_size=PATCH,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


def lighton(layers: int) -> Any:
    from transformers import LightOnOcrConfig

    return LightOnOcrConfig(
        vision_config=PIXTRAL, text_config=text("qwen3", layers), image_token_id=token(0), spatial_merge_size=2,
        tie_word_embeddings=False,
    )  # fmt: skip


def lighton_processor() -> Any:
    from transformers import LightOnOcrProcessor

    words = tokenizer(image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]")
    side = {"height": 2 * PATCH, "width": 2 * PATCH}
    seen = images("PixtralImageProcessor", size={"longest_edge": 56}, patch_size=side)
    return LightOnOcrProcessor(seen, words, patch_size=PATCH, spatial_merge_size=2, chat_template=chat("[IMG]"))


def mistral_large4(layers: int) -> Any:
    from transformers import MistralLarge4Config

    said = text(
        "mistral_large4_text", layers, moe_intermediate_size=24, n_routed_experts=4, num_experts_per_tok=2,
        kv_lora_rank=16, qk_rope_head_dim=8, v_head_dim=8, qk_nope_head_dim=8, num_key_value_heads=4, index_topk=64,
        index_head_dim=8, index_n_heads=2,
    )  # fmt: skip
    return MistralLarge4Config(
        vision_config=PIXTRAL, text_config=said, image_token_index=token(0), spatial_merge_size=2,
        tie_word_embeddings=False,
    )  # fmt: skip


def fast_vlm_processor() -> Any:
    from transformers import LlavaProcessor

    seen = images("CLIPImageProcessor", size={"shortest_edge": SIZE}, crop_size=SQUARE)
    words = tokenizer(image_token="<image>")
    return LlavaProcessor(seen, words, patch_size=SIZE, vision_feature_select_strategy="full")


def fast_vlm(layers: int) -> Any:
    from transformers import FastVlmConfig

    seen = {
        "model_type": "timm_wrapper", "architecture": "fastvit_mci3", "hidden_size": 64, "do_pooling": False,
        "num_classes": 0,
        "model_args": {"inference_mode": True, "layers": [1, 1, 1, 1, 1], "embed_dims": [16, 16, 16, 32, 32]},
    }  # fmt: skip
    return FastVlmConfig(
        vision_config=seen, text_config=text("qwen2", layers), image_token_index=token(0), image_seq_length=1,
        tie_word_embeddings=False,
    )  # fmt: skip


OUTSIDE = (*PROJECTOR, "lm_head")
MERGED = (
    "model.multi_modal_projector.patch_merger.merging_layer", *PROJECTOR, "lm_head",
)  # fmt: skip
LLAVA = "LlavaForConditionalGeneration"
FAMILIES: dict[str, Family] = {
    "llava": row(LLAVA, llava, llava_processor, outside=OUTSIDE),
    "llava_two_layers": row(
        LLAVA, lambda layers: llava(layers, vision_feature_layer=[-3, -1]), llava_processor, captions, outside=OUTSIDE
    ),
    "llava_next": row("LlavaNextForConditionalGeneration", llava_next, llava_next_processor, outside=OUTSIDE),
    "llava_onevision": row("LlavaOnevisionForConditionalGeneration", onevision, onevision_processor, outside=OUTSIDE),
    "pixtral": row(LLAVA, pixtral, pixtral_processor, outside=OUTSIDE),
    "mistral3": row("Mistral3ForConditionalGeneration", mistral3, lambda: pixtral_processor(2), outside=MERGED),
    "vipllava": row("VipLlavaForConditionalGeneration", vipllava, llava_processor, outside=OUTSIDE),
    "llava_next_video": row(
        "LlavaNextVideoForConditionalGeneration", llava_next_video, llava_next_video_processor, outside=OUTSIDE
    ),
    "lighton_ocr": row(
        "LightOnOcrForConditionalGeneration", lighton, lighton_processor,
        outside=tuple(name.replace("multi_modal_projector", "vision_projection") for name in MERGED),
    ),
    "mistral_large4": row(
        "MistralLarge4ForConditionalGeneration", mistral_large4, lambda: pixtral_processor(2), outside=MERGED
    ),
    "fast_vlm": row("FastVlmForConditionalGeneration", fast_vlm, fast_vlm_processor, outside=OUTSIDE),
}  # fmt: skip


def save_llava(folder: Path) -> None:
    """Write ``model``, with its processor, and ``images`` with an index of all there may be."""
    random = Random(0)
    adapter: Any = FAMILIES["llava"].adapter()
    adapter.save(FAMILIES["llava"].build(), folder / "model")
    (folder / "images").mkdir()
    lines = []
    for number in range(6):
        picture(random, 40, 33).save(folder / "images" / f"{number}.png")
        texts = {"text": sentence(random, 4), "question": sentence(random, 3), "answers": [sentence(random, 1)]}
        lines.append(json.dumps({"image": f"{number}.png", "label": number % 3, **texts}))
    (folder / "images" / "index.jsonl").write_text("\n".join(lines))


def recipe_of_llava(model: Path, images: Path) -> dict[str, Any]:
    """Prune such a model by what is asked about such images."""
    return {
        "version": 1,
        "model": str(model),
        "calibration": {"use": "image_question_answer", "path": str(images), "samples": 4, "batch_size": 2},
        "sparsity": 0.5,
        "allocate": "uniform",
        "prune": "wanda",
    }
