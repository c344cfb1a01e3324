"""Adapt the BLIP that says something of an image: a vision transformer, and a text decoder that reads it."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from ecoflap.adapters.blip.parts import (
    Words,
    decoder_towers,
    has_towers,
    layers_of,
    loss_of_said,
    seen,
    seen_once,
    tokenizer_of,
    vision_tower,
)
from ecoflap.adapters.hubs.transformers_adapter import TransformersAdapter
from ecoflap.adapters.shared.generation import check_length, generated, shared
from ecoflap.adapters.shared.images import image_tokens, pixels_of, text_to_say
from ecoflap.adapters.shared.losses import IGNORED
from ecoflap.adapters.shared.members import member
from ecoflap.adapters.shared.texts import in_groups, padded_rows, row_tensor
from ecoflap.adapters.views.blip import views_of_blip_caption
from ecoflap.core.contracts.abilities import Generation, Said
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Batch, Sample, View
from ecoflap.core.model.anatomy import Block, Layer, Tower

KIND = "BlipForConditionalGeneration"


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["BlipCaptionAdapter"]]:
    return {"blip_caption": BlipCaptionAdapter}


class BlipCaptionAdapter(TransformersAdapter):
    """Adapts ``BlipForConditionalGeneration``, from a hub id, a folder or memory.

    The loss is its own: the cross entropy of a caption given the image, smoothed as its configuration has it. A
    sample's question is what the caption goes on from, and is not to be said.

    Li et al., BLIP, ICML 2022, https://arxiv.org/abs/2201.12086.

    :param prompt: What a caption goes on from where its sample has no question. BLIP was taught captions of COCO with
        ``a picture of``.
    """

    _kind, _processor_kind = KIND, "AutoProcessor"
    _has_doubles = True

    def __init__(self, prompt: str = "") -> None:
        super().__init__()
        self._prompt = prompt

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """Give vision, the decoder, and the two matrices that make logits of what it gives."""
        return [vision_tower(model), *decoder_towers(model)]

    def layers(self, block: Block) -> Sequence[Layer]:
        """Give the layers of a block; the decoder's cross-attention reads the vision transformer."""
        return layers_of(block, reads="vision")

    def max_length(self, model: nn.Module) -> int | None:
        """Give how many tokens a text may have, with the one that begins it and the one that ends it."""
        return Words.of(model).longest

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Make images, and texts padded on the right, as the model's own forward takes them."""
        words, pixels = Words.of(model), pixels_of(self.processor, samples)
        pairs = [self._pair(words, number, sample) for number, sample in enumerate(samples)]
        rows, labels = zip(*pairs, strict=True)
        input_ids, mask = padded_rows(rows, words.pad)
        targets, _ = padded_rows(labels, IGNORED)
        return {"pixel_values": pixels, "input_ids": input_ids, "attention_mask": mask, "labels": targets}

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Compute the mean cross entropy of each token that is to be said."""
        said = batch["input_ids"], batch["attention_mask"], batch["labels"]
        return loss_of_said(member(model, "text_decoder"), said, seen(model, batch["pixel_values"]))

    def generate(self, model: nn.Module, samples: Sequence[Sample], generation: Generation) -> list[Said]:
        """Have the decoder go on from each question, or begin a text of its own, given the image."""
        words, decoder = Words.of(model), member(model, "text_decoder")
        prompts = [words.said(self.processor, sample.question or self._prompt)[:-1] for sample in samples]
        check_length(prompts, generation, words.longest, samples)
        with torch.no_grad():
            images = seen_once(model.eval(), self.processor, samples)

        def go_on(numbers: list[int]) -> list[Said]:
            ids = row_tensor([prompts[number] for number in numbers], images.device)
            inputs = {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "encoder_hidden_states": images[numbers],
            }
            return generated(decoder, tokenizer_of(self.processor), inputs, generation, ids.shape[1], [words.end])

        return in_groups(prompts, go_on)

    def tokens_of(self, model: nn.Module, text: str) -> tuple[int, ...]:
        """Give the tokens of a text without those around it."""
        return tuple(Words.of(model).read(self.processor, text)[1:-1])

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Say that all of an image is real; a position of the decoder is where a token of the text comes after it."""
        if tower == "vision":
            return image_tokens(member(model, "vision_model.embeddings"), batch["pixel_values"])
        followed: Tensor = batch["attention_mask"][:, 1:]
        return followed.to(torch.int8)

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give ``vision``, ``decoder``, which reads what that gives, and ``all`` in one graph."""
        return list(views_of_blip_caption(model))

    @staticmethod
    def _is_read(model_type: str, name: str | None) -> bool:
        return model_type == "blip" and name == KIND

    @staticmethod
    def _is_laid_out(model: nn.Module) -> bool:
        return has_towers(model, encoder=False, decoder=True)

    def _pair(self, words: Words, number: int, sample: Sample) -> tuple[list[int], list[int]]:
        """Give a text's tokens, and the same as labels: what it goes on from is not labelled."""
        asked, said = sample.question or self._prompt, text_to_say(number, sample)
        whole = words.said(self.processor, f"{asked} {said}" if asked else said)
        begins = shared(words.said(self.processor, asked)[:-1], whole)
        return whole, [IGNORED] * begins + whole[begins:]
