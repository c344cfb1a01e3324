"""Pico LFM2-VL, MiniCPM-V and Nemotron Omni, which read images as rows of patches, with their processors."""

from typing import Any

from family import Family
from pico_composites import PATCH, TEXT, TOWER, VISION, images, row, text
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


def minicpmv(layers: int) -> Any:
    from transformers import MiniCPMV4_6Config

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}
    said = text(
        "qwen3_5_text", layers, layer_types=["linear_attention", "full_attention", "full_attention"][:layers],
        linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
        rope_parameters=rope,
    )  # fmt: skip
    seen = {**VISION, "image_size": 56, "insert_layer_id": 0}
    return MiniCPMV4_6Config(
        vision_config=seen, text_config=said, insert_layer_id=0, image_size=56, image_token_id=token(0),
        video_token_id=token(1), tie_word_embeddings=False,
    )  # fmt: skip


def minicpmv_processor() -> Any:
    from transformers import MiniCPMV4_6Processor, MiniCPMV4_6VideoProcessor

    names = ("image", "video", "image_start", "image_end", "slice_start", "slice_end", "image_id_start", "image_id_end")
    words = tokenizer(begins=False, **{f"{name}_token": f"<{name}>" for name in names})
    sizes = {"scale_resolution": 56, "patch_size": PATCH, "max_slice_nums": 1}
    seen = images("MiniCPMV4_6ImageProcessor", **sizes)
    return MiniCPMV4_6Processor(seen, MiniCPMV4_6VideoProcessor(**sizes), words, chat_template=chat("<image>"))


def nemotron_omni(layers: int) -> Any:
    from transformers import NemotronH_Omni_Reasoning_V3_Config

    said = text(
        "nemotron_h", layers, layers_block_type=["mamba", "attention", "moe"][-layers:], ssm_state_size=8,
        mamba_num_heads=4, mamba_head_dim=8, n_groups=2, chunk_size=8, n_routed_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=24, moe_shared_expert_intermediate_size=24,
    )  # fmt: skip
    seen = {
        "model_type": "radio", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2.0,
        "patch_size": PATCH, "image_size": 56, "max_img_size": 112, "num_cls_tokens": 1, "num_registers": 1,
        "video_temporal_patch_size": 2,
    }  # fmt: skip
    return NemotronH_Omni_Reasoning_V3_Config(
        vision_config=seen, text_config=said, audio_config=None, image_token_id=token(0), video_token_id=token(1),
        projector_hidden_size=48, vision_hidden_size=32, force_image_size=56, tie_word_embeddings=False,
    )  # fmt: skip


def nemotron_omni_processor() -> Any:
    from transformers import NemotronH_Omni_Reasoning_V3Processor as Processor
    from transformers import NemotronH_Omni_Reasoning_V3VideoProcessor as VideoProcessor
    from transformers import ParakeetFeatureExtractor

    words = tokenizer(
        begins=False, image_token="<image>", video_token="<video>", image_start_token="<img>", image_end_token="</img>",
        audio_token="<so_embedding>", audio_start="<so_start>", audio_end="<so_end>",
    )  # fmt: skip
    seen = images("NemotronH_Omni_Reasoning_V3ImageProcessor", patch_size=PATCH, min_num_patches=4, max_num_patches=16)
    return Processor(seen, VideoProcessor(), words, ParakeetFeatureExtractor(), chat_template=chat("<image>"))


FAMILIES: dict[str, Family] = {
    "lfm2_vl": row(
        "Lfm2VlForConditionalGeneration",
        lfm2_vl,
        lfm2_vl_processor,
        real_patches=lambda batch: batch["pixel_attention_mask"].bool(),
        outside=("model.vision_tower.embeddings.patch_embedding", "lm_head"),
    ),
    "minicpmv4_6": row("MiniCPMV4_6ForConditionalGeneration", minicpmv, minicpmv_processor, outside=("lm_head",)),
    "nemotron_h_omni": row(
        "NemotronH_Omni_Reasoning_V3",
        nemotron_omni,
        nemotron_omni_processor,
        outside=(
            "vision_model.embeddings.patch_projection",
            "multi_modal_projector.linear_1",
            "multi_modal_projector.linear_2",
            "language_model.lm_head",
        ),
    ),
}
