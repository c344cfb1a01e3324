"""Pico LLaVA of each kind, with their processors."""

import json
from pathlib import Path
from random import Random
from typing import Any

from family import Family
from pico_composites import PATCH, SIZE, TEXT, VISION, images, row
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
}


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
