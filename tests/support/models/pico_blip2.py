"""Pico BLIP-2 with T5, OPT and LLaMA inside, and the retrieval model; their processors and samples."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import pico_t5
import torch
from family import Family, redraw
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers_version import is_before

from ecoflap.adapters.blip2 import Blip2Adapter
from ecoflap.adapters.blip2_retrieval import Blip2RetrievalAdapter
from ecoflap.core.contracts.records import Batch, Sample

QUERIES, SIZE = 4, 28
POISON, IMAGE_TOKEN = 63, 64
VOCABULARY = 66
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIZE,
    "patch_size": 14, "initializer_range": 0.02, "qkv_bias": True,
}  # fmt: skip
QFORMER = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 48, "cross_attention_frequency": 2, "max_position_embeddings": 64,
}  # fmt: skip
TEXTS = {
    "t5": {**pico_t5.settings(gated=True), "vocab_size": VOCABULARY, "tie_word_embeddings": False},
    "opt": {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 48, "num_attention_heads": 4,
        "max_position_embeddings": 64, "word_embed_proj_dim": 32, "pad_token_id": 0, "bos_token_id": 2,
        "eos_token_id": 1, "tie_word_embeddings": True,
    },
    "llama": {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
        "bos_token_id": 2, "eos_token_id": 1, "tie_word_embeddings": False,
    },
}  # fmt: skip


def processor(kind: str) -> Any:
    """As a checkpoint's own: its tokenizer gets ``<image>``, and one for each query goes before a text."""
    from transformers import Blip2Processor

    tokenizer = pico_t5.tokenizer()
    if kind != "t5":
        tokenizer.backend_tokenizer.post_processor = _begins_with("w52" if kind == "retrieval" else "<unk>")
    return Blip2Processor(_image_processor(), tokenizer, num_query_tokens=QUERIES)


def _begins_with(word: str) -> Any:
    from tokenizers import processors

    ends = " </s>" if word != "<unk>" else ""
    special = [(word, pico_t5.WORDS.index(word)), ("</s>", 1)]
    return processors.TemplateProcessing(single=f"{word} $A{ends}", special_tokens=special)


def _image_processor() -> Any:
    import transformers

    # Its name without the suffix is, since transformers 5, that of one which needs torchvision.
    kind = getattr(transformers, "BlipImageProcessorPil", None) or transformers.BlipImageProcessor
    return kind(size={"height": SIZE, "width": SIZE})


def config(text: str, image_token: int | None = IMAGE_TOKEN, queries: int = QUERIES, **qformer: Any) -> Any:
    from transformers import Blip2Config

    return Blip2Config(
        vision_config=VISION,
        qformer_config={**QFORMER, **qformer},
        text_config={"model_type": text, **TEXTS[text]},
        num_query_tokens=queries,
        image_token_index=image_token,
        image_text_hidden_size=16,
    )


def build(text: str = "t5", queries: int = QUERIES) -> Any:
    """transformers draws a vision tower's weights and the queries as good as zero, so all of them are drawn again."""
    from transformers import Blip2ForConditionalGeneration

    model = Blip2ForConditionalGeneration(config(text, queries=queries))
    if text == "t5":
        pico_t5.untie(model.language_model)
    return livened(redraw(model, 2))


def build_retrieval(image_token: int | None = IMAGE_TOKEN, **keys: int) -> Any:
    from transformers import Blip2ForImageTextRetrieval

    return livened(
        redraw(Blip2ForImageTextRetrieval(config("opt", image_token, use_qformer_text_input=True, **keys)), 3)
    )


def livened(model: nn.Module) -> nn.Module:
    """Biases too, so that one which is left out shows."""
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return model


def adapter(text: str = "t5") -> Blip2Adapter:
    made = Blip2Adapter()
    made.processor = processor(text)
    return made


def retrieval_adapter() -> Blip2RetrievalAdapter:
    made = Blip2RetrievalAdapter()
    made.processor = processor("retrieval")
    return made


def picture(number: int) -> Any:
    """Noise, of another shape each time."""
    from PIL import Image

    random = Random(number)
    size = (20 + 4 * (number % 5), 24 + 3 * (number % 4))
    return Image.frombytes("RGB", size, random.randbytes(3 * size[0] * size[1]))


def captions(count: int) -> list[Sample]:
    """Texts of 2 to 9 words."""
    random = Random(8)
    return [Sample(image=picture(i), text=pico_t5.sentence(random, 9)) for i in range(count)]


def questions(count: int) -> list[Sample]:
    """Questions of 2 to 9 words with answers of 2 to 4."""
    return [
        Sample(image=picture(i), question=sample.question, answers=sample.answers)
        for i, sample in enumerate(pico_t5.questions(count))
    ]


def reload(kind: str, folder: Path) -> nn.Module:
    import transformers

    return getattr(transformers, kind).from_pretrained(folder, **pico_t5.as_stored()).eval()


def logits(model: Any, batch: Batch) -> Tensor:
    return model(**batch, use_cache=False).logits


def similarities(model: Any, batch: Batch) -> tuple[Tensor, ...]:
    """By the model's own way to read a batch, which begins with the places of the image since transformers 4.52."""

    if is_before("4.52"):
        output = model(**batch)
        return output.logits_per_image, output.text_embeds, output.image_embeds
    ids = torch.cat([torch.full((len(batch["input_ids"]), QUERIES), IMAGE_TOKEN), batch["input_ids"]], 1)
    mask = torch.cat([torch.ones_like(ids[:, :QUERIES]), batch["attention_mask"]], 1)
    output = model(pixel_values=batch["pixel_values"], input_ids=ids, attention_mask=mask)
    return output.logits_per_image, output.text_embeds, output.image_embeds


def pairs_loss(model: Any, batch: Batch) -> Tensor:
    """The model has no loss for pairs: the cross entropy of its similarities, by rows and by columns."""
    logits = similarities(model, batch)[0]
    targets = torch.arange(len(logits))
    return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2


def poisoned(model: Any, batch: Batch) -> Batch:
    """Padding holds a token that is embedded as 1e6; a head that is tied is as before."""
    text = model.language_model
    embedding = deepcopy(text.get_input_embeddings())
    embedding.weight.data[POISON] = 1e6
    if hasattr(text, "shared"):
        text.shared = embedding  # an untied head's; the encoder reads what the projection and this make
    else:
        text.set_input_embeddings(embedding)
    return _with_poison(batch)


def poisoned_retrieval(model: Any, batch: Batch) -> Batch:
    model.embeddings.word_embeddings.weight.data[POISON] = 1e6
    return _with_poison(batch)


def _with_poison(batch: Batch) -> Batch:
    return {**batch, "input_ids": torch.where(batch["attention_mask"].bool(), batch["input_ids"], POISON)}


def row(text: str, samples: Callable[[int], Sequence[Sample]], towers: tuple[str, ...]) -> Family:
    return Family(
        build=partial(build, text),
        build_other=partial(build, "opt" if text == "t5" else "t5", queries=QUERIES + 2),
        adapter=partial(adapter, text),
        samples=samples,
        towers=("vision", "qformer", *towers),
        kept=("qformer",),
        outside=("language_projection", "language_model.lm_head"),
        reload=partial(reload, "Blip2ForConditionalGeneration"),
        outputs=logits,
        poisoned=poisoned,
    )


FAMILIES = {
    "blip2_t5": row("t5", questions, ("encoder", "decoder")),
    "blip2_opt": row("opt", captions, ("language",)),
    "blip2_llama": row("llama", questions, ("language",)),
    "blip2_retrieval": Family(
        build=build_retrieval,
        build_other=partial(build_retrieval, queries=QUERIES + 2, num_hidden_layers=2),
        adapter=retrieval_adapter,
        samples=captions,
        towers=("vision", "qformer"),
        kept=("qformer",),
        outside=("vision_projection", "text_projection"),
        reload=partial(reload, "Blip2ForImageTextRetrieval"),
        outputs=similarities,
        own_loss=pairs_loss,
        poisoned=poisoned_retrieval,
        cannot={} if version("transformers") >= "5" else {torch.float16: "its Q-Former cannot read texts in float16"},
    ),
}
