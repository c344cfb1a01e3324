"""Pico models that put images into a text in ways of their own, InstructBLIP and Mllama among them."""

from typing import Any

from family import Family
from pico_composites import PATCH, SIZE, SQUARE, TEXT, VISION, images, row, text
from pico_words import BEGIN, END, PAD, VOCABULARY, captions, chat, token, tokenizer


def instructblip(layers: int) -> Any:
    from transformers import InstructBlipConfig

    qformer = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "cross_attention_frequency": 2,
        "max_position_embeddings": 64,
        "encoder_hidden_size": 32,
    }
    return InstructBlipConfig(
        vision_config=VISION,
        qformer_config=qformer,
        text_config=text("llama", layers),
        num_query_tokens=4,
        image_token_index=token(0),
    )


def instructblip_processor() -> Any:
    from transformers import InstructBlipProcessor

    seen = images("BlipImageProcessor", size=SQUARE)
    return InstructBlipProcessor(seen, tokenizer(), tokenizer(), num_query_tokens=4)


def mllama(layers: int) -> Any:
    from transformers import MllamaConfig

    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_global_layers": 2,
        "attention_heads": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
        "max_num_tiles": 2,
        "intermediate_layers_indices": [0, 1],
        "vision_output_dim": 96,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    said = text("mllama_text_model", layers, cross_attention_layers=[1], rope_parameters=rope)
    return MllamaConfig(vision_config=vision, text_config=said, image_token_index=token(0))


def mllama_processor() -> Any:
    from transformers import MllamaProcessor

    words = tokenizer(begins=False, image_token="<|image|>", python_token="<|python_tag|>")
    seen = images("MllamaImageProcessor", size=SQUARE, max_image_tiles=2)
    return MllamaProcessor(seen, words, chat_template=chat("<|image|>"))


def kosmos2(layers: int) -> Any:
    from transformers import Kosmos2Config

    said = {
        "vocab_size": VOCABULARY,
        "embed_dim": 32,
        "layers": layers,
        "ffn_dim": 48,
        "attention_heads": 4,
        "max_position_embeddings": 128,
        "pad_token_id": PAD,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
    }
    return Kosmos2Config(vision_config=VISION, text_config=said, latent_query_num=64)


def kosmos2_processor() -> Any:
    from transformers import Kosmos2Processor

    return Kosmos2Processor(
        images("CLIPImageProcessor", size={"shortest_edge": SIZE}, crop_size=SQUARE),
        tokenizer(),
        num_patch_index_tokens=4,
    )


def florence2(layers: int) -> Any:
    from transformers import Florence2Config

    vision = {
        "embed_dim": [16, 32],
        "depths": [1, 1],
        "num_heads": [2, 4],
        "num_groups": [2, 4],
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "window_size": 4,
        "projection_dim": 32,
        "max_temporal_embeddings": 4,
        "max_position_embeddings": 8,
    }
    said = {
        "model_type": "bart",
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": PAD,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "decoder_start_token_id": END,
        "forced_eos_token_id": None,
    }
    return Florence2Config(vision_config=vision, text_config=said, image_token_id=token(0), tie_word_embeddings=False)


def florence2_processor() -> Any:
    from transformers import Florence2Processor

    seen = images("CLIPImageProcessor", size=SQUARE, do_center_crop=False)
    seen.image_seq_length = 17
    return Florence2Processor(seen, tokenizer(begins=False, image_token="<image>"))


def chameleon(layers: int) -> Any:
    from transformers import ChameleonConfig

    codes = {
        "embed_dim": 32, "num_embeddings": 10, "latent_channels": 32, "resolution": SIZE, "base_channels": 32,
        "channel_multiplier": [1, 1, 1], "num_res_blocks": 1,
    }  # fmt: skip
    names = {f"IMGIMG{letter}Z": 60 + number for number, letter in enumerate("ABCDEFGHIJ")}
    return ChameleonConfig(
        vq_config=codes, vocabulary_map={"<image>": token(0), **names}, **{**TEXT, "num_hidden_layers": layers}
    )


def chameleon_processor() -> Any:
    from transformers import ChameleonProcessor

    words = tokenizer(image_token="<image>", boi_token="<racm3:break>", eoi_token="<eoss>")
    words.sep_token = "<s>"
    seen = images("ChameleonImageProcessor", size={"shortest_edge": SIZE}, crop_size=SQUARE)
    return ChameleonProcessor(seen, words, image_seq_length=49)


KOSMOS = (
    *(f"image_to_text_projection.{name}" for name in ("dense", "x_attn.q_proj", "x_attn.k_proj", "x_attn.v_proj")),
    "image_to_text_projection.x_attn.out_proj", "text_model.lm_head",
)  # fmt: skip
FAMILIES: dict[str, Family] = {
    "instructblip": row(
        "InstructBlipForConditionalGeneration",
        instructblip,
        instructblip_processor,
        towers=("vision", "qformer", "language"),
        kept=("qformer",),
        outside=("language_projection", "language_model.lm_head"),
    ),
    "mllama": row(
        "MllamaForConditionalGeneration", mllama, mllama_processor, outside=("model.multi_modal_projector", "lm_head")
    ),
    "kosmos2": row("Kosmos2ForConditionalGeneration", kosmos2, kosmos2_processor, outside=KOSMOS),
    "chameleon": row("ChameleonForConditionalGeneration", chameleon, chameleon_processor, towers=("language",)),
    "florence2": row(
        "Florence2ForConditionalGeneration",
        florence2,
        florence2_processor,
        captions,
        towers=("vision", "encoder", "decoder"),
        outside=("model.multi_modal_projector.image_projection", "lm_head"),
    ),
}
