"""Pico BLIP of all three classes, with a BlipProcessor whose tokenizer is a small BERT's; captions and questions."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from family import Family, redraw
from pico_blip2 import livened, picture, reload
from torch import Tensor, nn

from ecoflap.adapters.blip.caption import BlipCaptionAdapter
from ecoflap.adapters.blip.parts import mask_across
from ecoflap.adapters.blip.retrieval import BlipRetrievalAdapter
from ecoflap.adapters.blip.vqa import BlipVqaAdapter
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Batch, Sample

SIZE = 28
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "picture", "of", "?", *(f"w{i}" for i in range(54))]
POISON, BEGIN = 60, 62  # a token that no sample holds, and one that the tokenizer does not know, as in the checkpoints
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {
    **TOWER, "vocab_size": 64, "max_position_embeddings": 40, "bos_token_id": BEGIN, "sep_token_id": 3,
    "pad_token_id": 0, "label_smoothing": 0.1,
}  # fmt: skip
CAPTION, VQA, RETRIEVAL = "BlipForConditionalGeneration", "BlipForQuestionAnswering", "BlipForImageTextRetrieval"
KINDS = {CAPTION: BlipCaptionAdapter, VQA: BlipVqaAdapter, RETRIEVAL: BlipRetrievalAdapter}


def tokenizer() -> Any:
    """As the checkpoints' own, with few words: ``[CLS]`` before a text, ``[SEP]`` behind it, all in small letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertTokenizerFast

    words = Tokenizer(models.WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return BertTokenizerFast(tokenizer_object=words, mask_token=None)


def processor(size: int = SIZE) -> Any:
    import transformers

    # Its name without the suffix is, since transformers 5, that of one which needs torchvision.
    kind = getattr(transformers, "BlipImageProcessorPil", None) or transformers.BlipImageProcessor
    return transformers.BlipProcessor(kind(size={"height": size, "width": size}), tokenizer())


def config(**text: Any) -> Any:
    from transformers import BlipConfig

    vision = {**TOWER, "image_size": SIZE, "patch_size": 14, "initializer_range": 0.02}
    return BlipConfig(text_config={**TEXT, **text}, vision_config=vision, image_text_hidden_size=16)


def build(kind: str, **text: Any) -> Any:
    """Drawn again, because transformers draws what it leaves to checkpoints as good as zero."""
    import transformers

    return livened(redraw(getattr(transformers, kind)(config(**text)), 5))


def adapter(kind: str) -> Any:
    made = KINDS[kind]()
    made.processor = processor()
    return made


def sentence(random: Random, longest: int) -> str:
    return " ".join(random.choices(WORDS[4:58], k=random.randint(2, longest)))


def captions(count: int) -> list[Sample]:
    """Texts of 2 to 9 words; every other one goes on from a prompt."""
    random = Random(8)
    prompts = None, "a picture of"
    return [Sample(image=picture(i), text=sentence(random, 9), question=prompts[i % 2]) for i in range(count)]


def questions(count: int) -> list[Sample]:
    """Questions of 2 to 9 words with answers of 2 to 4."""
    random = Random(6)
    return [
        Sample(image=picture(i), question=sentence(random, 9), answers=(sentence(random, 4), "not read"))
        for i in range(count)
    ]


def logits(model: Any, batch: Batch) -> Tensor:
    """What the decoder gives while the model's own forward runs, which of answers gives a loss alone."""
    found: list[Tensor] = []
    mask_across(model.text_decoder)  # as the adapter has it, where transformers forgets to
    handle = model.text_decoder.register_forward_hook(lambda _, args, made: found.append(made.logits))
    model(**batch)
    handle.remove()
    return found[0]


def scores(model: Any, batch: Batch) -> tuple[Tensor, ...]:
    return tuple(model(**batch, use_itm_head=is_match).itm_score for is_match in (True, False))


def poisoned(model: Any, batch: Batch) -> Batch:
    """Padding holds a token that is embedded as 1e6; the head, which is tied to an embedding, is as before."""
    for tower in (getattr(model, "text_encoder", None), getattr(model, "text_decoder", None)):
        if tower is not None:
            embedding = deepcopy(tower.get_input_embeddings())
            embedding.weight.data[POISON] = 1e6
            tower.set_input_embeddings(embedding)
    found = {"input_ids": _with_poison(batch["input_ids"], batch["attention_mask"])}
    if "decoder_input_ids" in batch:
        found["decoder_input_ids"] = _with_poison(batch["decoder_input_ids"], batch["decoder_attention_mask"])
    return {**batch, **found}


def _with_poison(ids: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.bool(), ids, POISON)


def row(
    kind: str,
    samples: Callable[[int], Sequence[Sample]],
    towers: tuple[str, ...],
    outside: tuple[str, ...],
    outputs: Callable[[nn.Module, Batch], Any],
) -> Family:
    made: Callable[[], Adapter] = partial(adapter, kind)
    again: Callable[[Path], nn.Module] = partial(reload, kind)
    return Family(
        build=partial(build, kind),
        build_other=partial(build, kind, num_hidden_layers=3, max_position_embeddings=48),
        adapter=made,
        samples=samples,
        towers=("vision", *towers),
        outside=outside,
        reload=again,
        outputs=outputs,
        poisoned=poisoned,
        # its scores take two forwards, which a check in one forward cannot hold; they are compared by hand elsewhere
        is_compared=kind != RETRIEVAL,
    )


LOGITS = ("text_decoder.cls.predictions.transform.dense", "text_decoder.cls.predictions.decoder")
FAMILIES = {
    "blip_caption": row(CAPTION, captions, ("decoder",), LOGITS, logits),
    "blip_vqa": row(VQA, questions, ("encoder", "decoder"), LOGITS, logits),
    "blip_retrieval": row(RETRIEVAL, captions, ("text",), ("vision_proj", "text_proj", "itm_head"), scores),
}
