"""SigLIP of transformers: every image is judged with every text, and all texts are of one length, padding included."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.hubs.hugging_face import IMAGE_FILES, load_model, load_processor, save_model, save_surroundings
from ecoflap.adapters.shared.contrastive import pair_problems
from ecoflap.adapters.shared.embeddings import unit_vectors
from ecoflap.adapters.shared.images import image_tokens, patch_convolution, pixels_of
from ecoflap.adapters.shared.losses import sigmoid_pairs
from ecoflap.adapters.shared.matrices import matrices, matrix_outside, part
from ecoflap.adapters.shared.texts import NO_LIMIT, padding_token, texts_of
from ecoflap.adapters.views.images import views_of_siglip
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Batch, Sample, View
from ecoflap.core.errors import DataError
from ecoflap.core.model.anatomy import Anatomy, Block, Layer, Source, Tower
from ecoflap.core.recipe.schema import Recipe

LENGTH = 64
"""Tokens of a text in every published SigLIP, where a tokenizer has no limit of its own."""
HEADS = {"vision": ("vision_model.head.mlp.fc1", "vision_model.head.mlp.fc2"), "text": ("text_model.head",)}


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["SiglipAdapter"]]:
    return {"siglip": SiglipAdapter}


class SiglipAdapter:
    """``SiglipModel``, from a hub id, a folder or memory.

    Its loss is its own: the sigmoid of every pair in a batch. Of the attention that pools an image nothing is pruned.
    """

    def __init__(self) -> None:
        self.processor: Any = None
        self._length: int | None = None

    def matches(self, source: Source) -> bool:
        """By ``model_type`` and class, and by its structure for a model in memory."""
        config, model = source.config, source.model
        if model is not None and not _is_laid_out(model):
            return False
        if not config:
            return model is not None
        heads = [one.__name__ for one in type(model).__mro__] if model is not None else config.get("architectures")
        return config.get("model_type") == "siglip" and "SiglipModel" in (heads or ["SiglipModel"])

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """The model in eval mode, and its processor; ``device="meta"`` reads neither weights nor processor."""
        if source.model is not None:
            model = source.model.eval()
        else:
            model = load_model("SiglipModel", source, dtype, device)
            if device != "meta":
                self.processor = load_processor("AutoProcessor", source, IMAGE_FILES)
        self._length = self.max_length(model)
        return model

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """Vision and what follows on the pooled image, then text and what projects it."""
        towers: list[Tower] = []
        for name, heads in HEADS.items():
            path = f"{name}_model.encoder.layers"
            blocks = tuple(Block(f"{path}.{i}", block, name) for i, block in enumerate(part(model, path)))
            towers.append(Tower(name, blocks))
            towers += [Tower.of_matrix(model, head) for head in heads if part(model, head) is not None]
        return towers

    def layers(self, block: Block) -> Sequence[Layer]:
        return list(matrices(block)) if block.tower in HEADS else matrix_outside(block)

    def max_length(self, model: nn.Module) -> int | None:
        """What every text is padded to."""
        return int(part(model, "text_model.embeddings.position_embedding").weight.shape[0])

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Images and texts through the model's own processor; every text is padded to the model's length."""
        return {"pixel_values": pixels_of(self.processor, samples), "input_ids": self._ids(samples)}

    def _ids(self, samples: Sequence[Sample]) -> Int64[Tensor, "batch tokens"]:
        texts = texts_of(self.processor, samples, self._text_length())
        if not texts:
            raise DataError(
                "this model compares images with texts: each sample needs an image and a text, and the model a "
                "processor with a tokenizer."
            )
        missing = self._text_length() - texts["input_ids"].shape[1]
        fill = padding_token(self.processor.tokenizer)
        return F.pad(texts["input_ids"], (0, missing), value=fill)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """The sigmoid loss over all pairs of the batch."""
        pixels = _pixels(model, batch["pixel_values"])
        made = model(pixel_values=pixels, input_ids=batch["input_ids"].to(pixels.device))
        return sigmoid_pairs(made.logits_per_image)

    def embed_images(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images features"]:
        """As vectors of length one."""
        pixels = _pixels(model, pixels_of(self.processor, samples))
        return unit_vectors(part(model, "get_image_features")(pixel_values=pixels))

    def embed_texts(self, model: nn.Module, texts: Sequence[str]) -> Float[Tensor, "texts features"]:
        """As vectors of length one, of texts that are padded as in :meth:`collate`."""
        device = part(model, "text_model.embeddings.token_embedding").weight.device
        ids = self._ids([Sample(text=text) for text in texts]).to(device)
        return unit_vectors(part(model, "get_text_features")(input_ids=ids))

    def similarity(
        self, model: nn.Module, images: Float[Tensor, "images features"], texts: Float[Tensor, "texts features"]
    ) -> Float[Tensor, "images texts"]:
        """The model's own, whose sigmoid is its judgement of a pair: cosines, scaled and shifted."""
        scale: Tensor = part(model, "logit_scale").float().exp()
        bias: Tensor = part(model, "logit_bias").float()
        return scale * (images @ texts.T) + bias

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Padding of texts counts as text: the model attends to it, and reads the text off its last position."""
        if tower == "vision":
            return image_tokens(part(model, "vision_model.embeddings"), batch["pixel_values"])
        return torch.ones_like(batch["input_ids"], dtype=torch.int8)

    def save(self, model: nn.Module, folder: Path) -> None:
        """As transformers writes it, with the processor beside it."""
        save_model(model, self.processor, folder)

    def save_surroundings(self, model: nn.Module, folder: Path) -> None:
        """The same without the weights."""
        save_surroundings(model, self.processor, folder)

    def export_views(self, model: nn.Module) -> Sequence[View]:
        return list(views_of_siglip(model))

    def problems(self, anatomy: Anatomy, recipe: Recipe) -> Iterator[str]:
        """Too few pairs in a batch."""
        yield from pair_problems(recipe)

    def _text_length(self) -> int:
        own = getattr(getattr(self.processor, "tokenizer", None), "model_max_length", NO_LIMIT)
        return self._length or (own if own < NO_LIMIT else LENGTH)


def _pixels(
    model: nn.Module, pixel_values: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch channels height width"]:
    """In the type and on the device of the patch embedding."""
    return pixel_values.to(patch_convolution(part(model, "vision_model.embeddings")).weight)


def _is_laid_out(model: nn.Module) -> bool:
    return part(model, "logit_bias") is not None and all(
        isinstance(part(model, f"{name}_model.encoder.layers"), nn.ModuleList) for name in HEADS
    )
