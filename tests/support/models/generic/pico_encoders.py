"""Pico encoders of the families that the adapter ``encoder`` takes."""

from functools import partial
from typing import Any

from family import Family
from pico_causal import SETTINGS
from pico_composites import drawn, poisoned, reload
from pico_decoder import samples
from pico_words import tokenizer
from torch import Tensor

from ecoflap.adapters.generic.encoder import EncoderAdapter
from ecoflap.core.contracts.records import Batch

KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"type_vocab_size": 1},
    "distilbert": {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 48},
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 8, "global_attn_every_n_layers": 2},
}


def build(kind: str, layers: int, **keys: Any) -> Any:
    from transformers import AutoConfig, AutoModelForMaskedLM

    settings = {**SETTINGS, "num_hidden_layers": layers, **keys}
    if "n_layers" in keys:
        settings["n_layers"] = layers
    return drawn(AutoModelForMaskedLM.from_config(AutoConfig.for_model(kind, **settings)))


def adapter() -> EncoderAdapter:
    made = EncoderAdapter()
    made.processor = tokenizer(begins=False)
    made.processor.mask_token = "<unk>"
    return made


def outputs(model: Any, batch: Batch) -> Tensor:
    logits: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits


def row(kind: str, outside: tuple[str, ...], **keys: Any) -> Family:
    return Family(
        build=partial(build, kind, 2, **keys),
        build_other=partial(build, kind, 3, **keys),
        adapter=adapter,
        samples=samples,
        towers=("encoder",),
        outside=outside,
        reload=partial(reload, "AutoModelForMaskedLM"),
        outputs=outputs,
        poisoned=poisoned,
    )


OUTSIDE = {
    "bert": ("cls.predictions.transform.dense", "cls.predictions.decoder"),
    "roberta": ("lm_head.dense", "lm_head.decoder"),
    "distilbert": ("vocab_transform", "vocab_projector"),
    "modernbert": ("head.dense", "decoder"),
}
FAMILIES = {kind: row(kind, OUTSIDE[kind], **keys) for kind, keys in KINDS.items()}
