"""Adapt vision transformers of other libraries: timm's Eva and VisionTransformer, and the EVA-ViT of LAVIS."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.hubs import timm as timm_hub
from ecoflap.adapters.hubs.description import describe, description_of
from ecoflap.adapters.shared import timm_vit
from ecoflap.adapters.shared.embeddings import cosines, read_classifier
from ecoflap.adapters.shared.images import labelled_batch
from ecoflap.adapters.shared.losses import WITHOUT_CLASSES, vision_loss
from ecoflap.adapters.shared.matrices import matrices, matrix_outside, tower_at
from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.shared.transforms import transformed
from ecoflap.adapters.views.images import views_of_vision
from ecoflap.core.contracts.abilities import Classifies
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.records import Batch, Sample, View
from ecoflap.core.errors import DataError, ModelError, nearest
from ecoflap.core.model.anatomy import Block, Layer, Source, Tower

HOMES = frozenset({
    "timm.models.eva", "timm.models.vision_transformer", "timm.models.vision_transformer_hybrid", "timm.models.deit",
})  # fmt: skip
HEADS = ("head", "head_dist")  # the second of a distilled DeiT
FITS = "timm's Eva and VisionTransformer (EVA, EVA-02, ViT, DeiT) and LAVIS' eva_vit"


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["EvaVitAdapter"]]:
    return {"eva_vit": EvaVitAdapter}


class EvaVitAdapter:
    """Adapts vision transformers from ``timm:NAME``, a hub id or folder in timm's hub format, or memory.

    A model is saved in timm's hub format where its architecture is known: by what ``timm.create_model`` wrote down in a
    model that it made, or by the two parameters here. Otherwise the folder holds the weights under the model's own
    names and a config.json that names its class only: build that model as before, then
    ``model.load_state_dict(safetensors.torch.load_file("model.safetensors"))``. This is how LAVIS' eva_vit is saved.

    :param architecture: The model's name in timm, such as ``eva_giant_patch14_224``.
    :param arguments: What ``timm.create_model`` is to be called with beside it, such as ``{img_size: 448}``. From
        version 1.0.31 on timm writes them down in a model that it makes; an older one does not.
    :param classifier: A safetensors file with one matrix ``[classes, features]``, the text embeddings of the classes:
        the loss of labelled images is then the cross entropy of the raw cosines, zero-shot, as for EVA-CLIP in ECoFLaP.
    """

    def __init__(
        self,
        architecture: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        classifier: Path | None = None,
    ) -> None:
        self.processor: Any = None
        self.architecture, self.arguments = architecture, dict(arguments or {})
        self.classifier = None if classifier is None else read_classifier(classifier)

    def matches(self, source: Source) -> bool:
        """Recognise a model by its prefix, by the architecture in timm's config.json, and in memory by its class."""
        if source.model is not None:
            return timm_vit.is_covered(source.model)
        if "model_type" in source.config:
            return False
        if source.name.startswith(timm_hub.PREFIX) or timm_hub.UNNAMED in source.config:
            return True
        architecture = source.config.get("architecture")
        if not isinstance(architecture, str):
            return False
        if find_spec("timm") is None:
            return "pretrained_cfg" in source.config
        return timm_hub.home_of(architecture) in HOMES

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """Load the model in eval mode, and timm's own transform for its images.

        Of a model in memory for which timm has no transform, the one that the adapter was given is kept.

        :raises ModelError: Where it cannot be read, or is of another kind.
        """
        model = source.model.eval() if source.model is not None else self._loaded(source, device).to(dtype=dtype)
        if not timm_vit.is_covered(model):
            raise ModelError(f"{source.name} is a {timm_hub.class_name(model)}; this adapter knows {FITS}.")
        if device != "meta" and source.with_processor:
            given = self.processor if source.model is not None else None
            self.processor = self.read_processor(source, model) or given
        return model if source.model is not None else model.to(device)

    def read_processor(self, source: Source, model: nn.Module) -> Any:
        """Make timm's own transform for a model's images; None where timm did not make the model."""
        return timm_hub.transform_of(model)

    def _loaded(self, source: Source, device: str) -> nn.Module:
        if source.name.startswith(timm_hub.PREFIX):
            return timm_hub.load_named(source, self.arguments, device)
        if timm_hub.UNNAMED not in source.config:
            model = timm_hub.load_stored(source, self.arguments, device)
            describe(model, source.config.get("model_args", {}))
            return model
        kind = source.config[timm_hub.UNNAMED]
        if self.architecture is None:
            raise ModelError(
                f"{source.name} holds the weights of a {kind}, and not which architecture and arguments make one. "
                f"For timm's, write adapter: {{use: eva_vit, architecture: NAME, arguments: {{...}}}}; for any other, "
                f"build the model, load model.safetensors into it and give it to ecoflap.run(model=...)."
            )
        return timm_hub.load_unnamed(source, self.architecture, self.arguments, device)

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """Give the blocks, and the heads that there are."""
        return [tower_at(model, "blocks", "vision"), *(Tower.of_matrix(model, name) for name in _heads(model))]

    def layers(self, block: Block) -> Sequence[Layer]:
        """Give the layers of a block; a head reads the one vector of each image."""
        return matrix_outside(block) if block.tower in HEADS else list(matrices(block))

    def max_length(self, model: nn.Module) -> int | None:
        """Give None: it reads no text."""
        return None

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Refuse an architecture that timm does not know, before the pruned model is to be saved as one."""
        if self.architecture is not None and timm_hub.home_of(self.architecture) not in HOMES:
            near = nearest(self.architecture, timm_hub.imported().list_models())
            yield f"architecture: timm has none of {FITS} named {self.architecture!r}.{near}"

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Make ``pixel_values``, ``seeds``, and ``labels`` where the samples have them."""
        return labelled_batch(transformed(self.processor, samples), samples)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Compute the cross entropy of the classes where there are labels, and a head or a classifier.

        Otherwise it is the random projection of the model's output; of that of LAVIS, a vector for each token, the mean
        is taken.
        """
        output = _seen(model, batch["pixel_values"])
        labels = self._labels(model, batch)
        return vision_loss(output, labels, batch["seeds"], self._classifier_for(output))

    def why_no_logits(self, model: nn.Module) -> str | None:
        """Say of a model that has no head and is given no classifier that it has no logits."""
        return None if _heads(model) or self.classifier is not None else WITHOUT_CLASSES

    def _labels(self, model: nn.Module, batch: Batch) -> Int64[Tensor, " batch"] | None:
        """Give the labels that the model can be judged by; refuse a classifier that has none to look at."""
        labels: Tensor | None = batch.get("labels")
        if self.classifier is not None and labels is None:
            raise DataError("a zero-shot classifier needs the images' labels, which this data has not.")
        return labels if _heads(model) or self.classifier is not None else None

    def _classifier_for(self, output: Float[Tensor, "batch features"]) -> Float[Tensor, "classes features"] | None:
        """Give the classifier, or None where there is none; refuse one that has other features than the output."""
        matrix, features = self.classifier, output.shape[-1]
        if matrix is not None and matrix.shape[1] != features:
            raise DataError(
                f"classifier: its text embeddings have {matrix.shape[1]} features, and the model's images have "
                f"{features}. Make them with the text tower that belongs to this model."
            )
        return matrix

    def logits(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images classes"]:
        """Give the head's logits, or where a classifier is given the cosines with its text embeddings."""
        output = _seen(model, transformed(self.processor, samples))
        classifier = self._classifier_for(output)
        return output.float() if classifier is None else cosines(output, classifier)

    def refuses(self, model: nn.Module, ability: type[Any]) -> str | None:
        """Refuse classes of a model without a head, unless a classifier is given."""
        if ability is Classifies and self.classifier is None and not _heads(model):
            return (
                "it has no head, and no classifier is given: adapter: {use: eva_vit, classifier: FILE}, with the text "
                "embeddings of the classes."
            )
        return None

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Say that every position is of the image: the patches, and what stands before them."""
        return timm_vit.token_kinds(model, batch["pixel_values"])

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model in timm's hub format where its architecture is known, else its weights alone."""
        timm_hub.save(model, folder, self.architecture, self._arguments_of(model))

    def save_surroundings(self, model: nn.Module, folder: Path) -> None:
        """Write what :meth:`save` writes beside the weights."""
        timm_hub.save_surroundings(model, folder, self.architecture, self._arguments_of(model))

    def _arguments_of(self, model: nn.Module) -> dict[str, Any]:
        """Give the arguments that timm has not written down in the model itself."""
        has_own = getattr(model, "_model_args", None) is not None
        return {**({} if has_own else description_of(model)), **self.arguments}

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give ``vision``."""
        embed = member(model, "patch_embed")
        names = ["logits" if _heads(model) else "pooler_output"]
        return list(views_of_vision(model, embed, embed.img_size, names))


def _seen(
    model: nn.Module, pixel_values: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch outputs"]:
    """Give what the model makes of each image; where that is a vector for each token, their mean."""
    stem = timm_vit.stem_of(model)
    output: Tensor = model(pixel_values.to(stem.device, stem.dtype))
    return output.mean(1) if output.ndim == 3 else output


def _heads(model: nn.Module) -> list[str]:
    return [name for name in HEADS if find(model, name, nn.Linear) is not None]
