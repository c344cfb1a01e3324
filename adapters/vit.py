"""Vision transformers of transformers: ViT, DeiT, DINOv2, DINOv3, BEiT and their likes, with or without classifier."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from ecoflap.adapters.hubs.hugging_face import load_model, save_model, save_surroundings
from ecoflap.adapters.shared.images import (
    as_large_as_wanted,
    image_tokens,
    labelled_images,
    load_image_processor,
    patch_convolution,
    pixels_of,
    size_made_by,
)
from ecoflap.adapters.shared.losses import vision_loss
from ecoflap.adapters.shared.matrices import matrices, matrix_outside, part
from ecoflap.adapters.views.images import views_of_vision
from ecoflap.core.contracts.abilities import Classifies
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Batch, Sample, View
from ecoflap.core.errors import ModelError
from ecoflap.core.model.anatomy import Block, Layer, Source, Tower

# ViT-MAE is not here: its forward drops patches at random.
FAMILIES = frozenset({
    "beit", "data2vec-vision", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "ijepa", "pixio", "vit",
    "vit_msn",
})  # fmt: skip
BLOCKS = ("layers", "layer", "encoder.layer", "model.layer")  # which of them depends on family and version
HEADS = ("pooler.dense", "classifier", "cls_classifier", "distillation_classifier")  # in the order they run
CLASSIFIES = "ForImageClassification"


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["VitAdapter"]]:
    return {"vit": VitAdapter}


class VitAdapter:
    """``ViTModel``, ``ViTForImageClassification`` and models of their layout, from a hub id, a folder or memory.

    The loss is the cross entropy of the images' classes. Where the model has no classifier or the images have no
    label, it is the inner product of the model's normalised output with a fixed random vector for each image.
    """

    def __init__(self) -> None:
        self.processor: Any = None

    def matches(self, source: Source) -> bool:
        """By ``model_type``, and by its structure for a model in memory."""
        config, model = source.config, source.model
        if model is not None and not _is_laid_out(model):
            return False
        if not config:
            return model is not None
        heads = [one.__name__ for one in type(model).__mro__] if model is not None else config.get("architectures")
        return config.get("model_type") in FAMILIES and any(map(_is_read, heads or ["Model"]))

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """The model in eval mode, and its image processor; ``device="meta"`` reads neither weights nor processor."""
        if source.model is not None:
            return source.model.eval()
        heads = source.config.get("architectures") or ["Model"]
        kind = f"AutoModel{CLASSIFIES}" if CLASSIFIES in heads[0] else "AutoModel"
        model = load_model(kind, source, dtype, device, has_pooler=None if kind == "AutoModel" else True)
        if device != "meta":
            self.processor = load_image_processor(source)
        return model

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """The blocks, then what is applied to the one vector of each image."""
        name, body = _body(model)
        path = ".".join(filter(None, (name, _blocks_in(body))))
        blocks = tuple(Block(f"{path}.{i}", block, "vision") for i, block in enumerate(part(model, path)))
        heads = dict.fromkeys(".".join(filter(None, (inside, head))) for head in HEADS for inside in (name, ""))
        linear = [head for head in heads if isinstance(part(model, head), nn.Linear)]
        return [Tower("vision", blocks), *(Tower.of_matrix(model, head) for head in linear)]

    def layers(self, block: Block) -> Sequence[Layer]:
        return list(matrices(block)) if block.tower == "vision" else matrix_outside(block)

    def max_length(self, model: nn.Module) -> int | None:
        """It reads no text."""
        return None

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Images through the model's own processor, with their labels if they have any."""
        return labelled_images(self.processor, samples)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Cross entropy of the labels, or the random projection where there are none or no classifier."""
        output = _seen(model, batch["pixel_values"])
        labels: Tensor | None = batch.get("labels") if _classifies(model) else None
        return vision_loss(output, None if labels is None else labels.to(output.device), batch["seeds"])

    def logits(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images classes"]:
        return _seen(model, pixels_of(self.processor, samples)).float()

    def refuses(self, model: nn.Module, ability: Any) -> str | None:
        """A model without a classifier knows no classes."""
        if ability is Classifies and not _classifies(model):
            return f"a {type(model).__name__} has no classifier, which a model such as ViT{CLASSIFIES} has."
        return None

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Class token, registers and patches: none is padding."""
        return image_tokens(part(_body(model)[1], "embeddings"), batch["pixel_values"])

    def save(self, model: nn.Module, folder: Path) -> None:
        """As transformers writes it, with the image processor beside it."""
        save_model(model, self.processor, folder)

    def save_surroundings(self, model: nn.Module, folder: Path) -> None:
        """The same without the weights."""
        save_surroundings(model, self.processor, folder)

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Images are as large as the processor makes them, or as the configuration says where there is none."""
        embeddings = part(_body(model)[1], "embeddings")
        known = self.processor is not None
        size = size_made_by(self.processor) if known else part(model, "config").image_size
        return list(views_of_vision(model, embeddings, size, ("logits", "last_hidden_state", "pooler_output")))


def _is_read(head: str) -> bool:
    """A class without a head, or with a classifier; not one that predicts masked patches or a segmentation."""
    return CLASSIFIES in head or (head.endswith("Model") and not head.endswith("PreTrainedModel"))


def _body(model: nn.Module) -> tuple[str, nn.Module]:
    """The module with embeddings and blocks, and its name: the model itself, or what a classifier is put on."""
    for name, module in (("", model), *model.named_children()):
        if _blocks_in(module):
            return name, module
    raise ModelError(
        f"{type(model).__name__} is not laid out like a vision transformer of transformers: expected embeddings that "
        f"cut an image into patches, and blocks in {', '.join(BLOCKS)}."
    )


def _blocks_in(module: nn.Module) -> str:
    """Where the blocks are; empty where the module is no vision transformer."""
    embeddings = part(module, "embeddings")
    if not isinstance(embeddings, nn.Module) or not any(isinstance(one, nn.Conv2d) for one in embeddings.modules()):
        return ""
    return next((name for name in BLOCKS if isinstance(part(module, name), nn.ModuleList)), "")


def _is_laid_out(model: nn.Module) -> bool:
    return any(_blocks_in(module) for module in (model, *model.children()))


def _classifies(model: nn.Module) -> bool:
    return any(isinstance(part(model, head), nn.Linear) for head in HEADS if head.endswith("classifier"))


def _seen(
    model: nn.Module, pixel_values: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch outputs"]:
    """What the model makes of each image."""
    embeddings = part(_body(model)[1], "embeddings")
    pixels = pixel_values.to(patch_convolution(embeddings).weight)
    with as_large_as_wanted(pixels):
        return _output(model(pixel_values=pixels), embeddings)


def _output(made: Any, embeddings: nn.Module) -> Tensor:
    """Logits; the pooled vector without a classifier; without a pooler the class token, or the mean of all tokens."""
    for name in ("logits", "pooler_output"):
        output: Tensor | None = getattr(made, name, None)
        if output is not None:
            return output
    hidden: Tensor = made.last_hidden_state
    return hidden[:, 0] if hasattr(embeddings, "cls_token") else hidden.mean(1)
