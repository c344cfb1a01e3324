"""Pico LLaVA-OneVision 1.5 and Ovis 2.5, which transformers has from 5.25 on, with their processors."""

from typing import Any

from family import Family
from pico_composites import PATCH, TEXT, images, row
from pico_qwen_vl import merger
from pico_words import chat, token, tokenizer

SEEN = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
AREA = {"shortest_edge": 56 * 56, "longest_edge": 56 * 84}
QWEN3 = {"model_type": "qwen3", **TEXT}


def llava_onevision1_5(layers: int) -> Any:
    from transformers import LlavaOnevision15Config

    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": PATCH,
        "out_hidden_size": 32,
    }  # fmt: skip
    return LlavaOnevision15Config(
        text_config={**QWEN3, "num_hidden_layers": layers}, vision_config=vision, image_token_id=token(0),
        video_token_id=token(1), vision_start_token_id=token(2), vision_end_token_id=token(3),
    )  # fmt: skip


def llava_onevision1_5_processor() -> Any:
    """That of EXAONE 4.5, as transformers has it for this model: Qwen's with patches of one frame."""
    from transformers import Exaone4_5_Processor, Qwen2VLVideoProcessor

    grid = {"patch_size": PATCH, "temporal_patch_size": 1, "merge_size": 2}
    names = dict(zip(("image_token", "video_token", "vision_start_token", "vision_end_token"), SEEN, strict=True))
    return Exaone4_5_Processor(
        images("Qwen2VLImageProcessor", **grid, size=AREA),
        tokenizer(begins=False, **names),
        Qwen2VLVideoProcessor(**grid),
        chat_template=chat("".join((SEEN[2], SEEN[0], SEEN[3]))),
    )


OVIS = ("image_token", "video_token", "image_start_token", "image_end_token", "video_start_token", "video_end_token")


def ovis2_5(layers: int) -> Any:
    from transformers import Ovis2_5Config

    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "patch_size": PATCH, "image_size": 56, "window_size": 56, "vocab_size": 24,
        "layer_types": ["window_attention", "full_attention"],
    }  # fmt: skip
    tokens = {f"{name}_id": token(at) for at, name in enumerate(OVIS)}
    return Ovis2_5Config(text_config={**QWEN3, "num_hidden_layers": layers}, vision_config=vision, **tokens)


def ovis2_5_processor() -> Any:
    from transformers import Ovis2_5Processor, Ovis2_5VideoProcessor

    grid = {"patch_size": PATCH, "temporal_patch_size": 1, "merge_size": 2}
    names = {name: f"<{name}>" for name in OVIS}
    return Ovis2_5Processor(
        images("Ovis2_5ImageProcessor", **grid, size=AREA),
        tokenizer(begins=False, **names),
        Ovis2_5VideoProcessor(**grid),
        chat_template=chat(names["image_token"]),
    )


TOKENIZER = ("model.multi_modal_projector.visual_tokenizer.linear", "lm_head")
"""Without the table that gives the vectors of visual tokens, and of those around an image by number."""

FAMILIES: dict[str, Family] = {
    "llava_onevision1_5": row(
        "LlavaOnevision15ForConditionalGeneration",
        llava_onevision1_5,
        llava_onevision1_5_processor,
        outside=merger("linear_fc1", "linear_fc2"),
    ),
    "ovis2_5": row("Ovis2_5ForConditionalGeneration", ovis2_5, ovis2_5_processor, outside=TOKENIZER),
}
