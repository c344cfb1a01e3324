"""Adapt CLIP of transformers: its two towers compared by their similarities, or its vision tower alone."""

from collections.abc import Iterator, Mapping, Sequence
from inspect import unwrap
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.hubs.hugging_face import load_processor, load_transformers_model
from ecoflap.adapters.hubs.transformers_adapter import TransformersAdapter
from ecoflap.adapters.shared.contrastive import pair_problems
from ecoflap.adapters.shared.embeddings import cosines, read_classifier, unit_vectors
from ecoflap.adapters.shared.images import as_large_as_wanted, cast_for_vision, image_tokens, labelled_images, pixels_of
from ecoflap.adapters.shared.losses import WITHOUT_CLASSES, info_nce, vision_loss
from ecoflap.adapters.shared.matrices import matrices, matrix_outside, tower_at
from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.shared.texts import check_tokens, text_tokens, texts_of
from ecoflap.adapters.views.images import views_of_clip
from ecoflap.core.contracts.abilities import Classifies, Compares
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.records import Batch, Sample, View
from ecoflap.core.errors import DataError, ModelError
from ecoflap.core.model.anatomy import Block, Layer, Source, Tower

KINDS = {"clip": "CLIPModel", "clip_vision_model": "CLIPVisionModelWithProjection"}
EMBEDDING = "text_model.embeddings.token_embedding"
PROJECTIONS = {"vision": "visual_projection", "text": "text_projection"}


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["ClipAdapter"]]:
    return {"clip": ClipAdapter}


class ClipAdapter(TransformersAdapter):
    """Adapts ``CLIPModel`` and ``CLIPVisionModelWithProjection``, from a hub id, a folder or memory.

    The loss of a pair is the symmetric InfoNCE of the model's own scaled similarities. A vision tower alone has the
    cross entropy of a zero-shot classifier, or without one the inner product of its normalised features with a fixed
    random vector for each image.

    :param classifier: For a vision tower alone: a safetensors file of one tensor [classes, features], the text
        embeddings of the classes that the samples' labels count.
    """

    _has_doubles = True

    def __init__(self, classifier: Path | None = None) -> None:
        super().__init__()
        self._classifier = None if classifier is None else read_classifier(classifier)

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """Load the model in eval mode, and its processor; ``device="meta"`` reads neither weights nor processor.

        :raises ModelError: Where the classifier has other features than the model, too.
        """
        model = super().load(source, dtype, device)
        self._check_classifier(model)
        return model

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """Give vision, text and what projects each, in the order in which the model runs them."""
        there = [name for name in PROJECTIONS if find(model, f"{name}_model") is not None]
        towers = [tower_at(model, f"{name}_model.encoder.layers", name) for name in there]
        projections = [Tower.of_matrix(model, PROJECTIONS[name]) for name in there]
        if not _projects_in_turn(model):
            return [*towers, *projections]
        return [one for both in zip(towers, projections, strict=True) for one in both]

    def layers(self, block: Block) -> Sequence[Layer]:
        """Give the layers of a block; a projection reads the one vector of an image or a text."""
        return list(matrices(block)) if block.tower in PROJECTIONS else matrix_outside(block)

    def max_length(self, model: nn.Module) -> int | None:
        """Give the length of a text with its first and last token; None for a vision tower alone."""
        positions = find(model, "text_model.embeddings.position_embedding", nn.Embedding)
        return None if positions is None else positions.num_embeddings

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Make images and texts by the model's own processor; texts are padded on the right to the longest."""
        return {**labelled_images(self.processor, samples), **self._texts_of(model, samples)}

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Compute InfoNCE over the batch's pairs; of a vision tower alone, cross entropy or the random projection."""
        pixels = cast_for_vision(model, batch["pixel_values"])
        given = {"pixel_values": pixels}
        if _has_texts(model):
            input_ids, mask = _texts(model, batch, self.max_length(model))
            given |= {"input_ids": input_ids.to(pixels.device), "attention_mask": mask.to(pixels.device)}
        with as_large_as_wanted(pixels):
            made = model(**given)
        return info_nce(made.logits_per_image) if len(given) > 1 else self._vision_loss(made.image_embeds, batch)

    def why_no_logits(self, model: nn.Module) -> str | None:
        """Say of a vision tower alone that it has no logits without a classifier."""
        return None if _has_texts(model) or self._classifier is not None else WITHOUT_CLASSES

    def embed_images(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images features"]:
        """Give each image's vector, of length one."""
        pixels = cast_for_vision(model, pixels_of(self.processor, samples))
        with as_large_as_wanted(pixels):
            if _has_texts(model):
                return unit_vectors(member(model, "get_image_features")(pixel_values=pixels))
            return unit_vectors(model(pixel_values=pixels).image_embeds)

    def embed_texts(self, model: nn.Module, texts: Sequence[str]) -> Float[Tensor, "texts features"]:
        """Give each text's vector, of length one."""
        batch = self._texts_of(model, [Sample(text=text) for text in texts])
        input_ids, mask = _texts(model, batch, self.max_length(model))
        device = member(model, EMBEDDING, nn.Embedding).weight.device
        read = {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}
        return unit_vectors(member(model, "get_text_features")(**read))

    def similarity(
        self, model: nn.Module, images: Float[Tensor, "images features"], texts: Float[Tensor, "texts features"]
    ) -> Float[Tensor, "images texts"]:
        """Give the model's own similarities: cosines times its scale."""
        scale = member(model, "logit_scale", Tensor).float().exp()
        return scale * (images @ texts.T)

    def logits(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images classes"]:
        """Give the cosines of a vision tower's images with the text embeddings of the classes."""
        assert self._classifier is not None  # refuses() has seen to it
        return cosines(self.embed_images(model, samples), self._classifier)

    def refuses(self, model: nn.Module, ability: type[Any]) -> str | None:
        """Refuse texts of a vision tower alone, which sorts images into classes by a classifier only."""
        has_texts = _has_texts(model)
        if ability is Compares and not has_texts:
            return "it is a vision tower alone, without one for texts."
        if ability is Classifies and has_texts:
            return "it compares images with texts, and has no list of classes. The evaluator zero_shot takes one."
        if ability is Classifies and self._classifier is None:
            return "it is a vision tower alone, and no classifier is given: adapter: {use: clip, classifier: FILE}."
        return None

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Say that all of an image is real, and what of a text is padding."""
        if tower == "vision":
            return image_tokens(member(model, "vision_model.embeddings"), batch["pixel_values"])
        return text_tokens(batch)

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give ``vision``, and of both towers ``text`` and ``pair``, which compares them."""
        return list(views_of_clip(model))

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Refuse batches of one pair, and a classifier that pairs have no use for."""
        if _has_texts(context.model):
            yield from pair_problems(context.recipe)
            if self._classifier is not None:
                yield "classifier is for a vision tower alone; this model compares images with texts. Leave it out."

    def read_processor(self, source: Source, model: nn.Module) -> Any:
        """Read the processor; of a vision tower alone that of its images."""
        return load_processor("AutoProcessor" if _has_texts(model) else "AutoImageProcessor", source)

    @staticmethod
    def _is_read(model_type: str, name: str | None) -> bool:
        return model_type in KINDS and name in (KINDS[model_type], None)

    @staticmethod
    def _is_laid_out(model: nn.Module) -> bool:
        stacks = {name: find(model, f"{name}_model.encoder.layers", nn.ModuleList) for name in PROJECTIONS}
        towers = [name for name, stack in stacks.items() if stack is not None]
        projected = [name for name in towers if find(model, PROJECTIONS[name], nn.Linear) is not None]
        return "vision" in towers and towers == projected

    def _read_model(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        return load_transformers_model(
            KINDS.get(source.config.get("model_type", ""), "AutoModel"), source, dtype, device
        )

    def _texts_of(self, model: nn.Module, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Tokenise the samples' texts for a model that reads some.

        :raises DataError: Where a token is none of the model's, too.
        """
        texts, embedding = texts_of(self.processor, samples), find(model, EMBEDDING, nn.Embedding)
        if texts and embedding is not None:
            check_tokens(model, texts["input_ids"], embedding.num_embeddings, self.processor.tokenizer)
        return texts

    def _check_classifier(self, model: nn.Module) -> None:
        if self._classifier is not None:
            features, own = member(model, "visual_projection", nn.Linear).out_features, self._classifier.shape[1]
            if features != own:
                raise ModelError(
                    f"classifier: its text embeddings have {own} features, and the model's images have {features}. "
                    f"Make them with the text tower of the same model."
                )

    def _vision_loss(self, features: Float[Tensor, "batch features"], batch: Batch) -> Float[Tensor, ""]:
        if self._classifier is None:
            return vision_loss(features, None, batch["seeds"])
        if "labels" not in batch:
            raise DataError("a classifier is given, and the images have no label: give labels, or no classifier.")
        return vision_loss(features, batch["labels"].to(features.device), batch["seeds"], self._classifier)


def _has_texts(model: nn.Module) -> bool:
    """Say whether it is a whole CLIP, and no vision tower alone."""
    return find(model, "text_model") is not None


def _projects_in_turn(model: nn.Module) -> bool:
    """Tell transformers 5, which projects the image before it reads the text, from 4, which projects both last."""
    return "get_image_features" in unwrap(type(model).forward).__code__.co_names


def _texts(
    model: nn.Module, batch: Batch, longest: int | None
) -> tuple[Int64[Tensor, "batch tokens"], Int64[Tensor, "batch tokens"]]:
    """Give token ids and mask.

    :raises DataError: Where there is no text, or the model would quietly read something else than the text.
    """
    if "input_ids" not in batch:
        raise DataError(
            "this model compares images with texts, and its processor has no tokenizer or the samples have no text. "
            "Calibrate it on a dataset of images with texts; tokenizer.json belongs beside config.json."
        )
    input_ids, mask = batch["input_ids"], batch["attention_mask"]
    if longest is not None and input_ids.shape[1] > longest:
        raise DataError(
            f"a text has {input_ids.shape[1]} tokens, and the model reads {longest}: set model_max_length: {longest} "
            f"in tokenizer_config.json."
        )
    end = find(model, "text_model.eos_token_id")
    # 2 stands for the last token being the one of the largest number, as in the first checkpoints
    if end is not None and end != 2 and not bool((input_ids == end).any(1).all()):
        raise DataError(
            f"a text does not end with the token {end}, where the model reads it off: its tokenizer must put it there."
        )
    return input_ids, mask
