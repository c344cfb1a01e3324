"""Pico models that read an image as a picture or as tiles of one, each in a way of its own, with their processors."""

from typing import Any

from family import Family
from pico_composites import PATCH, SIZE, SQUARE, TOWER, VISION, images, row, text
from pico_gemma_vl import SIGLIP
from pico_llava import OUTSIDE, TILES
from pico_words import PAD, chat, token, tokenizer


def granite4(layers: int) -> Any:
    from transformers import Granite4VisionConfig

    return Granite4VisionConfig(
        vision_config={**SIGLIP, "hidden_size": 64}, text_config=text("granite4_vision_text", layers),
        qformer_config={
            "model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 48,
            "cross_attention_frequency": 1, "use_qformer_text_input": False,
        },
        image_token_index=token(0), vision_feature_select_strategy="full", spatial_target_layers=[1, 1, 1, 1],
        image_grid_pinpoints=TILES, tie_word_embeddings=False, downsample_rate="1/2", deepstack_layer_map=[[-1, 0]],
        image_seq_length=1,
    )  # fmt: skip


def granite4_processor() -> Any:
    from transformers import Granite4VisionProcessor

    return Granite4VisionProcessor(
        images("LlavaNextImageProcessor", size={"shortest_edge": SIZE}, crop_size=SQUARE, image_grid_pinpoints=TILES),
        tokenizer(begins=False, image_token="<image>"), patch_size=PATCH, vision_feature_select_strategy="full",
        downsample_rate="1/2", chat_template=chat("<image>"),
    )  # fmt: skip


def deepseek(layers: int) -> Any:
    from transformers import DeepseekVLConfig

    return DeepseekVLConfig(
        vision_config=SIGLIP, text_config=text("llama", layers), image_token_id=token(0), tie_word_embeddings=False
    )


def deepseek_processor(kind: str = "DeepseekVL", **sizes: Any) -> Any:
    import transformers

    return getattr(transformers, f"{kind}Processor")(
        images(f"{kind}ImageProcessor", size=SQUARE, **sizes), tokenizer(image_token="<image>"),
        chat_template=chat("<image>"), num_image_tokens=4,
    )  # fmt: skip


SAM = {
    "hidden_size": 32, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64,
    "patch_size": 8, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 48,
}  # fmt: skip


def deepseek_hybrid(layers: int) -> Any:
    from transformers import DeepseekVLHybridConfig

    return DeepseekVLHybridConfig(
        vision_config=SIGLIP, high_res_vision_config={"model_type": "sam_vision_model", **SAM},
        text_config=text("llama", layers), image_token_id=token(0), tie_word_embeddings=False,
    )  # fmt: skip


def janus(layers: int) -> Any:
    from transformers import JanusConfig

    codes = {
        "embed_dim": 8, "num_embeddings": 16, "latent_channels": 16, "base_channels": 32, "channel_multiplier": [1, 1],
        "num_res_blocks": 1, "num_patches": 2, "projection_dim": 32, "image_token_embed_dim": 32,
    }  # fmt: skip
    seen = {**VISION, "mlp_ratio": 2.0, "projection_dim": 32, "num_image_tokens": 4}
    seen.pop("intermediate_size")
    return JanusConfig(
        vision_config=seen, vq_config=codes, text_config=text("llama", layers), image_token_id=token(0),
        tie_word_embeddings=False,
    )  # fmt: skip


def janus_processor() -> Any:
    from transformers import JanusProcessor

    words = tokenizer(image_token="<image_placeholder>", boi_token="<begin_of_image>", eoi_token="<end_of_image>")
    return JanusProcessor(
        images("JanusImageProcessor", size=SQUARE), words, chat_template=chat("<image_placeholder>"), num_image_tokens=4
    )


def cohere2(layers: int) -> Any:
    from transformers import Cohere2VisionConfig

    return Cohere2VisionConfig(
        vision_config=SIGLIP, text_config=text("cohere2", layers, sliding_window=8), image_token_id=token(0),
        downsample_factor=2, alignment_intermediate_size=64, tie_word_embeddings=False,
    )  # fmt: skip


def cohere2_processor() -> Any:
    from transformers import Cohere2VisionProcessor

    words = tokenizer(
        begins=False, image_token="<image>", boi_token="<boi>", eoi_token="<eoi>", img_line_break_token="<line>"
    )
    seen = images("Cohere2VisionImageProcessor", size=SQUARE, crop_to_patches=False, patch_size=1)
    return Cohere2VisionProcessor(seen, words, chat_template=chat("<image>"))


def got_ocr(layers: int) -> Any:
    from transformers import GotOcr2Config

    seen = {**SAM, "patch_size": 1, "global_attn_indexes": []}  # its processor knows images of 256 places alone
    return GotOcr2Config(
        vision_config=seen, text_config=text("qwen2", layers, max_position_embeddings=512), image_token_index=token(0),
        tie_word_embeddings=False,
    )  # fmt: skip


def got_ocr_processor() -> Any:
    from transformers import GotOcr2Processor

    words = tokenizer(begins=False, image_token="<imgpad>", start="<img>", end="</img>")
    seen = images("GotOcr2ImageProcessor", size={"height": 64, "width": 64})
    return GotOcr2Processor(seen, words, chat_template=chat("<img><imgpad></img>"))


def deepseek_ocr2(layers: int) -> Any:
    from transformers import DeepseekOcr2Config

    encoder = {**TOWER, "num_key_value_heads": 4, "max_position_embeddings": 512}
    said = text(
        "deepseek_ocr2_text", layers, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2,
        moe_intermediate_size=24, mlp_layer_types=["dense", "sparse", "sparse"][:layers], num_key_value_heads=4,
    )  # fmt: skip
    sam = {**SAM, "image_size": 48, "downsample_channels": [32, 32]}
    return DeepseekOcr2Config(
        vision_config={"sam_config": sam, "encoder_config": encoder}, text_config=said,
        image_token_id=token(0), tie_word_embeddings=False,
    )  # fmt: skip


def deepseek_ocr2_processor() -> Any:
    from transformers import DeepseekOcr2Processor

    seen = images("DeepseekOcr2ImageProcessor", size={"height": 48, "width": 48}, tile_size=48)
    made = DeepseekOcr2Processor(seen, tokenizer(image_token="<image>"), chat_template=chat("<image>"), patch_size=1)
    made.images_kwargs = {"crop_to_patches": False}  # for each image the model makes 144 vectors, however small it is
    return made


def perception(layers: int) -> Any:
    from transformers import PerceptionLMConfig

    seen = {
        "model_type": "timm_wrapper", "architecture": "vit_pe_core_large_patch14_336", "do_pooling": False,
        "num_classes": 0, "model_args": {
            "img_size": [SIZE, SIZE], "patch_size": PATCH, "embed_dim": 32, "depth": 2, "num_heads": 4,
            "mlp_ratio": 2.0, "global_pool": "", "use_post_transformer_norm": False, "init_values": 0.1,
            "ref_feat_shape": [2, 2],
        },
    }  # fmt: skip
    return PerceptionLMConfig(
        vision_config=seen, text_config=text("llama", layers), image_token_id=token(0), video_token_id=token(1),
        tie_word_embeddings=False,
    )  # fmt: skip


def perception_processor() -> Any:
    from transformers import PerceptionLMProcessor, PerceptionLMVideoProcessor

    seen = images("PerceptionLMImageProcessor", tile_size=SIZE, size=SQUARE, vision_input_type="thumb")
    words = tokenizer(image_token="<|image|>", video_token="<|video|>")
    return PerceptionLMProcessor(
        PerceptionLMVideoProcessor(size=SQUARE), seen, words, patch_size=PATCH, pooling_ratio=1,
        chat_template=chat("<|image|>"),
    )  # fmt: skip


def step3p7(layers: int) -> Any:
    from transformers import Step3p7Config

    rope = {"rope_type": "default", "rope_theta": 10000.0}
    said = text(
        "step3p5", layers, mlp_layer_types=["dense", "sparse", "sparse"][:layers], moe_intermediate_size=24,
        n_routed_experts=4, num_experts_per_tok=2, share_expert_dim=24, sliding_window=8,
        layer_types=["full_attention", "sliding_attention", "full_attention"][:layers], num_sliding_attention_heads=4,
        rope_parameters={"full_attention": rope, "sliding_attention": rope},
    )  # fmt: skip
    seen = {**TOWER, "image_size": 56, "patch_size": 7, "mlp_ratio": 2.0, "max_position_embeddings": 64}
    return Step3p7Config(vision_config=seen, text_config=said, image_token_id=token(0), tie_word_embeddings=False)


def step3p7_processor() -> Any:
    from transformers import Step3p7Processor

    names = ("im_patch", "patch_start", "patch_end", "patch_newline", "im_start", "im_end")
    words = tokenizer(begins=False, **{f"{name}_token": f"<{name}>" for name in names})
    seen = images("Step3p7ImageProcessor", size={"height": 56, "width": 56}, patch_size=28, max_image_size=112)
    seen.vision_patch_size = 7
    return Step3p7Processor(seen, words, chat_template=chat("<im_patch>"))


def molmo2(layers: int) -> Any:
    from transformers import Molmo2Config

    seen = {**VISION, "image_size": [SIZE, SIZE], "num_key_value_heads": 4, "head_dim": 8, "num_position_embeddings": 4}
    joined = {
        "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "text_hidden_size": 32,
        "intermediate_size": 48, "vision_feature_layer": [-1, -2],
    }  # fmt: skip
    said = text("molmo2_text", layers)
    return Molmo2Config(
        vision_config=seen, adapter_config=joined, text_config=said, image_patch_id=token(0),
        image_start_token_id=token(1), image_end_token_id=token(2), low_res_image_start_token_id=token(3),
        frame_start_token_id=token(4), frame_end_token_id=token(5), tie_word_embeddings=False,
    )  # fmt: skip


def molmo2_processor() -> Any:
    from transformers import Molmo2Processor, Molmo2VideoProcessor

    names = ("im_patch", "im_start", "im_end", "low_res_im_start", "frame_start", "frame_end", "im_col", "im_low")
    words = tokenizer(
        begins=False,
        **{f"{name}_token": f"<{name}>" for name in names},
        image_token="<|image|>",
        video_token="<|video|>",
    )
    seen = images("Molmo2ImageProcessor", size=SQUARE, max_crops=2, overlap_margins=[0, 0], patch_size=PATCH)
    return Molmo2Processor(seen, Molmo2VideoProcessor(), words, chat_template=chat("<|image|>"))


def granite_docling(layers: int) -> Any:
    from transformers import GraniteDoclingConfig

    seen = {**VISION, "image_size": 56, "out_hidden_size": 32, "scale_factor": 2, "deepstack_visual_indexes": [0]}
    return GraniteDoclingConfig(
        vision_config=seen, text_config=text("granite_docling_text", layers), image_token_id=token(0), pad_token_id=PAD,
        tie_word_embeddings=False,
    )  # fmt: skip


def granite_docling_processor() -> Any:
    from transformers import GraniteDoclingProcessor

    names = {"fake": "<fake_token_around_image>", "whole": "<global-img>", "row": "<row_1_col_1>"}
    words = tokenizer(image_token="<image>", **names)
    seen = images("GraniteDoclingImageProcessor", size={"height": 56, "width": 56}, max_patches=1)
    return GraniteDoclingProcessor(seen, words, image_seq_len=4, chat_template=chat("<image>"))


PROJECTOR = "model.multi_modal_projector"
POOLING = tuple(f"{PROJECTOR}.image_pooling_2d.{name}_proj" for name in ("q", "k", "v", "o"))
MOLMO2 = (*POOLING, *(f"{PROJECTOR}.image_projector.{name}_proj" for name in ("gate", "up", "down")))
FAMILIES: dict[str, Family] = {
    "granite4_vision": row(
        "Granite4VisionForConditionalGeneration", granite4, granite4_processor,
        towers=("vision", "projector", "language"), kept=("projector",), outside=("lm_head",),
    ),
    "deepseek_vl": row(
        "DeepseekVLForConditionalGeneration", deepseek, deepseek_processor,
        outside=("model.aligner.linear1", "model.aligner.linear2", "lm_head"),
    ),
    "deepseek_vl_hybrid": row(
        "DeepseekVLHybridForConditionalGeneration", deepseek_hybrid,
        lambda: deepseek_processor("DeepseekVLHybrid", high_res_size={"height": 64, "width": 64}),
        outside=(*(f"model.aligner.{name}" for name in ("vision_proj", "high_res_vision_proj", "proj")), "lm_head"),
    ),
    "janus": row(
        "JanusForConditionalGeneration", janus, janus_processor,
        outside=("model.aligner.fc1", "model.aligner.hidden_layers.0", "lm_head"),
    ),
    "cohere2_vision": row("Cohere2VisionForConditionalGeneration", cohere2, cohere2_processor, outside=OUTSIDE),
    "got_ocr2": row(
        "GotOcr2ForConditionalGeneration", got_ocr, got_ocr_processor,
        outside=(f"{PROJECTOR}.multimodal_projector", "lm_head"),
    ),
    "deepseek_ocr2": row(
        "DeepseekOcr2ForConditionalGeneration", deepseek_ocr2, deepseek_ocr2_processor, outside=(PROJECTOR, "lm_head")
    ),
    "perception_lm": row("PerceptionLMForConditionalGeneration", perception, perception_processor, outside=OUTSIDE),
    "step3p7": row("Step3p7ForConditionalGeneration", step3p7, step3p7_processor, outside=(PROJECTOR, "lm_head")),
    "molmo2": row(
        "Molmo2ForConditionalGeneration", molmo2, molmo2_processor,
        outside=("model.vision_tower.patch_embedding", *MOLMO2, "lm_head"),
    ),
    "granite_docling": row(
        "GraniteDoclingForConditionalGeneration", granite_docling, granite_docling_processor,
        towers=("vision", "connector", "language"), kept=("connector",),
        outside=(
            "model.vision_model.connector.coarse.projection", "model.vision_model.connector.mlp_fc2", "lm_head",
        ),
    ),
}  # fmt: skip
