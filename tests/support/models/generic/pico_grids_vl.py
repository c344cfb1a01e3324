"""Pico models that read an image as patches with a grid beside them, as Qwen-VL does, with their processors."""

from typing import Any

from family import Family
from pico_causal import KINDS
from pico_composites import PATCH, TEXT, TOWER, images, row
from pico_llava import OUTSIDE
from pico_qwen_vl import DEEP, GRID, ROPE, TOKENS, merger, qwen2_5_vl, text
from pico_qwen_vl import processor as qwen_processor
from pico_words import chat, token, tokenizer

LINEAR = {
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def hybrid(layers: int) -> dict[str, Any]:
    """One layer in two reads its text by a linear recurrence."""
    kinds = ["linear_attention", "full_attention", "full_attention"][:layers]
    rope = {**ROPE, "partial_rotary_factor": 1.0, "mrope_interleaved": True}
    return text(layers, **LINEAR, layer_types=kinds, rope_parameters=rope)


def plain_deep() -> dict[str, Any]:
    return {name: value for name, value in DEEP.items() if "deepstack" not in name} | {"depth": 2}


def qwen3_5(layers: int) -> Any:
    from transformers import Qwen3_5Config

    return Qwen3_5Config(text_config=hybrid(layers), vision_config=plain_deep(), **TOKENS)


def qwen3_5_moe(layers: int) -> Any:
    from transformers import Qwen3_5MoeConfig

    said = {**hybrid(layers), **EXPERTS, "shared_expert_intermediate_size": 24}
    return Qwen3_5MoeConfig(text_config=said, vision_config=plain_deep(), **TOKENS)


GLM = {**GRID, "depth": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "image_size": 56}
GLM_TOKENS = {**TOKENS, "image_start_token_id": token(2), "image_end_token_id": token(3)}
GLM_ROPE = {"rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}}


def glm46v(layers: int) -> Any:
    from transformers import Glm46VConfig

    said = {"model_type": "glm4v_text", **text(layers, **GLM_ROPE)}
    return Glm46VConfig(text_config=said, vision_config={"model_type": "glm4v_vision", **GLM}, **GLM_TOKENS)


def glm4v_moe(layers: int) -> Any:
    from transformers import Glm4vMoeConfig

    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 1}
    return Glm4vMoeConfig(text_config=text(layers, **GLM_ROPE, **experts), vision_config=GLM, **GLM_TOKENS)


def glm_ocr(layers: int) -> Any:
    from transformers import GlmOcrConfig

    return GlmOcrConfig(text_config=text(layers, **GLM_ROPE), vision_config=GLM, **GLM_TOKENS)


def exaone4_5(layers: int) -> Any:
    from transformers import Exaone4_5_Config

    vision = {**qwen2_5_vl(1).vision_config.to_dict(), "model_type": "exaone4_5_vision", "num_key_value_heads": 2}
    said = {"model_type": "exaone4", **TEXT, "num_hidden_layers": layers, "sliding_window": 8}
    return Exaone4_5_Config(
        text_config=said, vision_config=vision, image_token_id=token(0), video_token_id=token(1),
        tie_word_embeddings=False,
    )  # fmt: skip


def of_qwen(kind: str) -> Any:
    """A processor of another name that is made of the parts of Qwen's."""
    import transformers

    qwen = qwen_processor("Qwen2_5_VL")
    return getattr(transformers, f"{kind}Processor")(
        qwen.image_processor, qwen.tokenizer, qwen.video_processor, chat_template=qwen.chat_template
    )


def paddleocr(layers: int) -> Any:
    from transformers import PaddleOCRVLConfig

    vision = {**TOWER, "image_size": 56, "patch_size": PATCH, "spatial_merge_size": 2}
    return PaddleOCRVLConfig(text_config=text(layers), vision_config=vision, **TOKENS)


def paddleocr_processor() -> Any:
    from transformers import PaddleOCRVLProcessor

    seen = images(
        "PaddleOCRVLImageProcessor", patch_size=PATCH, temporal_patch_size=1, merge_size=2,
        size={"shortest_edge": 56 * 56, "longest_edge": 56 * 84},
    )  # fmt: skip
    words = tokenizer(begins=False, image_token="<|IMAGE_PLACEHOLDER|>")
    return PaddleOCRVLProcessor(seen, words, chat_template=chat("<|IMAGE_PLACEHOLDER|>"))


def video_llama_3(layers: int) -> Any:
    from transformers import VideoLlama3Config

    return VideoLlama3Config(
        text_config={"model_type": "qwen2", **TEXT, "num_hidden_layers": layers},
        vision_config={**TOWER, "patch_size": PATCH}, image_token_id=token(0), video_token_id=token(1),
        tie_word_embeddings=False,
    )  # fmt: skip


def video_llama_3_processor() -> Any:
    from transformers import VideoLlama3Processor, VideoLlama3VideoProcessor

    seen = images(
        "VideoLlama3ImageProcessor",
        patch_size=PATCH,
        merge_size=1,
        size={"shortest_edge": 28 * 28, "longest_edge": 28 * 42},
    )
    words = tokenizer(begins=False, image_token="<image>", video_token="<video>")
    return VideoLlama3Processor(seen, words, VideoLlama3VideoProcessor(patch_size=PATCH), chat_template=chat("<image>"))


def ernie(layers: int) -> Any:
    from transformers import Ernie4_5_VLMoeConfig

    experts = {
        "moe_intermediate_size": [24, 16], "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1,
        "mlp_layer_types": ["dense", "sparse", "sparse"][:layers],
    }  # fmt: skip
    vision = {**GRID, "depth": 2, "hidden_size": 32, "intermediate_size": 48, "temporal_merge_size": 2}
    vision.pop("temporal_patch_size")
    return Ernie4_5_VLMoeConfig(text_config=text(layers, **experts), vision_config=vision, **GLM_TOKENS)


def ernie_processor() -> Any:
    from transformers import Ernie4_5_VLMoeProcessor, Ernie4_5_VLMoeVideoProcessor

    marks = (
        "image_token",
        "video_token",
        "image_start_token",
        "image_end_token",
        "video_start_token",
        "video_end_token",
    )
    words = tokenizer(begins=False, **{mark: f"<{mark}>" for mark in marks})
    seen = images(
        "Ernie4_5_VLMoeImageProcessor",
        patch_size=PATCH,
        merge_size=2,
        size={"shortest_edge": 56 * 56, "longest_edge": 56 * 84},
    )
    return Ernie4_5_VLMoeProcessor(
        seen, words, Ernie4_5_VLMoeVideoProcessor(patch_size=PATCH, draw_on_frames=False),
        chat_template=chat("<image_start_token><image_token><image_end_token>"),
    )  # fmt: skip


def minimax(layers: int) -> Any:
    from transformers import MiniMaxM3VLConfig

    said = text(
        layers, num_local_experts=4, num_experts_per_tok=2, dense_intermediate_size=48, shared_intermediate_size=24,
        rotary_dim=8, mlp_layer_types=["dense", "sparse", "sparse"][:layers],
        layer_types=["full_attention", "minimax_m3_sparse", "full_attention"][:layers], index_n_heads=2,
        index_head_dim=8, index_block_size=4, index_topk_blocks=64,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    vision = {**TOWER, "image_size": 56, "patch_size": PATCH}
    return MiniMaxM3VLConfig(
        text_config=said, vision_config=vision, image_token_index=token(0), video_token_index=token(1),
        projector_hidden_size=48, tie_word_embeddings=False,
    )  # fmt: skip


def minimax_processor() -> Any:
    from transformers import MiniMaxM3VLProcessor, MiniMaxM3VLVideoProcessor

    names = ("image", "video", "start of image", "end of image")
    words = tokenizer(begins=False, **{f"mark_{number}": f"]<]{name}[>[" for number, name in enumerate(names)})
    seen = images(
        "MiniMaxM3VLImageProcessor", patch_size=PATCH, size={"shortest_edge": 56 * 56, "longest_edge": 56 * 84}
    )
    return MiniMaxM3VLProcessor(seen, words, MiniMaxM3VLVideoProcessor(), chat_template=chat("]<]image[>["))


def lfm3_vl(layers: int) -> Any:
    from transformers import Lfm3VlConfig

    vision = {
        **TOWER, "patch_size": PATCH, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"],
    }  # fmt: skip
    said = {
        "model_type": "lfm3", **TEXT, "num_hidden_layers": layers, "sliding_window": 8,
        "layer_types": ["conv", "full_attention", "sliding_attention"][:layers],
    }  # fmt: skip
    return Lfm3VlConfig(text_config=said, vision_config=vision, projector_hidden_size=32, **TOKENS)


def qwen4_exp(layers: int, **keys: Any) -> Any:
    from transformers import Qwen4ExpConfig

    said = {
        **hybrid(layers), **EXPERTS, "shared_expert_intermediate_size": 24, "hc_count": 2, "hc_lowrank": 8,
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 64,
        "indexer_compress_ratio": 4, **keys,
    }  # fmt: skip
    return Qwen4ExpConfig(text_config=said, vision_config=plain_deep(), **TOKENS)


AUDIO = {
    "num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "d_model": 32,
    "max_source_positions": 16, "output_dim": 32,
}  # fmt: skip
HEARD = {"image_token_id": token(0), "video_token_id": token(1), "audio_token_id": token(4)}
STARTS = {"vision_start_token_id": token(2), "vision_end_token_id": token(3), "tie_word_embeddings": False}


def qwen2_5_omni(layers: int) -> Any:
    from transformers import Qwen2_5OmniThinkerConfig

    vision = {**qwen2_5_vl(1).vision_config.to_dict(), "model_type": "qwen2_5_omni_vision_encoder"}
    heard = {name.replace("_id", "_index"): number for name, number in HEARD.items()}
    return Qwen2_5OmniThinkerConfig(
        text_config=text(layers), vision_config=vision, audio_config=AUDIO, **STARTS, **heard
    )


def qwen3_omni(layers: int) -> Any:
    from transformers import Qwen3OmniMoeThinkerConfig

    said = text(layers, **EXPERTS, decoder_sparse_step=1)
    audio = {**AUDIO, "downsample_hidden_size": 16}
    return Qwen3OmniMoeThinkerConfig(text_config=said, vision_config=DEEP, audio_config=audio, **STARTS, **HEARD)


def omni_processor(kind: str) -> Any:
    import transformers

    names = (
        "image_token",
        "video_token",
        "vision_bos_token",
        "vision_eos_token",
        "audio_token",
        "audio_bos_token",
        "audio_eos_token",
    )
    words = tokenizer(begins=False, **{name: f"<|{name}|>" for name in names})
    qwen = qwen_processor("Qwen2VL")
    return getattr(transformers, f"{kind}Processor")(
        qwen.image_processor, qwen.video_processor, transformers.WhisperFeatureExtractor(feature_size=16), words,
        chat_template=chat("<|vision_bos_token|><|image_token|><|vision_eos_token|>"),
    )  # fmt: skip


def kimi_processor() -> Any:
    from transformers import Kimi_K25Processor, Kimi_K25VideoProcessor

    words = tokenizer(begins=False, image_token="<|media_pad|>", video_token="<|video|>")
    seen = images("Kimi_K25ImageProcessor", patch_size=PATCH, merge_size=2, max_patches=16)
    return Kimi_K25Processor(seen, words, Kimi_K25VideoProcessor(patch_size=PATCH), chat_template=chat("<|media_pad|>"))


def kimi(layers: int) -> Any:
    from transformers import Kimi_K25Config

    experts = KINDS["deepseek_v3"]
    return Kimi_K25Config(
        text_config={"model_type": "deepseek_v3", **TEXT, "num_hidden_layers": layers, **experts},
        vision_config={**TOWER, "patch_size": PATCH, "pos_emb_height": 4, "pos_emb_width": 4},
        projection_hidden_size=32, tie_word_embeddings=False, image_token_id=token(0), video_token_id=token(1),
    )  # fmt: skip


LINEAR_MERGER = merger("linear_fc1", "linear_fc2")
GLM_MERGER = merger("proj", "gate_proj", "up_proj", "down_proj")
ERNIE = (
    "model.vision_tower.patch_embed.proj",
    *(f"model.resampler_model.{way}_linear.{name}" for way in ("spatial", "temporal") for name in ("fc1", "fc2")),
    "model.resampler_model.mlp", "lm_head",
)  # fmt: skip
MIXER = tuple(f"model.language_model.hyper_connection_mixer.input_mix_weight_{way}" for way in ("down", "up"))
MERGE = tuple(f"model.multi_modal_projector.merge_linear_{number}" for number in (1, 2))
FAMILIES: dict[str, Family] = {
    "qwen3_5": row(
        "Qwen3_5ForConditionalGeneration", qwen3_5, lambda: qwen_processor("Qwen3VL"), outside=LINEAR_MERGER
    ),
    "qwen3_5_moe": row(
        "Qwen3_5MoeForConditionalGeneration", qwen3_5_moe, lambda: qwen_processor("Qwen3VL"), outside=LINEAR_MERGER
    ),
    "glm46v": row("Glm46VForConditionalGeneration", glm46v, lambda: qwen_processor("Glm46V"), outside=GLM_MERGER),
    "glm4v_moe": row(
        "Glm4vMoeForConditionalGeneration", glm4v_moe, lambda: qwen_processor("Glm4v"), outside=GLM_MERGER
    ),
    "glm_ocr": row("GlmOcrForConditionalGeneration", glm_ocr, lambda: qwen_processor("Glm46V"), outside=GLM_MERGER),
    "exaone4_5": row(
        "Exaone4_5_ForConditionalGeneration", exaone4_5, lambda: of_qwen("Exaone4_5_"), outside=merger("mlp.0", "mlp.2")
    ),
    "paddleocr_vl": row("PaddleOCRVLForConditionalGeneration", paddleocr, paddleocr_processor, outside=("lm_head",)),
    "video_llama_3": row(
        "VideoLlama3ForConditionalGeneration",
        video_llama_3,
        video_llama_3_processor,
        outside=("model.projector.readout.0", "model.projector.readout.2", "lm_head"),
    ),
    "ernie4_5_vl_moe": row("Ernie4_5_VLMoeForConditionalGeneration", ernie, ernie_processor, outside=ERNIE),
    "minimax_m3_vl": row(
        "MiniMaxM3SparseForConditionalGeneration",
        minimax,
        minimax_processor,
        outside=(*OUTSIDE[:-1], *MERGE, "lm_head"),
    ),
    "lfm3_vl": row(
        "Lfm3VlForConditionalGeneration",
        lfm3_vl,
        lambda: of_qwen("Lfm3Vl"),
        outside=("model.vision_tower.patch_embed", *OUTSIDE),
    ),
    "qwen4_exp": row(
        "Qwen4ExpForConditionalGeneration",
        qwen4_exp,
        lambda: qwen_processor("Qwen3VL"),
        outside=(*LINEAR_MERGER[:-1], *MIXER, "lm_head"),
    ),
    "qwen2_5_omni_thinker": row(
        "Qwen2_5OmniThinkerForConditionalGeneration",
        qwen2_5_omni,
        lambda: omni_processor("Qwen2_5Omni"),
        outside=merger("mlp.0", "mlp.2"),
    ),
    "qwen3_omni_moe_thinker": row(
        "Qwen3OmniMoeThinkerForConditionalGeneration",
        qwen3_omni,
        lambda: omni_processor("Qwen3OmniMoe"),
        outside=merger("mlp.0", "mlp.2"),
    ),
    "kimi_k25": row(
        "Kimi_K25ForConditionalGeneration",
        kimi,
        kimi_processor,
        outside=("model.mm_projector.in_proj", "model.mm_projector.out_proj", "lm_head"),
    ),
}
