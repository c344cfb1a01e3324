"""Adapt decoders of transformers that go on with a text, which no family's own adapter claims."""

from collections.abc import Iterable, Mapping, Sequence

from jaxtyping import Int8
from torch import Tensor, nn

from ecoflap.adapters.generic.classes import SEEING, names_in, reads_text_alone
from ecoflap.adapters.generic.generic_adapter import GenericAdapter
from ecoflap.adapters.generic.watching.examples import Inputs
from ecoflap.adapters.generic.watching.layers_seen import Texts
from ecoflap.adapters.generic.watching.probe import run_small, texts_alone
from ecoflap.adapters.hubs.remembered import Remembered
from ecoflap.adapters.shared.losses import IGNORED, shifted
from ecoflap.adapters.shared.text_batches import going_on, texts_gone_on_with, windows_of, within_vocabulary
from ecoflap.adapters.views.cache import Keeping, cache_of, kept_in
from ecoflap.adapters.views.impossible import views_impossible
from ecoflap.adapters.views.texts import views_of_causal_lm
from ecoflap.core.contracts.abilities import Generation, Said
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Batch, Sample, View


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["CausalLMAdapter"]]:
    return {"causal_lm": CausalLMAdapter}


class CausalLMAdapter(GenericAdapter):
    """Adapts Gemma, Phi, GPT-2, Falcon, Mixtral and their likes, from a hub id, a folder, a GGUF file or memory.

    The loss is the cross entropy of each token given those before it, of the model's own logits.
    """

    priority = -20
    _kind, _mapping = "AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"

    @classmethod
    def _is_read(cls, model_type: str, name: str | None) -> bool:
        seeing = names_in(SEEING)
        is_listed = name in seeing.values() if name is not None else model_type in seeing
        misplaced = is_listed and reads_text_alone(name or seeing[model_type])
        return misplaced or super()._is_read(model_type, name)

    def __init__(self) -> None:
        super().__init__()
        self._keeping = Remembered(self._seen_keeping)

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Put windows of tokens side by side, padded on the right to the longest."""
        return within_vocabulary(model, windows_of(samples))

    def generate(self, model: nn.Module, samples: Sequence[Sample], generation: Generation) -> list[Said]:
        """Have the model go on with each question."""
        return texts_gone_on_with(model, self.processor, samples, generation, self.max_length(model))

    def tokens_of(self, model: nn.Module, text: str) -> tuple[int, ...]:
        """Give the tokens of a text that goes on after a blank."""
        return going_on(self.processor, text)

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give ``decoder``, and ``decoder_with_past`` where what the model keeps of a text is keys and values."""
        return list(views_of_causal_lm(model, self._keeping(model).kept))

    def views_refused(self, model: nn.Module, exporter: str) -> Mapping[str, str]:
        """Say which of these views there are not, or cannot be written, and why."""
        why_not = self._keeping(model).why_not
        absent = {"decoder_with_past": why_not} if why_not else {}
        return absent | views_impossible(self.export_views(model), exporter, self.max_length(model))

    def _seen_keeping(self, model: nn.Module) -> Keeping:
        ((inputs, _),) = self._examples(model)
        made, why_not = run_small(model, inputs)
        return Keeping(why_not=why_not) if why_not else kept_in(cache_of(made))

    def _examples(self, model: nn.Module) -> Iterable[tuple[Inputs, Texts]]:
        return texts_alone(model)

    def _tokens_said(self, model: nn.Module, batch: Batch) -> Int8[Tensor, "batch tokens"]:
        return self._tokens_read(model, batch)  # the head is given all of a text, its last token among it

    def _labels(self, model: nn.Module, batch: Batch) -> Tensor:
        labels: Tensor = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        return labels

    def _targets(self, model: nn.Module, batch: Batch) -> Tensor:
        return shifted(self._labels(model, batch))
