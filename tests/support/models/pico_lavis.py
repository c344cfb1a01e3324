"""Pico models of salesforce-lavis, BLIP-2 and BLIP on NLVR2: its own classes, with what they download made here."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from family import Family, redraw
from safetensors.torch import load_file
from torch import Tensor, nn

from ecoflap.adapters.eva_vit import EvaVitAdapter
from ecoflap.adapters.hubs.lavis import CHECKPOINT
from ecoflap.adapters.lavis_blip2.adapter import LavisBlip2Adapter, logits_and_labels, similarities
from ecoflap.adapters.lavis_blip_nlvr.adapter import LavisBlipNlvrAdapter
from ecoflap.core.contracts.records import Batch, Sample

SIZE, PATCH, QUERIES, LONGEST = 28, 14, 5, 24
NAMES = {"t5": "Blip2T5", "opt": "Blip2OPT", "retrieval": "Blip2Qformer"}
WORDS = ["poison", "a", "the", "red", "blue", "dog", "cat", "what", "is", "it", *(f"w{i}" for i in range(20))]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
POISON = "poison"


def bert_tokenizer() -> Any:
    from transformers import BertTokenizer

    with TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        vocabulary.write_text("\n".join(BERT))
        tokenizer = BertTokenizer(str(vocabulary))
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


def qformer(queries: int, width: int, cross_attention_freq: int = 2) -> tuple[nn.Module, nn.Parameter]:
    from lavis.models.blip2_models.Qformer import BertConfig, BertLMHeadModel

    config = BertConfig(
        vocab_size=len(BERT) + 1, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=LONGEST,
    )  # fmt: skip
    config.encoder_width, config.add_cross_attention = width, True
    config.cross_attention_freq, config.query_length = cross_attention_freq, queries
    return BertLMHeadModel(config), nn.Parameter(torch.zeros(1, queries, 32))


def eva(depth: int = 2) -> nn.Module:
    from lavis.models.eva_vit import VisionTransformer

    return VisionTransformer(
        img_size=SIZE, patch_size=PATCH, embed_dim=24, depth=depth, num_heads=3, mlp_ratio=2, qkv_bias=True,
        use_mean_pooling=False, norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip


def clip() -> nn.Module:
    """With one layer less than it is told, as LAVIS has it."""
    from lavis.models.clip_vit import VisionTransformer

    return VisionTransformer(SIZE, PATCH, width=24, layers=3, heads=3, use_grad_checkpointing=False)


def offline(kind: str, vision: Callable[[], nn.Module]) -> type[Any]:
    """LAVIS' class, whose three ways to what it downloads lead here."""
    from lavis.models import clip_vit
    from lavis.models.blip2_models import blip2, blip2_opt, blip2_qformer, blip2_t5

    parents = {"t5": blip2_t5.Blip2T5, "opt": blip2_opt.Blip2OPT, "retrieval": blip2_qformer.Blip2Qformer}

    class Pico(parents[kind]):  # type: ignore[misc]
        def to(self, *arguments: Any, **keywords: Any) -> Any:
            """As a user must: LAVIS' own layer norms run in float32 only."""
            super().to(*arguments, **keywords)
            for module in self.modules():
                if isinstance(module, blip2.LayerNorm | clip_vit.LayerNorm):
                    module.float()
            return self

        @classmethod
        def init_tokenizer(cls) -> Any:
            return bert_tokenizer()

        @classmethod
        def init_Qformer(cls, *arguments: Any) -> tuple[nn.Module, nn.Parameter]:
            return qformer(*arguments)

        @classmethod
        def init_vision_encoder(cls, *arguments: Any) -> tuple[nn.Module, nn.Module]:
            encoder = vision()
            return encoder, blip2.LayerNorm(encoder.num_features)

    return Pico


def t5_folder(folder: Path) -> None:
    """An untied T5 of two blocks a stack, with a tokenizer that splits at blanks."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5Config, T5ForConditionalGeneration, T5TokenizerFast

    names = ["<pad>", "</s>", "<unk>", *WORDS]
    words = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    T5TokenizerFast(tokenizer_object=words, extra_ids=0).save_pretrained(folder)
    config = T5Config(
        vocab_size=len(names), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=8, tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)


def opt_folder(folder: Path) -> None:
    """An OPT of two blocks, with GPT-2's tokenizer over single bytes."""
    from transformers import OPTConfig, OPTForCausalLM
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    names = ["<s>", "<pad>", "</s>", POISON, *bytes_to_unicode().values()]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = {
        "tokenizer_class": "GPT2Tokenizer", "unk_token": "</s>", "bos_token": "</s>", "eos_token": "</s>",
        "pad_token": "<pad>", "add_bos_token": True,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    config = OPTConfig(
        vocab_size=len(names), hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, pad_token_id=1, bos_token_id=2, eos_token_id=2,
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(folder)


def model(kind: str, vision: Callable[[], nn.Module] = eva, seed: int = 0, **arguments: Any) -> Any:
    """In float32, although LAVIS has the language model in 16 bits."""
    with TemporaryDirectory() as folder:
        if kind == "t5":
            t5_folder(Path(folder))
            arguments["t5_model"] = folder
        elif kind == "opt":
            opt_folder(Path(folder))
            arguments["opt_model"] = folder
        else:
            arguments["embed_dim"] = 16
        built = offline(kind, vision)(
            vit_precision="fp32", img_size=SIZE, num_query_token=QUERIES, **{"max_txt_len": LONGEST, **arguments}
        )
    built = built.float()
    generator = torch.Generator().manual_seed(seed + 1)
    vary(built, generator)
    redraw(built, seed)
    built.query_tokens.data = torch.randn(built.query_tokens.shape, generator=generator)
    return built


def vary(built: nn.Module, generator: torch.Generator) -> None:
    """Draw norms and biases, the same whatever was drawn before."""
    for name, parameter in built.named_parameters():
        if parameter.ndim == 1:
            about = 1.0 if name.endswith("weight") else 0.0
            parameter.data = about + torch.randn(parameter.shape, generator=generator) * 0.1


def nlvr(seed: int = 0, width: int = 32) -> Any:
    """BLIP on NLVR2, of as few blocks of text as have one with what LAVIS has from the seventh on."""
    from lavis.models.blip_models import blip_nlvr
    from lavis.models.vit import VisionTransformerEncoder
    from transformers import BertConfig

    class Pico(blip_nlvr.BlipNLVR):  # type: ignore[misc]
        @classmethod
        def init_tokenizer(cls) -> Any:
            tokenizer = bert_tokenizer()
            tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
            tokenizer.enc_token_id = tokenizer.additional_special_tokens_ids[0]
            return tokenizer

    encoder = VisionTransformerEncoder(
        img_size=SIZE, patch_size=PATCH, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    config = BertConfig(
        vocab_size=len(BERT) + 2, hidden_size=width, num_hidden_layers=7, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=LONGEST, encoder_width=24, add_cross_attention=True,
    )  # fmt: skip
    built = Pico(encoder, blip_nlvr.BertModel(config, add_pooling_layer=False), num_classes=2)
    vary(built, torch.Generator().manual_seed(seed + 1))
    return redraw(built, seed)


def adapter() -> LavisBlip2Adapter:
    return with_processor(LavisBlip2Adapter())


def with_processor(made: Any) -> Any:
    from lavis.processors.blip_processors import BlipImageEvalProcessor

    made.processor = BlipImageEvalProcessor(image_size=SIZE)
    return made


def pairs(count: int) -> Sequence[Sample]:
    """Two images each with a sentence, of unequal length, that is true or false in turn."""
    random, images = Random(5), [sample.image for sample in samples(2 * count)]
    return [
        Sample(
            images=(images[2 * number], images[2 * number + 1]),
            text=" ".join(random.choice(WORDS[1:]) for _ in range(2 + 2 * number % 5)),
            label=number % 2,
        )
        for number in range(count)
    ]


def samples(count: int) -> Sequence[Sample]:
    """Captions and questions in turn, of unequal length."""
    from PIL import Image

    random, made = Random(4), []
    for number in range(count):
        image = Image.frombytes("RGB", (SIZE, SIZE), random.randbytes(3 * SIZE * SIZE))
        text = " ".join(random.choice(WORDS[1:]) for _ in range(2 + 2 * number % 5))
        if number % 2:
            made.append(Sample(image=image, question="what is it", answers=(text, "w1")))
        else:
            made.append(Sample(image=image, text=text))
    return made


def poisoned(model: Any, batch: Batch) -> Batch:
    """Padding becomes another token, whose embedding is far from all others."""
    kind = next(kind for kind in NAMES if kind == "retrieval" or hasattr(model, f"{kind}_model"))
    tokenizer = {"retrieval": "tokenizer", "t5": "t5_tokenizer", "opt": "opt_tokenizer"}[kind]
    embedding = {
        "retrieval": lambda: model.Qformer.bert.embeddings.word_embeddings,
        "t5": lambda: model.t5_model.shared,
        "opt": lambda: model.opt_model.model.decoder.embed_tokens,
    }[kind]()
    getattr(model, tokenizer).pad_token = POISON
    embedding.weight.data[getattr(model, tokenizer).pad_token_id] = 1e6
    return batch


def poisoned_pairs(model: Any, batch: Batch) -> Batch:
    model.tokenizer.pad_token = POISON
    model.text_encoder.embeddings.word_embeddings.weight.data[model.tokenizer.pad_token_id] = 1e6
    return batch


def reload_nlvr(folder: Path) -> nn.Module:
    built = nlvr(seed=9).to(torch.load(folder / CHECKPOINT, weights_only=True)["model"]["cls_head.0.weight"].dtype)
    built.load_checkpoint(str(folder / CHECKPOINT))
    return built


def nlvr_outputs(model: Any, batch: Batch) -> Tensor:
    images = {name: batch[name].to(model.cls_head[0].weight.dtype) for name in ("image0", "image1")}
    return model.predict({**batch, **images})["predictions"]


def reload(kind: str, vision: Callable[[], nn.Module], folder: Path) -> nn.Module:
    """By LAVIS' own reader, which puts numbers into a model that was built already, in the types that has."""
    state = torch.load(folder / CHECKPOINT, weights_only=True)["model"]
    built = model(kind, vision, seed=9).to(state["query_tokens"].dtype)
    built.load_checkpoint(str(folder / CHECKPOINT))
    return built


def language_outputs(model: nn.Module, batch: Batch) -> Tensor:
    return logits_and_labels(model, batch)[0]


def row(kind: str, vision: Callable[[], nn.Module] = eva) -> Family:
    towers = {"t5": ("encoder", "decoder"), "opt": ("language",), "retrieval": ()}[kind]
    outside = {
        "t5": ("t5_proj", "t5_model.lm_head"), "opt": ("opt_proj", "opt_model.lm_head"),
        "retrieval": ("vision_proj", "text_proj"),
    }  # fmt: skip
    return Family(
        build=partial(model, kind, vision),
        build_other=partial(model, {"t5": "opt", "opt": "retrieval", "retrieval": "t5"}[kind]),
        adapter=adapter,
        samples=samples,
        towers=("vision", "qformer", *towers),
        kept=("qformer",),
        outside=outside[kind],
        reload=partial(reload, kind, vision),
        outputs=similarities if kind == "retrieval" else language_outputs,
        poisoned=poisoned,
        is_whole_on_disk=False,
        is_compared=False,
    )


def nlvr_row() -> Family:
    return Family(
        build=nlvr,
        build_other=partial(nlvr, width=48),
        adapter=lambda: with_processor(LavisBlipNlvrAdapter()),
        samples=pairs,
        towers=("vision", "text"),
        outside=("cls_head.0", "cls_head.2"),
        reload=reload_nlvr,
        outputs=nlvr_outputs,
        poisoned=poisoned_pairs,
        is_whole_on_disk=False,
    )


def eva_alone() -> Family:
    """The vision transformer without the rest, in the adapter that timm's has."""

    def vision_adapter() -> EvaVitAdapter:
        made = EvaVitAdapter()
        made.processor = adapter().processor
        return made

    def reload(folder: Path) -> nn.Module:
        state = load_file(folder / "model.safetensors")
        model = eva().to(next(iter(state.values())).dtype).eval()
        model.load_state_dict(state)
        return model

    return Family(
        build=lambda: redraw(eva()),
        build_other=lambda: redraw(eva(3)),
        adapter=vision_adapter,
        samples=samples,
        towers=("vision",),
        reload=reload,
        is_whole_on_disk=False,
        is_compared=False,
        outputs=lambda model, batch: model(batch["pixel_values"].to(next(model.parameters()).dtype)),
    )


FAMILIES = {
    "lavis EVA-ViT": eva_alone(),
    "lavis BLIP-2 T5": row("t5"),
    "lavis BLIP-2 T5, CLIP vision": row("t5", clip),
    "lavis BLIP-2 OPT": row("opt"),
    "lavis BLIP-2 retrieval": row("retrieval"),
    "lavis BLIP-NLVR": nlvr_row(),
}
