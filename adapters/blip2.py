"""Adapt BLIP-2 of transformers: a vision transformer, a Q-Former that reads it, and a text model that reads that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.hubs.transformers_adapter import TransformersAdapter
from ecoflap.adapters.shared.blip2_vision import has_both, layers_that_see, tokens_that_see, towers_that_see
from ecoflap.adapters.shared.generation import (
    check_length,
    distinct_images,
    generated,
    gone_on,
    images_put_in,
    opening,
    padded_left,
    shared,
    without_ends,
)
from ecoflap.adapters.shared.images import pixels_of, text_to_say
from ecoflap.adapters.shared.losses import IGNORED, mean_nll
from ecoflap.adapters.shared.matrices import matrices, matrix_outside, tower_at
from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.shared.saved_config import say_type, say_untied
from ecoflap.adapters.shared.t5_stack import layers_of_t5, towers_of_t5, untie
from ecoflap.adapters.shared.texts import check_lengths, check_tokens, padded_rows
from ecoflap.adapters.views.blip2 import Queries, views_of_blip2
from ecoflap.core.contracts.abilities import Generates, Generation, Said
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import IMAGE, Batch, Sample, View
from ecoflap.core.errors import DataError, ModelError
from ecoflap.core.model.anatomy import Block, Layer, Source, Tower

KIND = "Blip2ForConditionalGeneration"
TEXT, HEAD, PROJECTION = "language_model", "language_model.lm_head", "language_projection"
NO_PLACE = (
    "the model's configuration has no image_token_index, so images have no place in its text: set it in config.json to "
    "the number that its tokenizer gives <image>."
)
DECODERS = ("model.decoder", "model")
"""Where the text models that are a decoder alone have theirs: OPT, and what is laid out like LLaMA."""


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["Blip2Adapter"]]:
    return {"blip2": Blip2Adapter}


@dataclass(frozen=True)
class Prompting:
    """Says which tokens a model reads, by its configuration.

    :param image_token: The token at each place of an image in the text; None in a configuration from before there was
        one.
    :param queries: How many places an image has.
    :param is_decoder_only: Whether what is read and what is said are one text.
    :param end: The token that ends what is said; None leaves it to the tokenizer.
    :param longest: How many tokens the text model takes; None where there is no limit.
    """

    image_token: int | None
    queries: int
    is_decoder_only: bool
    end: int | None
    longest: int | None

    @classmethod
    def of(cls, model: nn.Module) -> "Prompting":
        """Read a model's configuration."""
        config = member(model, "config")
        ends = config.text_config.eos_token_id
        return cls(
            config.image_token_index,
            config.num_query_tokens,
            config.use_decoder_only_language_model,
            ends[0] if isinstance(ends, list) else ends,
            find(config, "text_config.max_position_embeddings", int),
        )

    @property
    def placeholders(self) -> list[int]:
        """Give the tokens that stand for one image.

        :raises ModelError: Where the configuration does not say which.
        """
        if self.image_token is None:
            raise ModelError(NO_PLACE)
        return [self.image_token] * self.queries


class Blip2Adapter(TransformersAdapter):
    """Adapts ``Blip2ForConditionalGeneration`` with T5, OPT or LLaMA inside, from a hub id, a folder or memory.

    The loss is the cross entropy of a caption, or of the first answer to a question, given the image and the question.
    In float16 transformers keeps the Q-Former in float32, and so does this.
    """

    _kind, _processor_kind = KIND, "AutoProcessor"

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """Load the model in eval mode, and its processor; ``device="meta"`` reads neither weights nor processor."""
        model = super().load(source, dtype, device)
        if source.model is None and device == "meta" and not Prompting.of(model).is_decoder_only:
            untie(member(model, TEXT, nn.Module), source.config.get("text_config", {}))
        return model

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """Give the vision transformer, the Q-Former, the projection, and the towers of the text model with its head."""
        return [*towers_that_see(model), Tower.of_matrix(model, PROJECTION), *_towers_of_text(model)]

    def layers(self, block: Block) -> Sequence[Layer]:
        """Give the layers of a block. That of the head reads what :meth:`tokens` says under the head's own name."""
        if block.tower in ("vision", "qformer"):
            return layers_that_see(block)
        if block.tower in ("encoder", "decoder"):
            return layers_of_t5(block)
        if block.tower == "language":
            return list(matrices(block))
        reads = {PROJECTION: "qformer", HEAD: ""}.get(block.tower, "language")
        return matrix_outside(block, reads=reads, layout="batch token")

    def max_length(self, model: nn.Module) -> int | None:
        """Give how many tokens are left beside an image; None with T5, whose positions are relative."""
        prompting = Prompting.of(model)
        return None if prompting.longest is None else prompting.longest - prompting.queries

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Make images and texts padded on the right; what is read begins with the places of its image.

        T5 reads the question (or nothing) and is to say its first answer, or the text. A decoder alone reads both as
        one text, and only what is to be said is labelled.
        """
        pixels, prompting = pixels_of(self.processor, samples), Prompting.of(model)
        pairs = [self._pair(prompting, number, sample) for number, sample in enumerate(samples)]
        read, said = zip(*pairs, strict=True)
        if find(model, "language_model.model.decoder.embed_positions", nn.Embedding) is not None:  # of OPT
            check_lengths([len(text) for text in read], prompting.longest)
        input_ids, mask = padded_rows(read)
        labels, _ = padded_rows(said, IGNORED)
        self._check_tokens(model, input_ids, labels)
        return {"pixel_values": pixels, "input_ids": input_ids, "attention_mask": mask, "labels": labels}

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Compute the mean negative log-likelihood of each token that is to be said.

        :raises DataError: Where an image has no place in the text: the text model would not see it.
        """
        prompting = Prompting.of(model)
        _refuse_blind(prompting, batch)
        device = _device(model)
        inputs = {name: batch[name].to(device) for name in ("pixel_values", "input_ids", "attention_mask")}
        labels = batch["labels"].to(device)
        if prompting.is_decoder_only:
            logits = model(**inputs, use_cache=False).logits
            return mean_nll(logits[:, :-1], labels[:, 1:])
        before = member(model, f"{TEXT}.prepare_decoder_input_ids_from_labels")(labels)
        return mean_nll(model(**inputs, decoder_input_ids=before, use_cache=False).logits, labels)

    def generate(self, model: nn.Module, samples: Sequence[Sample], generation: Generation) -> list[Said]:
        """Have the text model answer each question on an image, or say something of the image where none is asked.

        An image that several samples share is seen once.
        """
        prompting, text = Prompting.of(model), member(model, TEXT)
        first, which = distinct_images(samples)
        prompts = [self._prompt(prompting, sample) for sample in samples]
        check_length(prompts, generation, prompting.longest, samples)
        ids, mask = padded_left(prompts) if prompting.is_decoder_only else padded_rows(prompts)
        _refuse_blind(prompting, {"input_ids": ids})
        self._check_tokens(model, ids)
        device = _device(model)
        ids, mask = ids.to(device), mask.to(device)
        model.eval()
        with torch.no_grad():
            (seen,) = _queries(model)(pixels_of(self.processor, first).to(device))
            words = text.get_input_embeddings()(ids)
            embeds = images_put_in(words, ids == prompting.placeholders[0], seen[which.to(device)])
        inputs = {"inputs_embeds": embeds, "attention_mask": mask}
        return generated(text, self._tokenizer, inputs, generation, int(not prompting.is_decoder_only))

    def tokens_of(self, model: nn.Module, text: str) -> tuple[int, ...]:
        """Give the tokens of a text that answers a question."""
        prompting = Prompting.of(model)
        ends = [token for token in (prompting.end, self._tokenizer.eos_token_id) if token is not None]
        if not prompting.is_decoder_only:
            return tuple(without_ends(self._ids(text), ends))
        return gone_on(self._ids(":"), self._ids(f": {text}"), ends)

    def refuses(self, model: nn.Module, ability: type[Any]) -> str | None:
        """Say what the configuration lacks for the model to make texts."""
        return NO_PLACE if ability is Generates and Prompting.of(model).image_token is None else None

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Say what is image and what is text: patches, queries and an image's places in a text are image.

        :param tower: The head too, which reads what the last tower of the text model gives.
        """
        if tower in ("vision", "qformer"):
            return tokens_that_see(model, batch, tower)
        prompting = Prompting.of(model)
        if tower == "decoder" or (tower == HEAD and not prompting.is_decoder_only):
            said: Tensor = batch["labels"] != IGNORED
            return said.to(torch.int8)
        is_image = batch["input_ids"] == prompting.image_token
        kinds: Tensor = batch["attention_mask"] * torch.where(is_image, IMAGE, 1)
        return kinds.to(torch.int8)

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give ``vision``, ``language``, and ``all`` in one graph.

        :raises ModelError: Where the configuration does not say which token stands for an image.
        """
        prompting = Prompting.of(model)
        return list(views_of_blip2(model, prompting.placeholders, not prompting.is_decoder_only))

    @staticmethod
    def _is_read(model_type: str, name: str | None) -> bool:
        return model_type == "blip-2" and name in (KIND, None)

    @staticmethod
    def _is_laid_out(model: nn.Module) -> bool:
        inside = find(model, PROJECTION, nn.Linear), find(model, TEXT, nn.Module)
        return has_both(model) and all(one is not None for one in inside)

    def _correct(self, model: nn.Module, folder: Path) -> None:
        say_type(folder, member(model, PROJECTION, nn.Linear).weight.dtype)
        text = member(model, TEXT)
        if text.get_output_embeddings().weight is not text.get_input_embeddings().weight:
            say_untied(folder, "text_config")

    def _pair(self, prompting: Prompting, number: int, sample: Sample) -> tuple[list[int], list[int]]:
        """Give what is read and what is labelled.

        :param number: The sample's place in its batch, for what is said of one that is wrong.
        """
        said = text_to_say(number, sample)
        asked, image = sample.question or "", prompting.placeholders
        if not prompting.is_decoder_only:
            return [*image, *self._ids(asked)], self._ids(said)
        before, whole = self._ids(asked), self._whole(prompting, asked, said)
        begins = shared(before, whole)
        return [*image, *whole], [IGNORED] * (len(image) + begins) + whole[begins:]

    def _whole(self, prompting: Prompting, asked: str, said: str) -> list[int]:
        """Tokenise question and answer as one text: apart, a tokenizer would not know of the blank between them."""
        ids = self._ids(f"{asked} {said}" if asked else said)
        end = prompting.end if prompting.end is not None else self._tokenizer.eos_token_id
        return ids if ids[-1:] == [end] or end is None else [*ids, end]

    def _prompt(self, prompting: Prompting, sample: Sample) -> list[int]:
        """Give what is read before a text is said; for a decoder alone it has no end, as it is to be gone on with."""
        asked = self._ids(sample.question or "")
        return [*prompting.placeholders, *(opening(asked, self._tokenizer) if prompting.is_decoder_only else asked)]

    @property
    def _tokenizer(self) -> Any:
        tokenizer = getattr(self.processor, "tokenizer", None)
        if tokenizer is None:
            raise DataError(
                "this model needs a tokenizer beside its image processor: put both beside its config.json, or give "
                "ecoflap.run a Blip2Processor."
            )
        return tokenizer

    def _check_tokens(self, model: nn.Module, *read: Int64[Tensor, "batch _"]) -> None:
        """Refuse tokens that are none of the text model's, but for that of an image, which the configuration names."""
        text, image = member(model, TEXT), Prompting.of(model).image_token
        for ids in read:
            words = ids if image is None else ids.masked_fill(ids == image, 0)
            check_tokens(text, words, len(text.get_input_embeddings().weight), self._tokenizer)

    def _ids(self, text: str) -> list[int]:
        """Give a text's tokens, with those that the tokenizer adds."""
        return list(self._tokenizer(text)["input_ids"])


def _device(model: nn.Module) -> torch.device:
    return member(model, "query_tokens", nn.Parameter).device


def _queries(model: nn.Module) -> Queries:
    """Make the module that gives what the text model reads of an image."""
    sees, qformer, projection = (member(model, name, nn.Module) for name in ("vision_model", "qformer", PROJECTION))
    return Queries(sees, qformer, member(model, "query_tokens", nn.Parameter), projection, is_normalised=False)


def _towers_of_text(model: nn.Module) -> list[Tower]:
    if not Prompting.of(model).is_decoder_only:
        return towers_of_t5(model, f"{TEXT}.")
    for inside in DECODERS:
        path = f"{TEXT}.{inside}"
        if find(model, f"{path}.layers", nn.ModuleList) is not None:
            widen, narrow = (_projection(model, f"{path}.{name}") for name in ("project_in", "project_out"))
            language = tower_at(model, f"{path}.layers", "language")
            return [*widen, language, *narrow, Tower.of_matrix(model, HEAD)]
    kind = member(model, "config").text_config.model_type
    raise ModelError(f"a text model of type {kind!r} in BLIP-2 is laid out like none of T5, OPT and LLaMA.")


def _projection(model: nn.Module, path: str) -> list[Tower]:
    """Give the matrix of an OPT whose embedding is narrower than its blocks; other text models have none."""
    return [Tower.of_matrix(model, path)] if find(model, path, nn.Linear) is not None else []


def _refuse_blind(prompting: Prompting, batch: Batch) -> None:
    """Refuse a text that has not all places for its image.

    It would be read all the same, and no part of the vision tower would matter to the loss.
    """
    wanted = prompting.placeholders
    found: Int64[Tensor, " batch"] = (batch["input_ids"] == wanted[0]).sum(1)
    wrong = [number for number, count in enumerate(found.tolist()) if count != len(wanted)]
    if wrong:
        raise DataError(
            f"sample {wrong[0]} of a batch has {int(found[wrong[0]])} image tokens (number {wanted[0]}) in its text, "
            f"and its image needs {len(wanted)}: the text model would not see the image. Make batches with the "
            f"adapter's collate, from samples whose text does not hold the image token."
        )
