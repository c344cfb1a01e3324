"""open_clip's models at toy size, as open_clip itself makes them of configurations it is told about."""

import json
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from family import Family, redraw
from pico_timm import as_stored, pictures, redraw_biases
from torch import Tensor, nn

from ecoflap.adapters.open_clip import OpenClipAdapter
from ecoflap.core.contracts.records import Batch, Sample

WORDS = 40
LENGTH = 12
VISION: dict[str, Any] = {
    "image_size": 16, "patch_size": 4, "width": 32, "head_width": 8, "layers": 2, "mlp_ratio": 2.0,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "context_length": LENGTH, "vocab_size": WORDS, "width": 32, "heads": 4, "layers": 2, "mlp_ratio": 2.0,
}  # fmt: skip
TRUNK: dict[str, Any] = {"image_size": 16, "timm_model_name": "pico_eva"}
CONFIGS: dict[str, dict[str, Any]] = {
    "pico-clip": {"vision_cfg": VISION, "text_cfg": TEXT},
    "pico-custom": {
        "vision_cfg": {**VISION, "block_type": "custom", "scale_attn": True},
        "text_cfg": {**TEXT, "qk_norm": True, "scale_fc": True, "proj_bias": True},
    },
    "pico-qk-norm": {"vision_cfg": VISION, "text_cfg": {**TEXT, "qk_norm": True}},
    "pico-eva": {
        "vision_cfg": {**TRUNK, "timm_pool": "token", "timm_proj": None}, "text_cfg": TEXT, "custom_text": True,
    },
    "pico-eva-linear": {
        "vision_cfg": {**TRUNK, "timm_pool": "avg", "timm_proj": "linear"}, "text_cfg": TEXT, "custom_text": True,
    },
    "pico-siglip": {
        "vision_cfg": VISION, "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last"}, "custom_text": True,
        "init_logit_bias": -2.0,
    },
}  # fmt: skip


class Tokenizer:
    """As open_clip's own: begin, the text, end (the largest number), and zeros behind it."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        ids = torch.zeros(len(texts), LENGTH, dtype=torch.int64)
        for row, text in enumerate(texts):
            words = [1 + int(word.removeprefix("word")) % (WORDS - 3) for word in text.split()][: LENGTH - 2]
            ids[row, : len(words) + 2] = torch.tensor([WORDS - 2, *words, WORDS - 1])
        return ids


@cache
def tell_open_clip() -> None:
    """Of the configurations here, and timm of the trunk that one of them names."""
    import open_clip
    import timm
    from timm.models.eva import Eva

    def pico_eva(pretrained: bool = False, **arguments: Any) -> nn.Module:
        small = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0}
        kind = {"use_rot_pos_emb": True, "swiglu_mlp": True, "scale_mlp": True, "qkv_fused": False}
        return timm.models.build_model_with_cfg(Eva, "pico_eva", pretrained, **{**small, **kind, **arguments})

    timm.models.register_model(pico_eva)
    folder = Path(mkdtemp())
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 24, **config}))
    open_clip.add_model_config(folder)


def build(name: str, **arguments: Any) -> nn.Module:
    import open_clip

    tell_open_clip()
    return redraw_biases(redraw(open_clip.create_model(name, **arguments), 0), 1)


def adapter_for(name: str) -> OpenClipAdapter:
    from ecoflap.adapters.hubs.open_clip import transform_of

    adapter = OpenClipAdapter(architecture=name)
    adapter.processor = transform_of(build(name)), Tokenizer()
    return adapter


def pairs(count: int) -> Sequence[Sample]:
    """Pictures with texts of two to six words."""
    generator = torch.Generator().manual_seed(count)
    texts = [
        " ".join(f"word{int(word)}" for word in torch.randint(30, (2 + number % 5,), generator=generator))
        for number in range(count)
    ]
    return [Sample(image=picture.image, text=text) for picture, text in zip(pictures(count), texts, strict=True)]


def reload(folder: Path) -> nn.Module:
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    return as_stored(model, folder / "open_clip_model.safetensors")


def outputs(model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    made = model(batch["image"].to(kind_of(model)), batch["text"])
    return tuple(made[:3])


def own_loss(model: nn.Module, batch: Batch) -> Tensor:
    """By open_clip's own classes for training, which its models are not asked for themselves."""
    from open_clip.loss import ClipLoss, SigLipLoss

    made, bias = outputs(model, batch), getattr(model, "logit_bias", None)
    return ClipLoss()(*made) if bias is None else SigLipLoss()(*made, bias)


def kind_of(model: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in model.visual.parameters() if parameter.ndim == 4)


def poisoned(model: nn.Module, batch: Batch) -> Batch:
    """Zeros behind the end of a text become a token that is embedded as 1e6; it is smaller than the end's."""
    text = getattr(model, "text", model)
    with torch.no_grad():
        text.token_embedding.weight[WORDS - 3] = 1e6
    ids = batch["text"]
    return {**batch, "text": torch.where(ids == 0, WORDS - 3, ids)}


def _family(name: str, *outside: str, padded: bool = True) -> Family:
    return Family(
        build=partial(build, name),
        build_other=partial(build, "pico-eva" if name == "pico-siglip" else "pico-siglip"),
        larger=lambda: (adapter_for("pico-clip"), build("pico-clip", force_image_size=24)),
        adapter=partial(adapter_for, name),
        samples=pairs,
        towers=("vision", "text"),
        outside=outside,
        reload=reload,
        outputs=outputs,
        own_loss=own_loss,
        poisoned=poisoned if padded else None,
        real_text=(lambda batch: batch["text"] != 0) if padded else None,
        named={"use": "open_clip", "architecture": name},
    )


FAMILIES: dict[str, Family] = {
    "open_clip": _family("pico-clip"),
    "open_clip_custom": _family("pico-custom", "text_projection"),
    "open_clip_eva": _family("pico-eva", "visual.trunk.head"),
    "open_clip_siglip": _family("pico-siglip", padded=False),
}
