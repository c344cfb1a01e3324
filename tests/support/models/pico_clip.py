"""Pico CLIP, its vision tower alone and SigLIP, with their processors; pictures with captions of unequal length."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from family import Family, redraw
from torch import Tensor, nn
from transformers_version import is_before

from ecoflap.adapters.clip import ClipAdapter
from ecoflap.adapters.siglip import SiglipAdapter
from ecoflap.core.contracts.records import Batch, Sample

SIZE, PATCH, LENGTH = 28, 7, 16
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "picture", "of", *(f"w{i}" for i in range(57))]
PAD, BEGIN, END, POISON = 0, 1, 62, 61  # an end of 2 means to transformers: the largest number in the text
VISION = {"image_size": SIZE, "patch_size": PATCH}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {
    **TOWER, "vocab_size": len(WORDS), "max_position_embeddings": LENGTH, "pad_token_id": PAD, "bos_token_id": BEGIN,
    "eos_token_id": END,
}  # fmt: skip


def tokenizer(kind: str = "PreTrainedTokenizerFast") -> Any:
    """Splits at blanks; begins and ends every text as CLIP's own does."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate(WORDS)}
    vocabulary["</s>"], vocabulary[WORDS[END]] = END, 2
    whole = models.BPE(vocabulary, [], unk_token="<unk>", end_of_word_suffix="", ignore_merges=True)
    words = Tokenizer(whole)
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BEGIN), ("</s>", END)]
    )
    return getattr(transformers, kind)(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        model_max_length=LENGTH,
    )  # fmt: skip


def image_processor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})


def processor() -> Any:
    import transformers

    # transformers 4 takes no other, and that of 5 is always made of BPE
    words = tokenizer("CLIPTokenizerFast") if is_before("5") else tokenizer()
    return transformers.CLIPProcessor(image_processor=image_processor(), tokenizer=words)


def siglip_processor() -> Any:
    from transformers import SiglipImageProcessor, SiglipProcessor

    images = SiglipImageProcessor(size={"height": SIZE, "width": SIZE})
    return SiglipProcessor(image_processor=images, tokenizer=tokenizer())


def drawn(model: Any) -> Any:
    """Vectors too, such as the class embedding, which transformers draws with the global generator."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and parameter.numel() > 1:
            about = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.data = about + torch.randn(parameter.shape, generator=generator) * 0.1
    return redraw(model, 1)


def clip(**tower: int) -> Any:
    from transformers import CLIPConfig, CLIPModel

    text, images = {**TEXT, **tower}, {**TOWER, **VISION, **tower}
    return drawn(CLIPModel(CLIPConfig(text_config=text, vision_config=images, projection_dim=24)))


def vision(**tower: int) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return drawn(CLIPVisionModelWithProjection(CLIPVisionConfig(**{**TOWER, **VISION, **tower}, projection_dim=24)))


def siglip(length: int = LENGTH, **tower: int) -> Any:
    from transformers import SiglipConfig, SiglipModel

    text = {**TEXT, "max_position_embeddings": length, **tower}
    model = drawn(SiglipModel(SiglipConfig(text_config=text, vision_config={**TOWER, **VISION, **tower})))
    model.logit_scale.data.fill_(2.0)
    model.logit_bias.data.fill_(-3.0)
    return model


def clip_adapter() -> ClipAdapter:
    made = ClipAdapter()
    made.processor = processor()
    return made


def vision_adapter() -> ClipAdapter:
    made = ClipAdapter()
    made.processor = image_processor()
    return made


def siglip_adapter() -> SiglipAdapter:
    made = SiglipAdapter()
    made.processor = siglip_processor()
    return made


def picture(random: Random, width: int = 40, height: int = 33) -> Any:
    """Blocks of colour; noise would be the same grey everywhere once it is made smaller."""
    from PIL import Image

    small = Image.frombytes("RGB", (5, 5), random.randbytes(75))
    return small.resize((width, height), Image.Resampling.NEAREST)


def pairs(count: int) -> Sequence[Sample]:
    """Captions of 2 to 9 words."""
    random = Random(4)
    return [
        Sample(image=picture(random, 30 + 3 * number), text=" ".join(random.choices(WORDS[4:60], k=2 + 3 * number % 8)))
        for number in range(count)
    ]


def pictures(count: int) -> Sequence[Sample]:
    return [Sample(image=sample.image) for sample in pairs(count)]


def reload(folder: Path) -> nn.Module:
    from transformers import AutoConfig, AutoModel, CLIPVisionModelWithProjection

    alone = AutoConfig.from_pretrained(folder).model_type == "clip_vision_model"
    return as_saved(CLIPVisionModelWithProjection if alone else AutoModel, folder)


def as_saved(kind: Any, folder: Path) -> nn.Module:
    """In the type of the file, which transformers 4 makes float32 unless asked, by an argument of another name."""

    wanted = {"torch_dtype": "auto"} if is_before("5") else {}
    model: nn.Module = kind.from_pretrained(folder, **wanted)
    return model.eval()


def outputs(model: Any, batch: Batch) -> Tensor | tuple[Tensor, ...]:
    given = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask") if name in batch}
    if "input_ids" not in given:
        return model(**given).image_embeds
    made = model(**given)
    return made.logits_per_image, made.image_embeds, made.text_embeds


def poisoned(model: Any, batch: Batch) -> Batch:
    model.text_model.embeddings.token_embedding.weight.data[POISON] = 1e6
    return {**batch, "input_ids": torch.where(batch["attention_mask"].bool(), batch["input_ids"], POISON)}


FAMILIES: dict[str, Family] = {
    "clip": Family(
        build=clip,
        build_other=partial(clip, num_hidden_layers=3, hidden_size=16),
        adapter=clip_adapter,
        samples=pairs,
        towers=("vision", "text"),
        reload=reload,
        outputs=outputs,
        outside=("visual_projection", "text_projection"),
        poisoned=poisoned,
    ),
    "clip_vision": Family(
        build=vision,
        build_other=partial(vision, num_hidden_layers=3, patch_size=14),
        adapter=vision_adapter,
        samples=pictures,
        towers=("vision",),
        reload=reload,
        outputs=outputs,
        outside=("visual_projection",),
        is_compared=False,
    ),
    "siglip": Family(
        build=siglip,
        build_other=partial(siglip, length=2 * LENGTH, num_hidden_layers=3),
        adapter=siglip_adapter,
        samples=pairs,
        towers=("vision", "text"),
        reload=reload,
        outputs=outputs,
        outside=("vision_model.head.mlp.fc1", "vision_model.head.mlp.fc2", "text_model.head"),
    ),
}
