"""Pico Qwen-VL and GLM-V, whose images are patches in a row with a grid beside them, with their processors."""

from typing import Any

from family import Family
from pico_composites import PATCH, TEXT, images, row
from pico_words import chat, token, tokenizer

TOKENS = {
    "image_token_id": token(0),
    "video_token_id": token(1),
    "vision_start_token_id": token(2),
    "vision_end_token_id": token(3),
    "tie_word_embeddings": False,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
GRID = {"patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3, "num_heads": 4}


def text(layers: int, **keys: Any) -> dict[str, Any]:
    return {**TEXT, "num_hidden_layers": layers, "rope_parameters": ROPE, **keys}


def qwen2_vl(layers: int) -> Any:
    from transformers import Qwen2VLConfig

    vision = {**GRID, "depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    return Qwen2VLConfig(text_config=text(layers), vision_config=vision, **TOKENS)


def qwen2_5_vl(layers: int) -> Any:
    from transformers import Qwen2_5_VLConfig

    vision = {
        **GRID,
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 32,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLConfig(text_config=text(layers), vision_config=vision, **TOKENS)


DEEP = {
    **GRID,
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 32,
    "deepstack_visual_indexes": [0, 1],
    "num_position_embeddings": 16,
}


def qwen3_vl(layers: int) -> Any:
    from transformers import Qwen3VLConfig

    return Qwen3VLConfig(text_config=text(layers), vision_config=DEEP, **TOKENS)


def qwen3_vl_moe(layers: int) -> Any:
    from transformers import Qwen3VLMoeConfig

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
    return Qwen3VLMoeConfig(text_config=text(layers, **experts), vision_config=DEEP, **TOKENS)


def glm4v(layers: int) -> Any:
    from transformers import Glm4vConfig

    vision = {
        **GRID,
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 32,
        "image_size": 56,
    }
    own = {**TOKENS, "image_start_token_id": token(2), "image_end_token_id": token(3)}
    return Glm4vConfig(
        text_config=text(layers, rope_parameters={**ROPE, "partial_rotary_factor": 1.0}), vision_config=vision, **own
    )


def processor(kind: str) -> Any:
    import transformers

    glm = kind == "Glm4v"
    names = ["<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"] if glm else []
    names = names or ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    words = tokenizer(
        begins=False,
        image_token=names[0],
        video_token=names[1],
        vision_start_token=names[2],
        vision_end_token=names[3],
        video_start="<|begin_of_video|>",
        video_end="<|end_of_video|>",
    )
    grid = {"patch_size": PATCH, "temporal_patch_size": 2, "merge_size": 2}
    area = (
        {"shortest_edge": 56 * 56, "longest_edge": 56 * 84}
        if not glm
        else {"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 56 * 84}
    )
    seen = "Qwen2VL" if not glm else "Glm4v"
    videos = getattr(transformers, f"{kind.replace('Qwen2_5_VL', 'Qwen2VL')}VideoProcessor")(**grid)
    return getattr(transformers, f"{kind}Processor")(
        images(f"{seen}ImageProcessor", **grid, size=area),
        words,
        videos,
        chat_template=chat(f"{names[2]}{names[0]}{names[3]}"),
    )


def merger(*names: str) -> tuple[str, ...]:
    return (*(f"model.visual.merger.{name}" for name in names), "lm_head")


FAMILIES: dict[str, Family] = {
    "qwen2_vl": row(
        "Qwen2VLForConditionalGeneration", qwen2_vl, lambda: processor("Qwen2VL"), outside=merger("mlp.0", "mlp.2")
    ),
    "qwen2_5_vl": row(
        "Qwen2_5_VLForConditionalGeneration",
        qwen2_5_vl,
        lambda: processor("Qwen2_5_VL"),
        outside=merger("mlp.0", "mlp.2"),
    ),
    "qwen3_vl": row(
        "Qwen3VLForConditionalGeneration",
        qwen3_vl,
        lambda: processor("Qwen3VL"),
        outside=merger("linear_fc1", "linear_fc2"),
    ),
    "qwen3_vl_moe": row(
        "Qwen3VLMoeForConditionalGeneration",
        qwen3_vl_moe,
        lambda: processor("Qwen3VL"),
        outside=merger("linear_fc1", "linear_fc2"),
    ),
    "glm4v": row(
        "Glm4vForConditionalGeneration",
        glm4v,
        lambda: processor("Glm4v"),
        outside=merger("proj", "gate_proj", "up_proj", "down_proj"),
    ),
}
