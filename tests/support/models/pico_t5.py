"""Pico T5 of each kind: tied and not, with a plain and a gated feed-forward, and mT5; their tokenizer and samples."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from family import Family, redraw
from torch import Tensor, nn
from transformers_version import is_before

from ecoflap.adapters.t5 import T5Adapter
from ecoflap.core.contracts.records import Batch, Sample

POISON = 63
WORDS = ["<pad>", "</s>", "<unk>", "what", "is", "this", "a", "the", "?", ".", *(f"w{i}" for i in range(54))]


def tokenizer() -> Any:
    """Splits at blanks and punctuation, and ends every text with ``</s>`` as T5's own does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>", pad_token="<pad>")


def settings(gated: bool = False) -> dict[str, Any]:
    """Of a T5 of two blocks and two."""
    return {
        "vocab_size": len(WORDS), "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2,
        "num_heads": 4, "relative_attention_num_buckets": 8, "decoder_start_token_id": 0, "pad_token_id": 0,
        "eos_token_id": 1, "feed_forward_proj": "gated-gelu" if gated else "relu",
    }  # fmt: skip


def build(kind: str = "t5", tied: bool = True, gated: bool = False, **keys: int) -> Any:
    """transformers ties every T5 it builds, so an untied one is untied by hand."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    config = AutoConfig.for_model(kind, **{**settings(gated), **keys}, tie_word_embeddings=tied)
    model = AutoModelForSeq2SeqLM.from_config(config)
    if not tied:
        untie(model)
    return redraw(model, 1)


def untie(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(torch.zeros_like(model.lm_head.weight))


def adapter() -> T5Adapter:
    made = T5Adapter()
    made.processor = tokenizer()
    return made


def windows(count: int) -> list[Sample]:
    """Windows of 7 to 15 tokens."""
    generator = torch.Generator().manual_seed(5)
    return [Sample(tokens=torch.randint(3, 60, (7 + 3 * i % 9,), generator=generator)) for i in range(count)]


def sentence(random: Random, longest: int) -> str:
    return " ".join(random.choices(WORDS[3:60], k=random.randint(2, longest)))


def questions(count: int) -> list[Sample]:
    """Questions of 2 to 9 words with answers of 2 to 4."""
    random = Random(6)
    return [Sample(question=sentence(random, 9), answers=(sentence(random, 4), "not read")) for _ in range(count)]


def texts(count: int) -> list[Sample]:
    """Of 2 to 12 words."""
    random = Random(7)
    return [Sample(text=sentence(random, 12)) for _ in range(count)]


def reload(folder: Path) -> nn.Module:
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM.from_pretrained(folder, **as_stored()).eval()


def as_stored() -> dict[str, str]:
    """What has transformers load a model in the type it is stored in; since version 5 it does so by itself."""

    return {"torch_dtype": "auto"} if is_before("5") else {}


def logits(model: Any, batch: Batch) -> Tensor:
    return model(**batch, use_cache=False).logits


def poisoned(model: Any, batch: Batch) -> Batch:
    """The encoder's padding holds a token that is embedded as 1e6; the decoder's embedding and the head are as before.

    The decoder's padding is always the token its text begins with, so it cannot be poisoned.
    """
    model.encoder.set_input_embeddings(deepcopy(model.shared))
    model.encoder.embed_tokens.weight.data[POISON] = 1e6
    input_ids = torch.where(batch["attention_mask"].bool(), batch["input_ids"], POISON)
    return {**batch, "input_ids": input_ids}


def row(samples: Callable[[int], Sequence[Sample]], kind: str, tied: bool = True, gated: bool = False) -> Family:
    return Family(
        build=partial(build, kind, tied, gated),
        build_other=partial(build, kind, not tied, not gated, num_layers=3, d_ff=40),
        adapter=adapter,
        samples=samples,
        towers=("encoder", "decoder"),
        outside=("lm_head",),
        reload=reload,
        outputs=logits,
        poisoned=poisoned,
    )


FAMILIES = {
    "t5": row(windows, "t5"),
    "t5_untied_gated": row(questions, "t5", tied=False, gated=True),
    "mt5": row(texts, "mt5", tied=False, gated=True),
}
