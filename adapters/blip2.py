"""BLIP-2 as transformers has it: a vision transformer, a Q-Former that reads it, and a text model that reads that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.hubs.hugging_face import IMAGE_FILES, load_model, load_processor, save_model, save_surroundings
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
from ecoflap.adapters.shared.images import IMAGE, image_tokens, pixels_of
from ecoflap.adapters.shared.losses import IGNORED, mean_nll
from ecoflap.adapters.shared.matrices import matrices, matrix_outside, part
from ecoflap.adapters.shared.rows import padded_rows
from ecoflap.adapters.shared.saved_config import say_type, say_untied
from ecoflap.adapters.t5 import layers_of_t5, towers_of_t5, untie
from ecoflap.adapters.views.blip2 import Queries, views_of_blip2
from ecoflap.core.contracts.abilities import Generates, Generation, Said
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Batch, Sample, View
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
    """What a model's configuration says of the tokens it reads.

    :param image_token: Stands in the text where the image goes; None in a configuration from before there was one.
    :param queries: How often, for each image.
    :param is_decoder_only: Whether what is read and what is said are one text.
    :param end: What a text that is said ends with; None leaves it to the tokenizer.
    """

    image_token: int | None
    queries: int
    is_decoder_only: bool
    end: int | None

    @classmethod
    def of(cls, model: nn.Module) -> "Prompting":
        config = part(model, "config")
        ends = config.text_config.eos_token_id
        return cls(
            config.image_token_index,
            config.num_query_tokens,
            config.use_decoder_only_language_model,
            ends[0] if isinstance(ends, list) else ends,
        )

    @property
    def placeholders(self) -> list[int]:
        """What stands for one image."""
        if self.image_token is None:
            raise ModelError(NO_PLACE)
        return [self.image_token] * self.queries


class Blip2Adapter:
    """``Blip2ForConditionalGeneration`` with T5, OPT or LLaMA inside, from a hub id, a folder or memory.

    The loss is the cross entropy of a caption, or of the first answer to a question, given the image and the question.
    """

    def __init__(self) -> None:
        self.processor: Any = None
        self._prompting: Prompting | None = None

    def matches(self, source: Source) -> bool:
        """By ``model_type``, and by its structure for a model in memory."""
        config, model = source.config, source.model
        if model is not None and not _is_laid_out(model):
            return False
        heads = config.get("architectures") or [KIND]
        known = config.get("model_type") == "blip-2" and KIND in heads
        return known or (model is not None and not config)

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """The model in eval mode, and its processor; ``device="meta"`` reads neither weights nor processor.

        In float16 transformers keeps the Q-Former in float32, and so does this.
        """
        if source.model is not None:
            return source.model.eval()
        model = load_model(KIND, source, dtype, device)
        if device != "meta":
            self.processor = load_processor("AutoProcessor", source, IMAGE_FILES)
        elif not Prompting.of(model).is_decoder_only:
            untie(part(model, TEXT), source.config.get("text_config", {}))
        return model

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        # collate is not given the model, and every use of a model begins here
        self._prompting = Prompting.of(model)
        return [*towers_that_see(model), Tower.of_matrix(model, PROJECTION), *_towers_of_text(model)]

    def layers(self, block: Block) -> Sequence[Layer]:
        if block.tower in ("vision", "qformer"):
            return layers_that_see(block)
        if block.tower == PROJECTION:
            return matrix_outside(block, reads="qformer", layout="batch token")
        if not self._known.is_decoder_only:
            return layers_of_t5(block)
        if block.tower != "language":
            return matrix_outside(block, reads="language", layout="batch token")
        return list(matrices(block))

    def max_length(self, model: nn.Module) -> int | None:
        """What is left beside an image; None with T5, whose positions are relative."""
        config = part(model, "config")
        limit: int | None = getattr(config.text_config, "max_position_embeddings", None)
        return None if limit is None else limit - config.num_query_tokens

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Images, and texts padded on the right; what is read begins with the places of its image.

        T5 reads the question (or nothing) and is to say its first answer, or the text. A decoder alone reads both as
        one text, and only what is to be said is labelled.
        """
        pixels = pixels_of(self.processor, samples)
        pairs = [self._pair(number, sample) for number, sample in enumerate(samples)]
        read, said = zip(*pairs, strict=True)
        input_ids, mask = padded_rows(read)
        labels, _ = padded_rows(said, IGNORED)
        return {"pixel_values": pixels, "input_ids": input_ids, "attention_mask": mask, "labels": labels}

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Mean negative log-likelihood of each token that is to be said.

        :raises DataError: Where an image has no place in the text: the text model would not see it.
        """
        prompting, text = Prompting.of(model), part(model, TEXT)
        _refuse_blind(prompting, batch)
        device = part(model, "query_tokens").device
        inputs = {name: batch[name].to(device) for name in ("pixel_values", "input_ids", "attention_mask")}
        labels = batch["labels"].to(device)
        if prompting.is_decoder_only:
            logits = model(**inputs, use_cache=False).logits
            return mean_nll(logits[:, :-1], labels[:, 1:])
        before = text.prepare_decoder_input_ids_from_labels(labels)
        return mean_nll(model(**inputs, decoder_input_ids=before, use_cache=False).logits, labels)

    def generate(self, model: nn.Module, samples: Sequence[Sample], generation: Generation) -> list[Said]:
        """What the text model says of each image to its question, or to none; what an image shows is seen once."""
        prompting, text = Prompting.of(model), part(model, TEXT)
        self._prompting = prompting
        first, which = distinct_images(samples)
        prompts = [self._prompt(sample) for sample in samples]
        check_length(prompts, generation, getattr(text.config, "max_position_embeddings", None))
        ids, mask = padded_left(prompts) if prompting.is_decoder_only else padded_rows(prompts)
        _refuse_blind(prompting, {"input_ids": ids})
        device = part(model, "query_tokens").device
        ids, mask = ids.to(device), mask.to(device)
        model.eval()
        with torch.no_grad():
            (seen,) = _queries(model)(pixels_of(self.processor, first).to(device))
            words = text.get_input_embeddings()(ids)
            embeds = images_put_in(words, ids == prompting.placeholders[0], seen[which.to(device)])
        inputs = {"inputs_embeds": embeds, "attention_mask": mask}
        return generated(text, self._tokenizer, inputs, generation, int(not prompting.is_decoder_only))

    def tokens_of(self, text: str) -> tuple[int, ...]:
        """Of a text that answers a question."""
        ends = [token for token in (self._known.end, self._tokenizer.eos_token_id) if token is not None]
        if not self._known.is_decoder_only:
            return tuple(without_ends(self._ids(text), ends))
        return gone_on(self._ids(":"), self._ids(f": {text}"), ends)

    def refuses(self, model: nn.Module, ability: Any) -> str | None:
        """What its configuration lacks to make texts."""
        return NO_PLACE if ability is Generates and Prompting.of(model).image_token is None else None

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Patches and queries are all image; a text is image where its places are."""
        if tower in ("vision", "qformer"):
            return tokens_that_see(model, batch, tower)
        if tower == "decoder":
            said: Tensor = batch["labels"] != IGNORED
            return said.to(torch.int8)
        is_image = batch["input_ids"] == Prompting.of(model).image_token
        kinds: Tensor = batch["attention_mask"] * torch.where(is_image, IMAGE, 1)
        return kinds.to(torch.int8)

    def save(self, model: nn.Module, folder: Path) -> None:
        """As transformers writes it, with the processor beside it."""
        save_model(model, self.processor, folder)
        _put_right(model, folder)

    def save_surroundings(self, model: nn.Module, folder: Path) -> None:
        """The same without the weights."""
        save_surroundings(model, self.processor, folder)
        _put_right(model, folder)

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """:raises ModelError: Where the configuration does not say which token stands for an image."""
        prompting = Prompting.of(model)
        return list(views_of_blip2(model, prompting.placeholders, not prompting.is_decoder_only))

    @property
    def _known(self) -> Prompting:
        if self._prompting is None:
            raise ModelError("an adapter of BLIP-2 has to be shown its model first: call towers(model).")
        return self._prompting

    def _pair(self, number: int, sample: Sample) -> tuple[list[int], list[int]]:
        """What is read and what is labelled."""
        said = sample.answers[0] if sample.answers else sample.text
        if said is None:
            raise DataError(
                f"this model learns to say something of an image: sample {number} of a batch has neither a text nor an "
                f"answer."
            )
        asked, image = sample.question or "", self._known.placeholders
        if not self._known.is_decoder_only:
            return [*image, *self._ids(asked)], self._ids(said)
        before, whole = self._ids(asked), self._whole(asked, said)
        begins = shared(before, whole)
        return [*image, *whole], [IGNORED] * (len(image) + begins) + whole[begins:]

    def _whole(self, asked: str, said: str) -> list[int]:
        """Question and answer as one text: split apart, a tokenizer would not know that a blank is between them."""
        ids = self._ids(f"{asked} {said}" if asked else said)
        end = self._known.end if self._known.end is not None else self.processor.tokenizer.eos_token_id
        return ids if ids[-1:] == [end] or end is None else [*ids, end]

    def _prompt(self, sample: Sample) -> list[int]:
        """What is read before a text is said: of a decoder alone it does not end, for it is to be gone on with."""
        asked = self._ids(sample.question or "")
        return [*self._known.placeholders, *(opening(asked, self._tokenizer) if self._known.is_decoder_only else asked)]

    @property
    def _tokenizer(self) -> Any:
        tokenizer = getattr(self.processor, "tokenizer", None)
        if tokenizer is None:
            raise DataError(
                "this model needs a tokenizer beside its image processor: put both beside its config.json, or give "
                "ecoflap.run a Blip2Processor."
            )
        return tokenizer

    def _ids(self, text: str) -> list[int]:
        """Its tokens, with those that the tokenizer adds."""
        return list(self._tokenizer(text)["input_ids"])


def _queries(model: nn.Module) -> Queries:
    """What the text model reads of an image."""
    names = ("vision_model", "qformer", "query_tokens", PROJECTION)
    sees, qformer, queries, projection = (part(model, name) for name in names)
    return Queries(sees, qformer, queries, projection, unit=False)


def _put_right(model: nn.Module, folder: Path) -> None:
    """What transformers gets wrong in a saved configuration."""
    say_type(folder, part(model, f"{PROJECTION}.weight").dtype)
    text = part(model, TEXT)
    if text.get_output_embeddings().weight is not text.get_input_embeddings().weight:
        say_untied(folder, "text_config")


def towers_that_see(model: nn.Module, calls: int = 1) -> list[Tower]:
    """The vision transformer, and the Q-Former, which is kept by default.

    :param calls: How often the Q-Former runs in one forward.
    """
    layers, queries = part(model, "vision_model.encoder.layers"), part(model, "qformer.encoder.layer")
    vision = [Block(f"vision_model.encoder.layers.{i}", block, "vision") for i, block in enumerate(layers)]
    qformer = [Block(f"qformer.encoder.layer.{i}", block, "qformer", calls) for i, block in enumerate(queries)]
    return [Tower("vision", tuple(vision)), Tower("qformer", tuple(qformer), prunable=False)]


def layers_that_see(block: Block) -> list[Layer]:
    """Of a block of either; the Q-Former's cross-attention reads the vision transformer."""
    across = ("crossattention.attention.key", "crossattention.attention.value")
    return list(matrices(block, reads=lambda name: "vision" if name in across else ""))


def tokens_that_see(model: nn.Module, batch: Batch, tower: str) -> Int8[Tensor, "batch tokens"]:
    """Of the vision transformer, or of the Q-Former's queries."""
    if tower == "vision":
        return image_tokens(part(model, "vision_model.embeddings"), batch["pixel_values"])
    return torch.full((len(batch["pixel_values"]), part(model, "query_tokens").shape[1]), IMAGE, dtype=torch.int8)


def _towers_of_text(model: nn.Module) -> list[Tower]:
    if not Prompting.of(model).is_decoder_only:
        return towers_of_t5(model, f"{TEXT}.")
    for inside in DECODERS:
        stack = part(model, f"{TEXT}.{inside}.layers")
        if isinstance(stack, nn.ModuleList):
            path = f"{TEXT}.{inside}"
            blocks = tuple(Block(f"{path}.layers.{i}", block, "language") for i, block in enumerate(stack))
            widen, narrow = (_projection(model, f"{path}.{name}") for name in ("project_in", "project_out"))
            return [*widen, Tower("language", blocks), *narrow, Tower.of_matrix(model, HEAD)]
    kind = part(model, "config").text_config.model_type
    raise ModelError(f"a text model of type {kind!r} in BLIP-2 is laid out like none of T5, OPT and LLaMA.")


def _projection(model: nn.Module, path: str) -> list[Tower]:
    """Of an OPT whose embedding is narrower than its blocks; none in others."""
    return [Tower.of_matrix(model, path)] if isinstance(part(model, path), nn.Linear) else []


def _refuse_blind(prompting: Prompting, batch: Batch) -> None:
    """Without places for its image a text is read all the same, and no part of the vision tower matters to the loss."""
    wanted = prompting.placeholders
    found: Int64[Tensor, " batch"] = (batch["input_ids"] == wanted[0]).sum(1)
    wrong = [number for number, count in enumerate(found.tolist()) if count != len(wanted)]
    if wrong:
        raise DataError(
            f"sample {wrong[0]} of a batch has {int(found[wrong[0]])} image tokens (number {wanted[0]}) in its text, "
            f"and its image needs {len(wanted)}: the text model would not see the image. Make batches with the "
            f"adapter's collate, from samples whose text does not hold the image token."
        )


def _is_laid_out(model: nn.Module) -> bool:
    stacks = (part(model, name) for name in ("vision_model.encoder.layers", "qformer.encoder.layer"))
    return (
        all(isinstance(stack, nn.ModuleList) for stack in stacks)
        and isinstance(part(model, PROJECTION), nn.Linear)
        and isinstance(part(model, TEXT), nn.Module)
    )
