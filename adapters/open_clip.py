"""Adapt CLIP of open_clip: its own towers of default and custom blocks, and timm's Eva and VisionTransformer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.hubs import open_clip as open_clip_hub
from ecoflap.adapters.hubs.description import describe, description_of
from ecoflap.adapters.hubs.open_clip import Processor
from ecoflap.adapters.shared import timm_vit
from ecoflap.adapters.shared.contrastive import pair_problems
from ecoflap.adapters.shared.embeddings import unit_vectors
from ecoflap.adapters.shared.losses import JUDGED_ALONE, info_nce, sigmoid_pairs
from ecoflap.adapters.shared.matrices import matrices, matrix_outside, tower_at
from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.shared.texts import check_tokens
from ecoflap.adapters.shared.transforms import transformed
from ecoflap.adapters.views.images import views_of_open_clip
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.records import IMAGE, Batch, Sample, View
from ecoflap.core.errors import DataError, ModelError
from ecoflap.core.model.anatomy import Block, Layer, Layout, Source, Tower

OWN_TOKENIZER = (
    "Take the one of its architecture, open_clip.get_tokenizer(NAME): give it to ecoflap.run as processor=(transform, "
    "tokenizer), or put its files beside open_clip_config.json."
)
CLASSES = ("open_clip.model.CLIP", "open_clip.model.CustomTextCLIP", "open_clip.coca_model.CoCa")
VISION = ("visual.transformer.resblocks", "visual.trunk.blocks")
TEXT = ("transformer.resblocks", "text.transformer.resblocks")
VISION_MATRICES = ("visual.trunk.head", "visual.head.proj", "visual.head.mlp.fc1", "visual.head.mlp.fc2")
TEXT_MATRICES = ("text_projection", "text.text_projection")


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["OpenClipAdapter"]]:
    return {"open_clip": OpenClipAdapter}


class OpenClipAdapter:
    """Adapts CLIP from ``open_clip:ARCHITECTURE/TAG``, a hub id or folder in open_clip's hub format, or memory.

    The loss is the symmetric InfoNCE of the model's own scaled similarities, or the sigmoid loss where the model has a
    ``logit_bias``, as SigLIP's have. The packed q, k and v of an attention are one matrix ``[3 width, width]``. What
    open_clip keeps as a bare parameter (``visual.proj``, ``text_projection``) is applied with ``@``, so its inputs are
    not seen, and it cannot be included.

    For a model in memory ``ecoflap.run`` takes as ``processor`` a pair ``(transform, tokenizer)``: from a PIL image to
    a tensor, and from a list of texts to token ids, as ``open_clip.create_model_and_transforms`` and
    ``open_clip.get_tokenizer`` make them.

    :param architecture: The name by which open_clip knows the architecture of a model in memory, such as ``ViT-B-16``.
        Without it the folder of such a model holds weights that ``open_clip.create_model`` does not read: make the
        model as before, then ``open_clip.load_checkpoint(model, "open_clip_model.safetensors")``.
    """

    def __init__(self, architecture: str | None = None) -> None:
        self.processor: Any = None
        self.architecture = architecture

    def matches(self, source: Source) -> bool:
        """Recognise a model by its prefix, by open_clip's config file, and in memory by its class."""
        if source.model is not None:
            return bool({f"{kind.__module__}.{kind.__qualname__}" for kind in type(source.model).__mro__} & {*CLASSES})
        return source.name.startswith(open_clip_hub.PREFIX) or "open_clip" in source.config

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """Load the model in eval mode, its transform and its tokenizer; ``device="meta"`` reads the configuration only.

        :raises ModelError: Where it cannot be read, is of a kind that is not covered, or is not of the architecture.
        """
        if source.model is not None:
            model = source.model.eval()
            _check_kind(model)
            self._config_of(model)  # refuses another architecture now, and not when the pruned model is to be saved
            return model
        model, config = open_clip_hub.load(source, device, self.architecture)
        _check_kind(model)
        describe(model, config)
        if device != "meta" and source.with_processor:
            self.processor = self.read_processor(source, model)
        return model.to(device, dtype)

    def read_processor(self, source: Source, model: nn.Module) -> Any:
        """Make the transform and the tokenizer that a model's configuration describes."""
        tokenizer = open_clip_hub.tokenizer_of(source, self._config_of(model)["model_cfg"]["text_cfg"])
        return Processor(open_clip_hub.transform_of(model), tokenizer)

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """Give vision and its projection, then text and its projection: the order in which the model runs them."""
        _check_kind(model)
        return [
            tower_at(model, _first_there(model, VISION), "vision"),
            *_outside(model, VISION_MATRICES),
            tower_at(model, _first_there(model, TEXT), "text"),
            *_outside(model, TEXT_MATRICES),
        ]

    def layers(self, block: Block) -> Sequence[Layer]:
        """Give the layers of a block; a custom one has its packed q, k and v in a module of open_clip's own."""
        if block.tower not in ("vision", "text"):
            return matrix_outside(block)
        layout: Layout = "batch token" if find(block.module, "attn.batch_first") in (True, None) else "token batch"
        packed = [
            Layer(f"{block.name}.{name}.in_proj_weight", module, "in_proj_weight", "", layout)
            for name, module in block.module.named_modules()
            if find(module, "in_proj_weight", nn.Parameter) is not None
            and not isinstance(module, nn.MultiheadAttention)
        ]
        return [*packed, *matrices(block, layout=layout)]

    def max_length(self, model: nn.Module) -> int | None:
        """Give the length that every text is padded or cut to."""
        return int(_text(model).context_length)

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Make ``image`` and ``text``, as open_clip's own forward names them."""
        transform, tokenizer = self._pair()
        texts = [sample.text for sample in samples]
        known = [text for text in texts if text is not None]
        if len(known) < len(texts):
            raise DataError(
                f"{len(texts) - len(known)} of {len(texts)} samples have no text: this model compares images with "
                f"texts, so each sample needs both."
            )
        return {"image": transformed(transform, samples), "text": _ids(model, tokenizer, known)}

    def _pair(self) -> tuple[Any, Any]:
        """Give the transform and the tokenizer."""
        if isinstance(self.processor, Processor):
            return self.processor.transform, self.processor.tokenizer
        if isinstance(self.processor, tuple | list) and len(self.processor) == 2 and callable(self.processor[1]):
            return self.processor[0], self.processor[1]
        raise DataError(
            "this model needs a transform for its images and a tokenizer for its texts, and came without: give "
            "ecoflap.run processor=(transform, tokenizer), such as (preprocess, open_clip.get_tokenizer(NAME))."
        )

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Compute InfoNCE over the batch's pairs, or the sigmoid loss of a model with a ``logit_bias``."""
        stem = _stem(model)
        with _embedding_text_as(model, stem.dtype):
            made = model(batch["image"].to(stem.device, stem.dtype), batch["text"].to(stem.device))
        names = ("image_features", "text_features", "logit_scale")
        images, texts, scale = (made[name] for name in names) if isinstance(made, Mapping) else made[:3]
        similarities = scale.float() * images.float() @ texts.float().T
        bias = find(model, "logit_bias", Tensor)
        return info_nce(similarities) if bias is None else sigmoid_pairs(similarities + bias.float())

    def why_no_logits(self, model: nn.Module) -> str | None:
        """Say of a model with a ``logit_bias`` that a sigmoid of each pair is no cross entropy."""
        return None if find(model, "logit_bias", Tensor) is None else JUDGED_ALONE

    def embed_images(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images features"]:
        """Give each image's vector, of length one."""
        stem, pixels = _stem(model), transformed(self._pair()[0], samples)
        return unit_vectors(member(model, "encode_image")(pixels.to(stem.device, stem.dtype)))

    def embed_texts(self, model: nn.Module, texts: Sequence[str]) -> Float[Tensor, "texts features"]:
        """Give each text's vector, of length one."""
        stem, ids = _stem(model), _ids(model, self._pair()[1], texts)
        with _embedding_text_as(model, stem.dtype):
            return unit_vectors(member(model, "encode_text")(ids.to(stem.device)))

    def similarity(
        self, model: nn.Module, images: Float[Tensor, "images features"], texts: Float[Tensor, "texts features"]
    ) -> Float[Tensor, "images texts"]:
        """Give the model's own similarities: cosines times its scale, and shifted where it has a ``logit_bias``."""
        scale, bias = member(model, "logit_scale", Tensor).float().exp(), find(model, "logit_bias", Tensor)
        return scale * (images @ texts.T) + (0.0 if bias is None else bias.float())

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Say what of a text is padding, where the model never looks at that; where it does, all of a text is real."""
        if tower == "text":
            return _text_tokens(model, batch["text"])
        pixels: Tensor = batch["image"]
        trunk = find(model, "visual.trunk", nn.Module)
        if trunk is not None:
            return timm_vit.token_kinds(trunk, pixels)
        count = member(model, "visual.positional_embedding", Tensor).shape[0]
        return torch.full((len(pixels), count), IMAGE, dtype=torch.int8)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model in open_clip's hub format, with the tokenizer beside it where it is not open_clip's own.

        open_clip 3 reads the folder with ``create_model("local-dir:FOLDER")``. An older one reads this format from the
        hub only, and from a folder the weights with ``load_checkpoint``.
        """
        open_clip_hub.save(model, self._tokenizer, self._config_of(model), folder)

    def save_surroundings(self, model: nn.Module, folder: Path) -> None:
        """Write what :meth:`save` writes beside the weights."""
        open_clip_hub.save_surroundings(self._tokenizer, self._config_of(model), folder)

    @property
    def _tokenizer(self) -> Any:
        return None if self.processor is None else self._pair()[1]

    def _config_of(self, model: nn.Module) -> dict[str, Any]:
        """Give open_clip's configuration of a model: the one it was read with, or what is known of one in memory.

        :raises ModelError: Where a model in memory is not of the architecture that is named for it.
        """
        known = description_of(model) or {"preprocess_cfg": open_clip_hub.preprocessing_of(model)}
        if "model_cfg" in known or self.architecture is None:
            return known
        return {"model_cfg": open_clip_hub.as_it_is(open_clip_hub.named(self.architecture), model), **known}

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give ``vision``, ``text``, and ``pair``, which compares them."""
        text = _text(model)
        return list(views_of_open_clip(model, int(text.context_length), len(text.token_embedding.weight)))

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Refuse batches of one pair, and an architecture that open_clip does not know."""
        yield from pair_problems(context.recipe)
        if self.architecture is not None:
            open_clip_hub.named(self.architecture)


def _check_kind(model: nn.Module) -> None:
    """Refuse a model of open_clip's that has other towers than those here, by the name of its class."""
    visual, text = member(model, "visual", nn.Module), _text(model)
    trunk = find(visual, "trunk", nn.Module)
    kinds = {
        "CoCa": find(model, "text_decoder") is not None,
        type(text).__name__: find(text, "transformer.resblocks") is None,
        f"a {type(trunk).__name__} as the vision tower": trunk is not None and not timm_vit.is_covered(trunk),
        type(visual).__name__: trunk is None and find(visual, "transformer.resblocks") is None,
        "a class token in the text tower": find(text, "cls_emb") is not None,
    }
    found = [kind for kind, is_there in kinds.items() if is_there]
    if found:
        raise ModelError(
            f"{', '.join(found)} of open_clip is not covered: only its own transformers, and timm's Eva and "
            f"VisionTransformer as vision towers, are."
        )


def _ids(model: nn.Module, tokenizer: Any, texts: Sequence[str]) -> Int64[Tensor, "texts tokens"]:
    """Give the tokens of texts.

    :raises DataError: Where one is none of the model's.
    """
    ids: Tensor = tokenizer(list(texts))
    count = len(member(_text(model), "token_embedding", nn.Embedding).weight)
    check_tokens(model, ids, count, getattr(tokenizer, "tokenizer", tokenizer), OWN_TOKENIZER)
    return ids


def _text(model: nn.Module) -> Any:
    """Give what holds the text tower: a module of its own, or in a plain CLIP the model."""
    text = find(model, "text", nn.Module)
    return model if text is None else text


@contextmanager
def _embedding_text_as(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """For a while, have open_clip cast an embedded text to this type.

    It takes the type of the first block, which may be wider by the time that block runs.
    """
    space = vars(member(_text(model), "transformer"))
    before = space.get("get_cast_dtype")
    space["get_cast_dtype"] = lambda: dtype
    try:
        yield
    finally:
        del space["get_cast_dtype"]
        if before is not None:
            space["get_cast_dtype"] = before


def _stem(model: nn.Module) -> nn.Parameter:
    """Give the weight that cuts images into patches; in open_clip's mixed precisions it has the type blocks work in."""
    conv = find(model, "visual.conv1.weight", nn.Parameter)
    return conv if conv is not None else timm_vit.stem_of(member(model, "visual.trunk", nn.Module))


def _first_there(model: nn.Module, paths: Sequence[str]) -> str:
    return next(path for path in paths if find(model, path) is not None)


def _outside(model: nn.Module, paths: Sequence[str]) -> list[Tower]:
    return [Tower.of_matrix(model, path) for path in paths if find(model, path, nn.Linear) is not None]


def _text_tokens(model: nn.Module, ids: Int64[Tensor, "batch tokens"]) -> Int8[Tensor, "batch tokens"]:
    text = _text(model)
    pooled = find(model, "text_pool_type") or find(text, "pool_type")
    if text.attn_mask is not None and pooled in ("argmax", "eos"):
        # Causal, and read off the end of the text: what comes behind it is never seen.
        is_end = ids == (ids.amax(1, keepdim=True) if pooled == "argmax" else _end(text))
        is_text = torch.arange(ids.shape[1], device=ids.device) <= is_end.int().argmax(1, keepdim=True)
    elif find(text, "use_pad_mask"):
        is_text = ids != text.pad_id
    else:
        is_text = torch.ones_like(ids, dtype=torch.bool)
    return is_text.to(torch.int8)


def _end(text: Any) -> int:
    return int(find(text, "text_eos_id") or text.eos_id)
