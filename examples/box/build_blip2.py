"""The model in the box before it has learnt anything: a BLIP-2 of transformers with a T5 inside, and its processor.

BLIP-2: Li et al., 2023 (arXiv:2301.12597). The text model is of FlanT5's kind: gated GELU and an untied head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

TOKENS = 2000
QUERIES = 8
MEAN, STD = 0.8, 0.3
VISION = {
    "hidden_size": 160, "intermediate_size": 640, "num_hidden_layers": 4, "num_attention_heads": 5, "image_size": 64,
    "patch_size": 8, "initializer_range": 0.02,
}  # fmt: skip
QFORMER = {
    "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1,
    "cross_attention_frequency": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 1,
}  # fmt: skip
TEXT = {
    "model_type": "t5", "vocab_size": TOKENS, "d_model": 160, "d_kv": 32, "num_heads": 4, "d_ff": 384, "num_layers": 2,
    "num_decoder_layers": 2, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "dropout_rate": 0.0,
    "relative_attention_num_buckets": 16, "relative_attention_max_distance": 32, "pad_token_id": 0, "eos_token_id": 1,
    "decoder_start_token_id": 0,
}  # fmt: skip


def build_tokenizer(texts: Sequence[str]) -> Any:
    """Pieces of lower-case words; a blank belongs to the piece after it, as in T5."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Digits(True)]
    )
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", "<image>"]
    trainer = trainers.BpeTrainer(vocab_size=TOKENS, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def build_processor(texts: Sequence[str]) -> Any:
    """Pictures are 64 pixels already and are only scaled."""
    from transformers import Blip2Processor, BlipImageProcessorPil

    images = BlipImageProcessorPil(
        size={"height": 64, "width": 64}, image_mean=[MEAN] * 3, image_std=[STD] * 3, do_resize=True
    )
    return Blip2Processor(images, build_tokenizer(texts), num_query_tokens=QUERIES)


def build_model(processor: Any) -> Any:
    """Two things are put right: the queries begin all zero, and so for ever the same, and the head of T5 is tied."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config=TEXT,
        num_query_tokens=QUERIES,
        image_token_index=image,
        image_text_hidden_size=16,
    )
    model = Blip2ForConditionalGeneration(config)
    begin_as_trained(model.vision_model)
    nn.init.normal_(model.query_tokens, std=0.5)
    model.language_model.lm_head.weight = nn.Parameter(torch.randn(TOKENS, TEXT["d_model"]) * 0.05)
    return model


@torch.no_grad()
def begin_as_trained(vision: Any) -> None:
    """Begin attention where trained transformers end: queries like keys, values undone by the projection after them.

    Positions begin as sines. Trockman & Kolter, Mimetic Initialization of Self-Attention Layers (ICML 2023), with its
    constants: W_q W_kᵀ ≈ 0.7 Z + 0.7 I in each head, W_v W_proj ≈ 0.4 Z − 0.4 I, Z of normal numbers of variance 1/d.
    """
    width, heads = VISION["hidden_size"], VISION["num_attention_heads"]
    size, one = width // heads, torch.eye(width)
    for layer in vision.encoder.layers:
        weight = layer.self_attn.qkv.weight
        for rows in torch.arange(width).split(size):
            u, s, v = torch.linalg.svd(0.7 * torch.randn(width, width) / width**0.5 + 0.7 * one)
            weight[rows], weight[width + rows] = (u * s.sqrt()).T[:size], (v * s.sqrt()[:, None])[:size]
        u, s, v = torch.linalg.svd(0.4 * torch.randn(width, width) / width**0.5 - 0.4 * one)
        weight[2 * width :] = v * s.sqrt()[:, None]
        layer.self_attn.projection.weight.copy_(u * s.sqrt())
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    waves = 10_000 ** -(torch.arange(width // 4) / (width // 4))
    sines = [wave(at.reshape(-1, 1) * waves) for at in (column, row) for wave in (torch.sin, torch.cos)]
    vision.embeddings.position_embedding[0, 1:] = torch.cat(sines, 1)


def normalized(pixels: Float[Tensor, "image 3 64 64"]) -> Float[Tensor, "image 3 64 64"]:
    """What the processor does after dividing by 255."""
    return (pixels - MEAN) / STD
