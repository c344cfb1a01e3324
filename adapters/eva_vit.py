"""Vision transformers that are not transformers': timm's Eva and VisionTransformer, and the EVA-ViT of LAVIS."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.hubs import timm as timm_hub
from ecoflap.adapters.shared.embeddings import cosines
from ecoflap.adapters.shared.images import IMAGE, image_seeds
from ecoflap.adapters.shared.losses import labels_of, vision_loss
from ecoflap.adapters.shared.matrices import matrices, matrix_outside, part
from ecoflap.adapters.shared.transforms import transformed
from ecoflap.adapters.shared.zero_shot import read_classifier
from ecoflap.adapters.views.images import views_of_vision
from ecoflap.core.contracts.abilities import Classifies
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Batch, Sample, View
from ecoflap.core.errors import DataError, ModelError, nearest
from ecoflap.core.model.anatomy import Anatomy, Block, Layer, Source, Tower

HOMES = frozenset({
    "timm.models.eva", "timm.models.vision_transformer", "timm.models.vision_transformer_hybrid", "timm.models.deit",
})  # fmt: skip
CLASSES = frozenset({"timm.models.eva.Eva", "timm.models.vision_transformer.VisionTransformer"})
HEADS = ("head", "head_dist")  # the second of a distilled DeiT
FITS = "timm's Eva and VisionTransformer (EVA, EVA-02, ViT, DeiT) and LAVIS' eva_vit"


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["EvaVitAdapter"]]:
    return {"eva_vit": EvaVitAdapter}


class EvaVitAdapter:
    """From ``timm:NAME``, a hub id or folder in timm's hub format, or memory.

    A model is saved in timm's hub format where its architecture is known: by timm's own note in a model that
    ``timm.create_model`` made, or by the two parameters here. Otherwise the folder holds the weights under the model's
    own names and a config.json that names its class only: build that model as before, then
    ``model.load_state_dict(safetensors.torch.load_file("model.safetensors"))``. This is how LAVIS' eva_vit is saved.

    :param architecture: The model's name in timm, such as ``eva_giant_patch14_224``.
    :param arguments: What ``timm.create_model`` is to be called with beside it, such as ``{img_size: 448}``. timm
        notes them in a model it makes from its version 1.0.31 on; an older one does not.
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
        self._read_arguments: Mapping[str, Any] = {}

    def matches(self, source: Source) -> bool:
        """By prefix, by the architecture in timm's config.json, and by class for a model in memory."""
        if source.model is not None:
            return is_covered(source.model)
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
        """The model in eval mode, and timm's own transform for its images."""
        model = source.model.eval() if source.model is not None else self._loaded(source, device).to(dtype=dtype)
        if not is_covered(model):
            raise ModelError(f"{source.name} is a {timm_hub.class_name(model)}; this adapter knows {FITS}.")
        if device != "meta" and self.processor is None:
            self.processor = timm_hub.transform_of(model)
        return model if source.model is not None else model.to(device)

    def _loaded(self, source: Source, device: str) -> nn.Module:
        if source.name.startswith(timm_hub.PREFIX):
            return timm_hub.load_named(source, self.arguments, device)
        if timm_hub.UNNAMED not in source.config:
            self._read_arguments = source.config.get("model_args", {})
            return timm_hub.load_stored(source, self.arguments, device)
        kind = source.config[timm_hub.UNNAMED]
        if self.architecture is None:
            raise ModelError(
                f"{source.name} holds the weights of a {kind}, and not which architecture and arguments make one. "
                f"For timm's, write adapter: {{use: eva_vit, architecture: NAME, arguments: {{...}}}}; for any other, "
                f"build the model, load model.safetensors into it and give it to ecoflap.run(model=...)."
            )
        return timm_hub.load_unnamed(source, self.architecture, self.arguments, device)

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """The blocks, and the head where there is one."""
        blocks = tuple(Block(f"blocks.{i}", block, "vision") for i, block in enumerate(part(model, "blocks")))
        return [Tower("vision", blocks), *(Tower.of_matrix(model, name) for name in _heads(model))]

    def layers(self, block: Block) -> Sequence[Layer]:
        return matrix_outside(block) if block.tower in HEADS else list(matrices(block))

    def max_length(self, model: nn.Module) -> int | None:
        """It reads no text."""
        return None

    def problems(self, anatomy: Anatomy, recipe: Any) -> Iterator[str]:
        """An architecture that timm does not know would be noticed when the pruned model is saved."""
        if self.architecture is not None and timm_hub.home_of(self.architecture) not in HOMES:
            near = nearest(self.architecture, timm_hub.imported().list_models())
            yield f"architecture: timm has none of {FITS} named {self.architecture!r}.{near}"

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """``pixel_values``, ``seeds``, and ``labels`` where the samples have them."""
        pixels = transformed(self.processor, samples)
        labels = labels_of([sample.label for sample in samples])
        batch = {"pixel_values": pixels, "seeds": image_seeds(pixels)}
        return batch if labels is None else {**batch, "labels": labels}

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Cross entropy of the classes where the model has a head, or a classifier is given, and there are labels.

        Else the random projection of what it gives, which for a vector a token, as LAVIS' gives, is of their mean.
        """
        output = _seen(model, batch["pixel_values"])
        labels = self._labels(model, batch)
        return vision_loss(output, labels, batch["seeds"], self._classifier_for(output))

    def _labels(self, model: nn.Module, batch: Batch) -> Int64[Tensor, " batch"] | None:
        labels: Tensor | None = batch.get("labels")
        if self.classifier is not None and labels is None:
            raise DataError("a zero-shot classifier needs the images' labels, which this data has not.")
        return labels if _heads(model) or self.classifier is not None else None

    def _classifier_for(self, output: Float[Tensor, "batch features"]) -> Float[Tensor, "classes features"] | None:
        matrix, features = self.classifier, output.shape[-1]
        if matrix is not None and matrix.shape[1] != features:
            raise DataError(f"classifier: is {list(matrix.shape)}, and the model gives {features} features an image.")
        return matrix

    def logits(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images classes"]:
        """The head's, or where a classifier is given the cosines with its text embeddings."""
        output = _seen(model, transformed(self.processor, samples))
        classifier = self._classifier_for(output)
        return output.float() if classifier is None else cosines(output, classifier)

    def refuses(self, model: nn.Module, ability: Any) -> str | None:
        """A model without a head knows no classes, unless a classifier is given."""
        if ability is Classifies and self.classifier is None and not _heads(model):
            return (
                "it has no head, and no classifier is given: adapter: {use: eva_vit, classifier: FILE}, with the text "
                "embeddings of the classes."
            )
        return None

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """All are of the image: the patches, and what stands before them."""
        return image_tokens(model, batch["pixel_values"])

    def save(self, model: nn.Module, folder: Path) -> None:
        """In timm's hub format where its architecture is known, else its weights alone."""
        timm_hub.save(model, folder, self.architecture, self._arguments_of(model))

    def save_surroundings(self, model: nn.Module, folder: Path) -> None:
        """The same without the weights."""
        timm_hub.save_surroundings(model, folder, self.architecture, self._arguments_of(model))

    def _arguments_of(self, model: nn.Module) -> dict[str, Any]:
        noted = getattr(model, "_model_args", None)
        return {**({} if noted is not None else self._read_arguments), **self.arguments}

    def export_views(self, model: nn.Module) -> Sequence[View]:
        embed = part(model, "patch_embed")
        names = ["logits" if _heads(model) else "pooler_output"]
        return list(views_of_vision(model, embed, embed.img_size, names))


def is_covered(model: nn.Module) -> bool:
    """By class, and by structure for what has copied timm's old one, as LAVIS has."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(model).__mro__}
    return bool(names & CLASSES) or _is_laid_out(model)


def _is_laid_out(model: nn.Module) -> bool:
    blocks = part(model, "blocks")
    if not (isinstance(blocks, nn.ModuleList) and len(blocks) and isinstance(part(model, "cls_token"), nn.Parameter)):
        return False
    wanted = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    linear = all(isinstance(part(block, name), nn.Linear) for block in blocks for name in wanted)
    return linear and isinstance(part(model, "patch_embed.proj"), nn.Conv2d)


def image_tokens(
    model: nn.Module, pixels: Float[Tensor, "batch channels height width"]
) -> Int8[Tensor, "batch tokens"]:
    """One for each patch, and the class, distillation and register tokens before them: all are of the image."""
    return torch.full((len(pixels), _patches(model, pixels) + _tokens_before(model)), IMAGE, dtype=torch.int8)


def _seen(
    model: nn.Module, pixel_values: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch outputs"]:
    """What the model makes of each image; where that is a vector for each token, their mean."""
    stem: nn.Parameter = next(part(model, "patch_embed").parameters())
    output: Tensor = model(pixel_values.to(stem.device, stem.dtype))
    return output.mean(1) if output.ndim == 3 else output


def _heads(model: nn.Module) -> list[str]:
    return [name for name in HEADS if isinstance(part(model, name), nn.Linear)]


def _patches(model: nn.Module, pixels: Float[Tensor, "batch channels height width"]) -> int:
    """Of these images, whose size a model with dynamic_img_size lets differ from its own."""
    embed = part(model, "patch_embed")
    if not hasattr(embed, "dynamic_feat_size"):
        return int(embed.num_patches)
    height, width = pixels.shape[-2:]
    rows, columns = embed.dynamic_feat_size((height, width))
    return int(rows * columns)


def _tokens_before(model: nn.Module) -> int:
    known = part(model, "num_prefix_tokens")
    if known is not None:
        return int(known)
    positions = part(model, "pos_embed")
    return 1 if positions is None else positions.shape[1] - part(model, "patch_embed.num_patches")
