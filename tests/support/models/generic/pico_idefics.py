"""Pico Idefics 2 and 3 and SmolVLM, which read several images a text and mask their padding, with their processors."""

from typing import Any

from family import Family
from pico_composites import SIZE, TEXT, VISION, images, row
from pico_words import chat, questions_of_one_shape, token, tokenizer
from transformers_version import is_before

TAGS = {
    "image_token": "<image>",
    "image_boundary_token": "<fake_token_around_image>",
    "fake_image_token": "<fake_token_around_image>",
    "end_of_utterance_token": "<end_of_utterance>",
    "global_image_token": "<global-img>",
    "video_token": "<video>",
}


def idefics2(layers: int) -> Any:
    from transformers import Idefics2Config

    text = {"model_type": "mistral", **TEXT, "num_hidden_layers": layers}
    perceiver = {
        "hidden_size": 32,
        "resampler_n_latents": 4,
        "resampler_depth": 2,
        "resampler_n_heads": 4,
        "resampler_head_dim": 8,
        "num_key_value_heads": 2,
    }
    return Idefics2Config(
        vision_config=VISION,
        text_config=text,
        perceiver_config=perceiver,
        image_token_id=token(0),
        tie_word_embeddings=False,
    )


def idefics3(layers: int, kind: str = "Idefics3") -> Any:
    import transformers

    text = {"model_type": "llama", **TEXT, "num_hidden_layers": layers}
    return getattr(transformers, f"{kind}Config")(
        vision_config={**VISION, "image_size": 2 * SIZE},
        text_config=text,
        image_token_id=token(0),
        scale_factor=2,
        tie_word_embeddings=False,
        pad_token_id=0,
    )


def idefics2_processor() -> Any:
    from transformers import Idefics2Processor

    sizes = {"size": {"shortest_edge": 14, "longest_edge": SIZE}, "do_image_splitting": False}
    words = tokenizer(**({} if is_before("5") else TAGS))
    if is_before("5"):  # it can read no names of tags, and has them in this order
        words.add_special_tokens({"additional_special_tokens": [*dict.fromkeys(TAGS.values())]})
    return Idefics2Processor(
        images("Idefics2ImageProcessor", **sizes), words, image_seq_len=4, chat_template=chat("<image>")
    )


def idefics3_processor(kind: str) -> Any:
    """SmolVLM's own is the same, and needs num2words for its videos."""
    from transformers import Idefics3Processor

    sizes = {"size": {"longest_edge": 2 * SIZE}, "max_image_size": {"longest_edge": 2 * SIZE}}
    return Idefics3Processor(
        images(f"{kind}ImageProcessor", **sizes), tokenizer(**TAGS), image_seq_len=4, chat_template=chat("<image>")
    )


CONNECTOR = ("model.connector.modality_projection.proj", "lm_head")
IDEFICS2 = tuple(f"model.connector.modality_projection.{name}" for name in ("gate_proj", "up_proj", "down_proj"))
FAMILIES: dict[str, Family] = {
    "idefics2": row(
        "Idefics2ForConditionalGeneration",
        idefics2,
        idefics2_processor,
        questions_of_one_shape,
        towers=("vision", "resampler", "language"),
        kept=("resampler",),
        outside=(*IDEFICS2, "lm_head"),
    ),
    "idefics3": row(
        "Idefics3ForConditionalGeneration", idefics3, lambda: idefics3_processor("Idefics3"), outside=CONNECTOR
    ),
    "smolvlm": row(
        "SmolVLMForConditionalGeneration",
        lambda layers: idefics3(layers, "SmolVLM"),
        lambda: idefics3_processor("SmolVLM"),
        outside=CONNECTOR,
    ),
}
