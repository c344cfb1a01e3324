"""Adapt vision transformers of transformers: ViT, DeiT, DINOv2, DINOv3, BEiT and the like, classifier or none."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from ecoflap.adapters.hubs.hugging_face import load_transformers_model
from ecoflap.adapters.hubs.transformers_adapter import TransformersAdapter
from ecoflap.adapters.shared.images import (
    as_large_as_wanted,
    cast_for,
    image_tokens,
    labelled_images,
    pixels_of,
    size_made_by,
)
from ecoflap.adapters.shared.losses import WITHOUT_CLASSES, vision_loss
from ecoflap.adapters.shared.matrices import matrices, matrix_outside, tower_at
from ecoflap.adapters.shared.members import find, member
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


class VitAdapter(TransformersAdapter):
    """Adapts ``ViTModel``, ``ViTForImageClassification`` and models of their layout, from a hub id, a folder or memory.

    The loss is the cross entropy of the images' classes. Where the model has no classifier or the images have no
    label, it is the inner product of the model's normalised output with a fixed random vector for each image.
    """

    _processor_kind = "AutoImageProcessor"
    _has_doubles = True

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """Give the blocks, then what is applied to the one vector of each image."""
        name, body = _body(model)
        path = ".".join(filter(None, (name, _blocks_in(body))))
        heads = dict.fromkeys(".".join(filter(None, (inside, head))) for head in HEADS for inside in (name, ""))
        linear = [head for head in heads if find(model, head, nn.Linear) is not None]
        return [tower_at(model, path, "vision"), *(Tower.of_matrix(model, head) for head in linear)]

    def layers(self, block: Block) -> Sequence[Layer]:
        """Give the layers of a block; what is outside the blocks reads the one vector of each image."""
        return list(matrices(block)) if block.tower == "vision" else matrix_outside(block)

    def max_length(self, model: nn.Module) -> int | None:
        """Give None: it reads no text."""
        return None

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Make images by the model's own processor, with their labels if they have any."""
        return labelled_images(self.processor, samples)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Compute the cross entropy of the labels, or the random projection where there are none or no classifier."""
        output = _seen(model, batch["pixel_values"])
        labels: Tensor | None = batch.get("labels") if _classifies(model) else None
        return vision_loss(output, None if labels is None else labels.to(output.device), batch["seeds"])

    def why_no_logits(self, model: nn.Module) -> str | None:
        """Say of a model without a classifier that it has no logits."""
        return None if _classifies(model) else WITHOUT_CLASSES

    def logits(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images classes"]:
        """Give the classifier's logits of each image."""
        return _seen(model, pixels_of(self.processor, samples)).float()

    def refuses(self, model: nn.Module, ability: type[Any]) -> str | None:
        """Refuse classes of a model without a classifier."""
        if ability is Classifies and not _classifies(model):
            return f"a {type(model).__name__} has no classifier, which a model such as ViT{CLASSIFIES} has."
        return None

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Say that class token, registers and patches are all of the image: none is padding."""
        return image_tokens(_embeddings(model), batch["pixel_values"])

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give ``vision``.

        Images are as large as the processor makes them, or as the configuration says where there is none.
        """
        known = self.processor is not None
        size = size_made_by(self.processor) if known else member(model, "config.image_size")
        return list(views_of_vision(model, _embeddings(model), size, ("logits", "last_hidden_state", "pooler_output")))

    @staticmethod
    def _is_read(model_type: str, name: str | None) -> bool:
        """Take a class without a head, or with a classifier; not one that predicts masked patches or a segmentation."""
        if model_type not in FAMILIES or name is None:
            return model_type in FAMILIES
        return CLASSIFIES in name or (name.endswith("Model") and not name.endswith("PreTrainedModel"))

    @staticmethod
    def _is_laid_out(model: nn.Module) -> bool:
        return any(_blocks_in(module) for module in (model, *model.children()))

    def _read_model(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """Read a model with a classifier as such, and any other without one, which may have a pooler or not."""
        if CLASSIFIES in (source.config.get("architectures") or [""])[0]:
            return load_transformers_model(f"AutoModel{CLASSIFIES}", source, dtype, device)
        return load_transformers_model("AutoModel", source, dtype, device, has_pooler=None)


def _body(model: nn.Module) -> tuple[str, nn.Module]:
    """Give the module with embeddings and blocks, and its name: the model itself, or what a classifier is put on."""
    for name, module in (("", model), *model.named_children()):
        if _blocks_in(module):
            return name, module
    raise ModelError(
        f"{type(model).__name__} is not laid out like a vision transformer of transformers: expected embeddings that "
        f"cut an image into patches, and blocks in {', '.join(BLOCKS)}."
    )


def _embeddings(model: nn.Module) -> nn.Module:
    return member(_body(model)[1], "embeddings", nn.Module)


def _blocks_in(module: nn.Module) -> str:
    """Say where a module has its blocks; nothing where it is no vision transformer."""
    embeddings = find(module, "embeddings", nn.Module)
    if embeddings is None or not any(isinstance(one, nn.Conv2d) for one in embeddings.modules()):
        return ""
    return next((name for name in BLOCKS if find(module, name, nn.ModuleList) is not None), "")


def _classifies(model: nn.Module) -> bool:
    classifiers = (head for head in HEADS if head.endswith("classifier"))
    return any(find(model, head, nn.Linear) is not None for head in classifiers)


def _seen(
    model: nn.Module, pixel_values: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch outputs"]:
    """Give what the model makes of each image."""
    embeddings = _embeddings(model)
    pixels = cast_for(embeddings, pixel_values)
    with as_large_as_wanted(pixels):
        return _output(model(pixel_values=pixels), embeddings)


def _output(made: Any, embeddings: nn.Module) -> Tensor:
    """Give logits; the pooled vector without a classifier; without a pooler the class token, or the mean of tokens."""
    for name in ("logits", "pooler_output"):
        output: Tensor | None = getattr(made, name, None)
        if output is not None:
            return output
    hidden: Tensor = made.last_hidden_state
    return hidden[:, 0] if hasattr(embeddings, "cls_token") else hidden.mean(1)
