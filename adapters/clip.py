"""CLIP of transformers: its two towers compared by their similarities, or its vision tower alone."""

from collections.abc import Iterator, Mapping, Sequence
from inspect import unwrap
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.hubs.hugging_face import IMAGE_FILES, load_model, load_processor, save_model, save_surroundings
from ecoflap.adapters.shared.contrastive import pair_problems
from ecoflap.adapters.shared.embeddings import cosines, unit_vectors
from ecoflap.adapters.shared.images import (
    as_large_as_wanted,
    image_tokens,
    labelled_images,
    load_image_processor,
    patch_convolution,
    pixels_of,
)
from ecoflap.adapters.shared.losses import info_nce, vision_loss
from ecoflap.adapters.shared.matrices import matrices, matrix_outside, part
from ecoflap.adapters.shared.texts import texts_of
from ecoflap.adapters.shared.zero_shot import read_classifier
from ecoflap.adapters.views.images import views_of_clip
from ecoflap.core.contracts.abilities import Classifies, Compares
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Batch, Sample, View
from ecoflap.core.errors import DataError, ModelError
from ecoflap.core.model.anatomy import Anatomy, Block, Layer, Source, Tower
from ecoflap.core.recipe.schema import Recipe

KINDS = {"clip": "CLIPModel", "clip_vision_model": "CLIPVisionModelWithProjection"}
PROJECTIONS = {"vision": "visual_projection", "text": "text_projection"}


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["ClipAdapter"]]:
    return {"clip": ClipAdapter}


class ClipAdapter:
    """``CLIPModel`` and ``CLIPVisionModelWithProjection``, from a hub id, a folder or memory.

    The loss of a pair is the symmetric InfoNCE of the model's own scaled similarities. A vision tower alone has the
    cross entropy of a zero-shot classifier, or without one the inner product of its normalised features with a fixed
    random vector for each image.

    :param classifier: Of a vision tower alone: a safetensors file of one tensor [classes, features], the text
        embeddings of the classes that the samples' labels count.
    """

    def __init__(self, classifier: Path | None = None) -> None:
        self.processor: Any = None
        self._classifier = None if classifier is None else read_classifier(classifier)

    def matches(self, source: Source) -> bool:
        """By ``model_type`` and class, and by its structure for a model in memory."""
        config, model = source.config, source.model
        if model is not None and not _is_laid_out(model):
            return False
        if not config:
            return model is not None
        kind = KINDS.get(config.get("model_type", ""), "")
        heads = [one.__name__ for one in type(model).__mro__] if model is not None else config.get("architectures")
        return bool(kind) and kind in (heads or [kind])

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """The model in eval mode, and its processor; ``device="meta"`` reads neither weights nor processor."""
        if source.model is not None:
            model = source.model.eval()
        else:
            kind = KINDS.get(source.config.get("model_type", ""), "AutoModel")
            model = load_model(kind, source, dtype, device)
            if device != "meta":
                self.processor = _load_processor(source, model)
        self._check_classifier(model)
        return model

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """Vision, text and what projects each, in the order in which the model runs them."""
        there = [name for name in PROJECTIONS if part(model, f"{name}_model") is not None]
        towers = [_tower(model, name) for name in there]
        projections = [Tower.of_matrix(model, PROJECTIONS[name]) for name in there]
        if not _projects_in_turn(model):
            return [*towers, *projections]
        return [one for both in zip(towers, projections, strict=True) for one in both]

    def layers(self, block: Block) -> Sequence[Layer]:
        return list(matrices(block)) if block.tower in PROJECTIONS else matrix_outside(block)

    def max_length(self, model: nn.Module) -> int | None:
        """Of a text with its first and last token; None for a vision tower alone."""
        positions = part(model, "text_model.embeddings.position_embedding")
        return None if positions is None else int(positions.weight.shape[0])

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Images and texts through the model's own processor; texts padded on the right to the longest."""
        return {**labelled_images(self.processor, samples), **texts_of(self.processor, samples)}

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """InfoNCE over the batch's pairs; of a vision tower alone cross entropy or the random projection."""
        pixels = _pixels(model, batch)
        given = {"pixel_values": pixels}
        if part(model, "text_model") is not None:
            input_ids, mask = _texts(model, batch, self.max_length(model))
            given |= {"input_ids": input_ids.to(pixels.device), "attention_mask": mask.to(pixels.device)}
        with as_large_as_wanted(pixels):
            made = model(**given)
        return info_nce(made.logits_per_image) if len(given) > 1 else self._vision_loss(made.image_embeds, batch)

    def embed_images(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images features"]:
        """As vectors of length one."""
        pixels = _pixels(model, {"pixel_values": pixels_of(self.processor, samples)})
        with as_large_as_wanted(pixels):
            if part(model, "text_model") is None:
                return unit_vectors(model(pixel_values=pixels).image_embeds)
            return unit_vectors(part(model, "get_image_features")(pixel_values=pixels))

    def embed_texts(self, model: nn.Module, texts: Sequence[str]) -> Float[Tensor, "texts features"]:
        """As vectors of length one."""
        batch = texts_of(self.processor, [Sample(text=text) for text in texts])
        input_ids, mask = _texts(model, batch, self.max_length(model))
        device = part(model, "text_model.embeddings.token_embedding").weight.device
        read = {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}
        return unit_vectors(part(model, "get_text_features")(**read))

    def similarity(
        self, model: nn.Module, images: Float[Tensor, "images features"], texts: Float[Tensor, "texts features"]
    ) -> Float[Tensor, "images texts"]:
        """The model's own: cosines times its scale."""
        scale: Tensor = part(model, "logit_scale").float().exp()
        return scale * (images @ texts.T)

    def logits(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images classes"]:
        """Of a vision tower with a classifier, its cosines with the text embeddings of the classes."""
        assert self._classifier is not None  # refuses() has seen to it
        return cosines(self.embed_images(model, samples), self._classifier)

    def refuses(self, model: nn.Module, ability: Any) -> str | None:
        """A vision tower alone compares with no text, and sorts images into classes by a classifier only."""
        has_text = part(model, "text_model") is not None
        if ability is Compares and not has_text:
            return "it is a vision tower alone, without one for texts."
        if ability is Classifies and has_text:
            return "it compares images with texts, and has no list of classes. The evaluator zero_shot takes one."
        if ability is Classifies and self._classifier is None:
            return "it is a vision tower alone, and no classifier is given: adapter: {use: clip, classifier: FILE}."
        return None

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        if tower == "vision":
            return image_tokens(part(model, "vision_model.embeddings"), batch["pixel_values"])
        mask: Tensor = batch["attention_mask"]
        return mask.to(torch.int8)

    def save(self, model: nn.Module, folder: Path) -> None:
        """As transformers writes it, with the processor beside it."""
        save_model(model, self.processor, folder)

    def save_surroundings(self, model: nn.Module, folder: Path) -> None:
        """The same without the weights."""
        save_surroundings(model, self.processor, folder)

    def export_views(self, model: nn.Module) -> Sequence[View]:
        return list(views_of_clip(model))

    def problems(self, anatomy: Anatomy, recipe: Recipe) -> Iterator[str]:
        """Of pairs: too few in a batch, or a classifier that they have no use for."""
        if "text" in [tower.name for tower in anatomy.towers]:
            yield from pair_problems(recipe)
            if self._classifier is not None:
                yield "classifier is for a vision tower alone; this model compares images with texts. Leave it out."

    def _check_classifier(self, model: nn.Module) -> None:
        if self._classifier is not None:
            features, own = part(model, "visual_projection").weight.shape[0], self._classifier.shape[1]
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


def _tower(model: nn.Module, name: str) -> Tower:
    path = f"{name}_model.encoder.layers"
    return Tower(name, tuple(Block(f"{path}.{i}", block, name) for i, block in enumerate(part(model, path))))


def _projects_in_turn(model: nn.Module) -> bool:
    """transformers 5 projects the image before it reads the text; transformers 4 projects both at the end."""
    return "get_image_features" in unwrap(type(model).forward).__code__.co_names


def _load_processor(source: Source, model: nn.Module) -> Any:
    if part(model, "text_model") is None:
        return load_image_processor(source)
    return load_processor("AutoProcessor", source, IMAGE_FILES)


def _pixels(model: nn.Module, batch: Batch) -> Float[Tensor, "batch channels height width"]:
    """In the type and on the device of the patch embedding."""
    pixels: Tensor = batch["pixel_values"]
    return pixels.to(patch_convolution(part(model, "vision_model.embeddings")).weight)


def _texts(
    model: nn.Module, batch: Batch, longest: int | None
) -> tuple[Int64[Tensor, "batch tokens"], Int64[Tensor, "batch tokens"]]:
    """Token ids and mask; refused where the model would quietly read something else than the text."""
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
    end = part(model, "text_model.eos_token_id")
    # 2 stands for the last token being the one of the largest number, as in the first checkpoints
    if end is not None and end != 2 and not bool((input_ids == end).any(1).all()):
        raise DataError(
            f"a text does not end with the token {end}, where the model reads it off: its tokenizer must put it there."
        )
    return input_ids, mask


def _is_laid_out(model: nn.Module) -> bool:
    towers = [name for name in PROJECTIONS if isinstance(part(model, f"{name}_model.encoder.layers"), nn.ModuleList)]
    projected = [name for name in towers if isinstance(part(model, PROJECTIONS[name]), nn.Linear)]
    return "vision" in towers and towers == projected
