"""Adapt the BLIP of salesforce-lavis that tells whether a sentence is true of two images, as NLVR2 asks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from ecoflap.adapters.hubs.lavis import LavisAdapter
from ecoflap.adapters.shared.losses import class_nll
from ecoflap.adapters.shared.matrices import matrices, matrix_outside, tower_at
from ecoflap.adapters.shared.members import member
from ecoflap.adapters.views.blip import views_of_blip_nlvr
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import IMAGE, Batch, Sample, View
from ecoflap.core.errors import DataError, ModelError
from ecoflap.core.model.anatomy import Block, Layer, Tower

HEAD = ("cls_head.0", "cls_head.2")
IMAGES = ("image0", "image1")
"""What LAVIS calls the first images of a batch, and the second ones."""
EACH = "vision of one image"
"""What one half of a block's cross-attention reads: the first images, or the second ones."""
READ = tuple(f"crossattention.self{half}.{name}" for half in (0, 1) for name in ("key", "value"))


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["LavisBlipNlvrAdapter"]]:
    return {"lavis_blip_nlvr": LavisBlipNlvrAdapter}


class LavisBlipNlvrAdapter(LavisAdapter):
    """Adapts ``BlipNLVR``: ``lavis:blip_nlvr/nlvr``, a saved folder, or in memory.

    ``lavis:blip_nlvr/nlvr`` is ``load_model("blip_nlvr", "nlvr")`` of LAVIS. A plan takes the configuration that LAVIS
    ships, and fetches nothing. Both images of each sample go through the vision transformer in one batch, the first
    ones before the second ones, and each has a half of every cross-attention. The loss is the model's own: the cross
    entropy of whether the sentence is true. Sentences are written as LAVIS' ``blip_caption`` writes them.

    Li et al., BLIP, ICML 2022, https://arxiv.org/abs/2201.12086.
    """

    _classes = frozenset({"BlipNLVR"})
    _family, _called = "blip_nlvr", "BLIP-NLVR"

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """Give vision, text, and the two matrices that tell whether the sentence is true."""
        vision, text = ("visual_encoder.blocks", "vision"), ("text_encoder.encoder.layer", "text")
        outside = (Tower.of_matrix(model, name) for name in HEAD)
        return [tower_at(model, *vision), tower_at(model, *text), *outside]

    def layers(self, block: Block) -> Sequence[Layer]:
        """Give the layers of a block, or the one of a matrix outside them, which reads one vector of each sentence."""
        if block.tower in HEAD:
            return matrix_outside(block)
        return list(matrices(block, reads=lambda name: EACH if name in READ else ""))

    def max_length(self, model: nn.Module) -> int | None:
        """Give how many tokens a sentence may have."""
        return member(model, "text_encoder.config.max_position_embeddings", int)

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Make what the model's own forward takes: the first images, the second ones, sentences and labels.

        :raises DataError: Where a sample lacks one of them.
        """
        read = self._read(samples)
        unknown = [number for number, sample in enumerate(samples) if sample.label is None]
        if unknown:
            raise DataError(
                f"this model learns whether a sentence is true of two images: sample {unknown[0]} of a batch has no "
                f"label, 1 where it is and 0 where it is not."
            )
        return {**read, "label": torch.tensor([sample.label for sample in samples])}

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Compute the cross entropy of whether each sentence is true."""
        logits = _logits(model, batch)
        return class_nll(logits, batch["label"].to(logits.device))

    def own_inputs(self, model: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """Give a batch as LAVIS' forward takes it, by which it computes its own loss."""
        return {"samples": _cast(model, batch)}

    def logits(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "samples classes"]:
        """Give the logits of each sentence's being false, then of its being true."""
        return _logits(model.eval(), self._read(samples))

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Say that all of an image is real, and what of a sentence is padding.

        :param tower: What one half of the cross-attentions reads has a name too.
        """
        sentences = batch["text_input"]
        if tower == "text":
            mask: Tensor = member(model, "tokenizer")(sentences, padding="longest", return_tensors="pt").attention_mask
            return mask.to(torch.int8)
        images = len(sentences) * (1 if tower == EACH else len(IMAGES))
        patches = member(model, "visual_encoder.patch_embed.num_patches", int)
        return torch.full((images, 1 + patches), IMAGE, dtype=torch.int8)

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give ``vision``; ``text``, which reads tokens of a sentence on two images; and ``all`` in one graph."""
        return list(views_of_blip_nlvr(model))

    def _read(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Make tensors of images, and sentences as LAVIS writes them."""
        from lavis.processors.blip_processors import BlipCaptionProcessor

        for number, sample in enumerate(samples):
            if len(sample.images) != len(IMAGES) or not sample.text:
                found = f"{len(sample.images)} images and {'a' if sample.text else 'no'} sentence"
                raise DataError(
                    f"this model reads a sentence on two images: sample {number} of a batch has {found}. Take a "
                    f"dataset of such pairs, as image_pair is one."
                )
        one_each = ([replace(one, image=one.images[place]) for one in samples] for place in range(len(IMAGES)))
        pixels = dict(zip(IMAGES, map(self._pixels, one_each), strict=True))
        written = BlipCaptionProcessor()
        return {**pixels, "text_input": [written(sample.text) for sample in samples]}

    def _built(self, name: str, kind: str, *, with_tokenizer: bool) -> tuple[nn.Module, Any] | None:
        """Build a model by the configuration that LAVIS ships, of which a tokenizer alone may have to be fetched."""
        from lavis.models import BlipNLVR, load_preprocess
        from omegaconf import OmegaConf

        class Unread(BlipNLVR):  # type: ignore[misc]  # of a library without types
            """Reads no weights while it is built, and is like any other model afterwards."""

            @classmethod
            def init_tokenizer(cls) -> Any:
                return super().init_tokenizer() if with_tokenizer else None

            def load_checkpoint_from_config(self, cfg: Any, **keywords: Any) -> None:
                return

        config = OmegaConf.load(BlipNLVR.default_config_path(kind))
        images, _ = load_preprocess(config.preprocess)
        try:
            model = Unread.from_config(config.model)
        except OSError as error:
            raise ModelError(f"LAVIS cannot build {name}/{kind}: {error}") from error
        model.__class__ = BlipNLVR
        return model.eval(), images["eval"]


def _cast(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Give a batch on the device and with its images in the type of the convolution that cuts them into patches."""
    weight = member(model, "visual_encoder.patch_embed.proj.weight", nn.Parameter)
    images = {name: batch[name].to(weight) for name in IMAGES}
    return {**batch, **images, "label": batch["label"].to(weight.device)}


def _logits(model: nn.Module, batch: Mapping[str, Any]) -> Float[Tensor, "samples classes"]:
    """Run LAVIS' own forward; of labels it only asks here how many there are."""
    labels = batch.get("label", torch.zeros(len(batch["text_input"]), dtype=torch.int64))
    told: Tensor = model(_cast(model, {**batch, "label": labels}), is_train=False)["predictions"]
    return told
