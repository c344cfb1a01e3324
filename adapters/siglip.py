"""Adapt SigLIP of transformers: it judges every image with every text, and all texts have one length with padding."""

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.hubs.transformers_adapter import TransformersAdapter
from ecoflap.adapters.shared.contrastive import pair_problems
from ecoflap.adapters.shared.embeddings import unit_vectors
from ecoflap.adapters.shared.images import cast_for_vision, image_tokens, pixels_of
from ecoflap.adapters.shared.losses import JUDGED_ALONE, sigmoid_pairs
from ecoflap.adapters.shared.matrices import matrices, matrix_outside, tower_at
from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.shared.texts import check_tokens, padding_token, texts_of
from ecoflap.adapters.views.images import views_of_siglip
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.records import Batch, Sample, View
from ecoflap.core.errors import DataError
from ecoflap.core.model.anatomy import Block, Layer, Tower

EMBEDDING = "text_model.embeddings.token_embedding"
HEADS = {"vision": ("vision_model.head.mlp.fc1", "vision_model.head.mlp.fc2"), "text": ("text_model.head",)}


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["SiglipAdapter"]]:
    return {"siglip": SiglipAdapter}


class SiglipAdapter(TransformersAdapter):
    """Adapts ``SiglipModel``, from a hub id, a folder or memory.

    Its loss is its own: the sigmoid of every pair in a batch. Of the attention that pools an image nothing is pruned.
    """

    _kind, _processor_kind = "SiglipModel", "AutoProcessor"
    _has_doubles = True

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """Give vision and what follows on the pooled image, then text and what projects it."""
        towers: list[Tower] = []
        for name, heads in HEADS.items():
            towers.append(tower_at(model, f"{name}_model.encoder.layers", name))
            towers += [Tower.of_matrix(model, head) for head in heads if find(model, head) is not None]
        return towers

    def layers(self, block: Block) -> Sequence[Layer]:
        """Give the layers of a block; what is outside the blocks reads the one vector of an image or a text."""
        return list(matrices(block)) if block.tower in HEADS else matrix_outside(block)

    def max_length(self, model: nn.Module) -> int | None:
        """Give the length that every text is padded to."""
        return _length(model)

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Make images and texts by the model's own processor; every text is padded to the model's length."""
        return {"pixel_values": pixels_of(self.processor, samples), "input_ids": self._ids(model, samples)}

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Compute the sigmoid loss over all pairs of the batch."""
        pixels = cast_for_vision(model, batch["pixel_values"])
        made = model(pixel_values=pixels, input_ids=batch["input_ids"].to(pixels.device))
        return sigmoid_pairs(made.logits_per_image)

    def why_no_logits(self, model: nn.Module) -> str:
        """Say that a sigmoid of each pair is no cross entropy."""
        return JUDGED_ALONE

    def embed_images(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images features"]:
        """Give each image's vector, of length one."""
        pixels = cast_for_vision(model, pixels_of(self.processor, samples))
        return unit_vectors(member(model, "get_image_features")(pixel_values=pixels))

    def embed_texts(self, model: nn.Module, texts: Sequence[str]) -> Float[Tensor, "texts features"]:
        """Give each text's vector, of length one; texts are padded as in :meth:`collate`."""
        device = member(model, EMBEDDING, nn.Embedding).weight.device
        ids = self._ids(model, [Sample(text=text) for text in texts]).to(device)
        return unit_vectors(member(model, "get_text_features")(input_ids=ids))

    def similarity(
        self, model: nn.Module, images: Float[Tensor, "images features"], texts: Float[Tensor, "texts features"]
    ) -> Float[Tensor, "images texts"]:
        """Give the model's own similarities, whose sigmoid is its judgement of a pair: cosines, scaled and shifted."""
        scale, bias = (member(model, name, Tensor).float() for name in ("logit_scale", "logit_bias"))
        return scale.exp() * (images @ texts.T) + bias

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Say that all is real, as padding of a text is: the model attends to it, and reads the text off its end."""
        if tower == "vision":
            return image_tokens(member(model, "vision_model.embeddings"), batch["pixel_values"])
        return torch.ones_like(batch["input_ids"], dtype=torch.int8)

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give ``vision``, ``text``, and ``pair``, which compares them."""
        return list(views_of_siglip(model))

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Refuse batches of one pair."""
        yield from pair_problems(context.recipe)

    @staticmethod
    def _is_read(model_type: str, name: str | None) -> bool:
        return model_type == "siglip" and name in ("SiglipModel", None)

    @staticmethod
    def _is_laid_out(model: nn.Module) -> bool:
        stacks = (find(model, f"{name}_model.encoder.layers", nn.ModuleList) for name in HEADS)
        return find(model, "logit_bias") is not None and all(stack is not None for stack in stacks)

    def _ids(self, model: nn.Module, samples: Sequence[Sample]) -> Int64[Tensor, "batch tokens"]:
        """Give the tokens of texts, cut or padded to the length that the model reads."""
        length = _length(model)
        texts = texts_of(self.processor, samples, length)
        if not texts:
            raise DataError(
                "this model compares images with texts: each sample needs an image and a text, and the model a "
                "processor with a tokenizer."
            )
        count = member(model, EMBEDDING, nn.Embedding).num_embeddings
        check_tokens(model, texts["input_ids"], count, self.processor.tokenizer)
        missing = length - texts["input_ids"].shape[1]
        return F.pad(texts["input_ids"], (0, missing), value=padding_token(self.processor.tokenizer))


def _length(model: nn.Module) -> int:
    return member(model, "text_model.embeddings.position_embedding", nn.Embedding).num_embeddings
