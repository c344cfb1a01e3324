"""Adapt models of transformers that read a text and say another, which no family's own adapter claims."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ecoflap.adapters.generic.generic_adapter import GenericAdapter
from ecoflap.adapters.generic.watching.examples import Inputs, placed
from ecoflap.adapters.generic.watching.layers_seen import Texts
from ecoflap.adapters.generic.watching.probe import run_small, text_pairs
from ecoflap.adapters.hubs.remembered import Remembered
from ecoflap.adapters.hubs.two_languages import has_two_languages, said_from, said_ids, set_languages
from ecoflap.adapters.shared.generation import check_prompts, generated, without_ends
from ecoflap.adapters.shared.losses import IGNORED
from ecoflap.adapters.shared.members import member
from ecoflap.adapters.shared.text_batches import pairs_of, text_ids, within_vocabulary
from ecoflap.adapters.shared.texts import padded_rows
from ecoflap.adapters.views.cache import Keeping, cache_of, kept_in_both
from ecoflap.adapters.views.encoder_decoders import Halves, views_of_encoder_and_decoder
from ecoflap.adapters.views.impossible import views_impossible
from ecoflap.core.contracts.abilities import Generation, Said
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Batch, Sample, View


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["Seq2SeqLMAdapter"]]:
    return {"seq2seq_lm": Seq2SeqLMAdapter}


class Seq2SeqLMAdapter(GenericAdapter):
    """Adapts BART, mBART, Pegasus and their likes, from a hub id, a folder or memory.

    The loss is the cross entropy of the decoder's text given the encoder's. A window of tokens is cut in the middle, as
    for T5; a model that says another language than it reads needs pairs of texts. The model is given the labels,
    because only it knows what its decoder begins with.

    :param source_language: For mBART, M2M-100, NLLB and PLBart: the code of the language that is read, such as
        ``en_XX``; None for the tokenizer's own.
    :param target_language: The code of the language that is said, likewise; needed where the tokenizer has none.
    """

    priority = -20
    _kind, _mapping = "AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"

    def __init__(self, source_language: str | None = None, target_language: str | None = None) -> None:
        super().__init__()
        self._languages = source_language, target_language
        self._halves = Remembered(self._seen_halves)

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Put the encoder's texts and the decoder's side by side, each padded on the right to the longest."""
        tokenizer = self._tokenizer()
        said = (lambda text: said_ids(tokenizer, text)) if has_two_languages(tokenizer) else None
        return within_vocabulary(model, pairs_of(samples, lambda text: text_ids(tokenizer, text), said))

    def generate(self, model: nn.Module, samples: Sequence[Sample], generation: Generation) -> list[Said]:
        """Have the decoder answer each question, which the encoder reads."""
        check_prompts(samples)
        tokenizer = self._tokenizer()
        ids, mask = padded_rows([text_ids(tokenizer, str(sample.question)) for sample in samples])
        inputs = {"input_ids": ids, "attention_mask": mask}
        start: Sequence[int] = said_from(model, tokenizer) if has_two_languages(tokenizer) else ()
        if start:
            inputs["decoder_input_ids"] = torch.tensor([start] * len(samples))
        begins = len(start) or 1  # what a decoder begins with comes first
        return generated(model, tokenizer, placed(model, inputs), generation, begins, start=start)

    def tokens_of(self, model: nn.Module, text: str) -> tuple[int, ...]:
        """Give the tokens of a text without what ends it."""
        tokenizer = self._tokenizer()
        if has_two_languages(tokenizer):
            return tuple(said_ids(tokenizer, text, plain=True))
        return tuple(without_ends(text_ids(tokenizer, text), [tokenizer.eos_token_id]))

    def _tokenizer(self) -> Any:
        """Give the tokenizer, with the languages that were asked for."""
        set_languages(self.processor, *self._languages)
        return self.processor

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give ``encoder``, ``decoder``, and ``decoder_with_past`` where what the decoder keeps is keys and values."""
        return list(views_of_encoder_and_decoder(model, self._halves(model)))

    def views_refused(self, model: nn.Module, exporter: str) -> Mapping[str, str]:
        """Say which of these views there are not, or cannot be written, and why."""
        halves = self._halves(model)
        why_not = halves.own.why_not or halves.other.why_not
        absent = {"decoder_with_past": why_not} if why_not else {}
        views = views_of_encoder_and_decoder(model, halves)
        return absent | views_impossible(views, exporter, self.max_length(model))

    def _seen_halves(self, model: nn.Module) -> Halves:
        """Say where the encoder is, what it gives, and what the decoder keeps of that and of its own text."""
        ((inputs, _),) = self._examples(model)
        made, why_not = run_small(model, inputs)
        nothing = Keeping(why_not=why_not)
        encoder = member(model, "get_encoder")()
        path = next(name for name, module in model.named_modules() if module is encoder)
        width = made.encoder_last_hidden_state.shape[-1]
        return Halves(path, width, *((nothing, nothing) if why_not else kept_in_both(cache_of(made))))

    def predicted(self, model: nn.Module, batch: Batch) -> Bool[Tensor, "batch tokens"]:
        """Say which tokens the decoder says; of those that the encoder reads there are none."""
        said: Tensor = batch["labels"] != IGNORED
        return said

    def _examples(self, model: nn.Module) -> Iterable[tuple[Inputs, Texts]]:
        return text_pairs(model)

    def _targets(self, model: nn.Module, batch: Batch) -> Tensor:
        labels: Tensor = batch["labels"]
        return labels
