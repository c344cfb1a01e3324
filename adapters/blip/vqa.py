"""Adapt the BLIP that answers questions: its encoder reads question and image, and its decoder what that makes."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.blip.parts import (
    ENCODER,
    Words,
    decoder_towers,
    has_towers,
    layers_of,
    loss_of_said,
    mask_across,
    seen,
    seen_once,
    tokenizer_of,
    vision_tower,
)
from ecoflap.adapters.hubs.transformers_adapter import TransformersAdapter
from ecoflap.adapters.shared.generation import check_length, generated
from ecoflap.adapters.shared.images import image_tokens, pixels_of, text_to_say
from ecoflap.adapters.shared.losses import IGNORED
from ecoflap.adapters.shared.matrices import tower_at
from ecoflap.adapters.shared.members import member
from ecoflap.adapters.shared.texts import padded_rows, row_tensor, text_tokens
from ecoflap.adapters.views.blip import views_of_blip_vqa
from ecoflap.core.contracts.abilities import Generation, Said
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Batch, Sample, View
from ecoflap.core.errors import DataError
from ecoflap.core.model.anatomy import Block, Layer, Tower

KIND = "BlipForQuestionAnswering"


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["BlipVqaAdapter"]]:
    return {"blip_vqa": BlipVqaAdapter}


class BlipVqaAdapter(TransformersAdapter):
    """Adapts ``BlipForQuestionAnswering``, from a hub id, a folder or memory.

    The loss is its own: the cross entropy of the first answer given the question and the image, smoothed as its
    configuration has it. A question is read as its processor writes it.

    Li et al., BLIP, ICML 2022, https://arxiv.org/abs/2201.12086.
    """

    _kind, _processor_kind = KIND, "AutoProcessor"
    _has_doubles = True

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """Give vision, encoder and decoder, and the two matrices that make logits of what the last gives."""
        return [vision_tower(model), tower_at(model, ENCODER, "encoder"), *decoder_towers(model)]

    def layers(self, block: Block) -> Sequence[Layer]:
        """Give the layers of a block: the encoder's cross-attention reads vision, and the decoder's the encoder."""
        return layers_of(block, reads="vision" if block.tower == "encoder" else "encoder")

    def max_length(self, model: nn.Module) -> int | None:
        """Give how many tokens a text may have, with the one that begins it and the one that ends it."""
        return Words.of(model).longest

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Make images, questions and first answers padded on the right, as the model's own forward takes them."""
        words, pixels = Words.of(model), pixels_of(self.processor, samples)
        input_ids, mask = self._questions(words, samples)
        rows = [words.said(self.processor, text_to_say(*sample)) for sample in enumerate(samples)]
        answers, real = padded_rows(rows, words.pad)
        labels, _ = padded_rows(rows, IGNORED)
        read = {"pixel_values": pixels, "input_ids": input_ids, "attention_mask": mask}
        return {**read, "decoder_input_ids": answers, "decoder_attention_mask": real, "labels": labels}

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Compute the mean cross entropy of each token of the answers."""
        images = seen(model, batch["pixel_values"])
        read, mask = _read(model, images, batch["input_ids"], batch["attention_mask"])
        said = batch["decoder_input_ids"], batch["decoder_attention_mask"], batch["labels"]
        return loss_of_said(_decoder(model), said, read, mask)

    def generate(self, model: nn.Module, samples: Sequence[Sample], generation: Generation) -> list[Said]:
        """Have the decoder answer each question on an image."""
        words = Words.of(model)
        check_length([[words.begin]], generation, words.longest)
        ids, mask = self._questions(words, samples)
        with torch.no_grad():
            images = seen_once(model.eval(), self.processor, samples)
            read, mask = _read(model, images, ids, mask)
        begin = row_tensor([[words.begin]] * len(samples), images.device)
        inputs = {"input_ids": begin, "encoder_hidden_states": read, "encoder_attention_mask": mask}
        return generated(_decoder(model), tokenizer_of(self.processor), inputs, generation, 1, [words.end])

    def tokens_of(self, model: nn.Module, text: str) -> tuple[int, ...]:
        """Give the tokens of an answer without those around it."""
        return tuple(Words.of(model).read(self.processor, text)[1:-1])

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Say that all of an image is real, what of a question is padding, and where a token of the answer follows."""
        if tower == "vision":
            return image_tokens(member(model, "vision_model.embeddings"), batch["pixel_values"])
        if tower == "encoder":
            return text_tokens(batch)
        followed: Tensor = batch["decoder_attention_mask"][:, 1:]
        return followed.to(torch.int8)

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give ``vision``, ``encoder`` and ``decoder``, each of which reads the one before, and ``all``."""
        mask_across(member(model, "text_decoder", nn.Module))
        return list(views_of_blip_vqa(model))

    @staticmethod
    def _is_read(model_type: str, name: str | None) -> bool:
        return model_type == "blip" and name == KIND

    @staticmethod
    def _is_laid_out(model: nn.Module) -> bool:
        return has_towers(model, encoder=True, decoder=True)

    def _questions(
        self, words: Words, samples: Sequence[Sample]
    ) -> tuple[Int64[Tensor, "batch tokens"], Int64[Tensor, "batch tokens"]]:
        """Give the tokens of questions and their mask."""
        silent = [number for number, sample in enumerate(samples) if not sample.question]
        if silent:
            raise DataError(
                f"this model answers questions on images: sample {silent[0]} of a batch has none. Take a dataset of "
                f"images with questions, such as image_question_answer."
            )
        return padded_rows([words.read(self.processor, str(sample.question)) for sample in samples], words.pad)


def _decoder(model: nn.Module) -> nn.Module:
    """Give the decoder, which leaves out a question's padding."""
    decoder = member(model, "text_decoder", nn.Module)
    mask_across(decoder)
    return decoder


def _read(
    model: nn.Module,
    images: Float[Tensor, "batch patches hidden"],
    ids: Int64[Tensor, "batch tokens"],
    mask: Int64[Tensor, "batch tokens"],
) -> tuple[Float[Tensor, "batch tokens width"], Int64[Tensor, "batch tokens"]]:
    """Give what the encoder makes of questions on images, and which of it is no padding, where the model is."""
    ids, mask = ids.to(images.device), mask.to(images.device)
    read = member(model, "text_encoder")(input_ids=ids, attention_mask=mask, encoder_hidden_states=images)
    return read.last_hidden_state, mask
