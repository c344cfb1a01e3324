"""Adapt T5 and its likes of transformers, an encoder and a decoder that reads it: T5, T5 v1.1, FlanT5 and mT5."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor, nn

from ecoflap.adapters.hubs.transformers_adapter import TransformersAdapter
from ecoflap.adapters.shared.generation import check_prompts, generated, without_ends
from ecoflap.adapters.shared.losses import IGNORED, mean_nll
from ecoflap.adapters.shared.matrices import matrix_outside
from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.shared.saved_config import say_untied
from ecoflap.adapters.shared.t5_stack import layers_of_t5, towers_of_t5, untie
from ecoflap.adapters.shared.text_batches import pairs_of, within_vocabulary
from ecoflap.adapters.shared.texts import padded_rows, text_tokens
from ecoflap.adapters.views.cache import Keeping, Kept, has_cache
from ecoflap.adapters.views.encoder_decoders import Halves, views_of_encoder_and_decoder
from ecoflap.core.contracts.abilities import Generation, Said
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Batch, Sample, View
from ecoflap.core.errors import DataError
from ecoflap.core.model.anatomy import Block, Layer, Source, Tower

FAMILIES = frozenset({"t5", "mt5"})
CLASSES = ("ForConditionalGeneration", "T5WithLMHeadModel")  # the second is how old checkpoints call the first
NO_TOKENIZER = (
    "this model needs a tokenizer to read text: put tokenizer.json or spiece.model beside its config.json, or give "
    "ecoflap.run a processor."
)


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["T5Adapter"]]:
    return {"t5": T5Adapter}


class T5Adapter(TransformersAdapter):
    """Adapts ``T5ForConditionalGeneration`` and ``MT5ForConditionalGeneration``, from a hub id, a folder or memory.

    The loss is the cross entropy of the decoder's text given the encoder's. A window of tokens is cut in the middle:
    the encoder reads its first half, and the decoder is to say the second (a prefix language model, as in ECoFLaP).
    In float16 transformers keeps some matrices (``wo``) in float32, and so does this.
    """

    _kind = "AutoModelForSeq2SeqLM"

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """Load the model in eval mode, and its tokenizer; ``device="meta"`` reads neither weights nor tokenizer."""
        model = super().load(source, dtype, device)
        if source.model is None and device == "meta":
            untie(model, source.config)
        return model

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """Give encoder, decoder and head."""
        return towers_of_t5(model)

    def layers(self, block: Block) -> Sequence[Layer]:
        """Give the layers of a block of encoder or decoder, or the one of the head, which reads the decoder."""
        if block.tower == "lm_head":
            return matrix_outside(block, reads="decoder", layout="batch token")
        return layers_of_t5(block)

    def max_length(self, model: nn.Module) -> int | None:
        """Give None: positions are relative, so a text may be of any length."""
        return None

    def handed_on(self, model: nn.Module, tower: str, tokens: int) -> int:
        """Count the position biases of a text that is cut in the middle; a decoder has some for what it reads, too."""
        sets = {"encoder": 1, "decoder": 2}.get(tower, 0)
        heads: int = member(model, "config.num_heads")
        return sets * heads * (tokens // 2) ** 2

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Put the encoder's texts and the decoder's side by side, each padded on the right to the longest.

        They come from a question and its first answer (or text), from tokens, or from text alone, which is cut in the
        middle.
        """
        return within_vocabulary(model, pairs_of(samples, self._ids))

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Compute the mean negative log-likelihood of each token the decoder is to say, given the encoder's text."""
        device = _embedding(model).device
        labels = batch["labels"].to(device)
        logits = model(
            input_ids=batch["input_ids"].to(device),
            attention_mask=batch["attention_mask"].to(device),
            decoder_input_ids=member(model, "prepare_decoder_input_ids_from_labels")(labels),
            use_cache=False,
        ).logits
        return mean_nll(logits, labels)

    def generate(self, model: nn.Module, samples: Sequence[Sample], generation: Generation) -> list[Said]:
        """Have the decoder answer each question, which the encoder reads."""
        check_prompts(samples)
        ids, mask = padded_rows([self._ids(str(sample.question)) for sample in samples])
        device = _embedding(model).device
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        return generated(model, self.processor, inputs, generation, 1)  # after what a decoder begins with

    def tokens_of(self, model: nn.Module, text: str) -> tuple[int, ...]:
        """Give the tokens of a text without what ends it."""
        return tuple(without_ends(self._ids(text), [self.processor.eos_token_id]))

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Say what is text; position j of the decoder says label j, so it is text where that label is."""
        if tower != "decoder":
            return text_tokens(batch)
        said: Tensor = batch["labels"] != IGNORED
        return said.to(torch.int8)

    def predicted(self, model: nn.Module, batch: Batch) -> Bool[Tensor, "batch tokens"]:
        """Say which tokens the decoder says; of those that the encoder reads there are none."""
        said: Tensor = batch["labels"] != IGNORED
        return said

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give ``encoder``, ``decoder``, and ``decoder_with_past`` where this transformers has caches for it."""
        config: Any = model.config
        layers = config.num_decoder_layers if has_cache(model) else 0
        kept = Keeping((Kept(config.num_heads, config.d_kv, config.d_kv),) * layers)
        return list(views_of_encoder_and_decoder(model, Halves("encoder", config.d_model, kept, kept)))

    @staticmethod
    def _is_read(model_type: str, name: str | None) -> bool:
        return model_type in FAMILIES and (name is None or name.endswith(CLASSES))

    @staticmethod
    def _is_laid_out(model: nn.Module) -> bool:
        stacks = [find(model, f"{name}.block", nn.ModuleList) for name in ("encoder", "decoder")]
        inside = find(model, "shared", nn.Embedding), find(model, "lm_head", nn.Linear)
        return all(one is not None for one in (*stacks, *inside))

    def _correct(self, model: nn.Module, folder: Path) -> None:
        if member(model, "lm_head.weight") is not member(model, "shared.weight"):
            say_untied(folder)

    def _ids(self, text: str) -> list[int]:
        """Give a text's tokens, with the one that the tokenizer ends it with."""
        if self.processor is None:
            raise DataError(NO_TOKENIZER)
        return list(self.processor(text)["input_ids"])


def _embedding(model: nn.Module) -> nn.Parameter:
    return member(model, "shared.weight", nn.Parameter)
