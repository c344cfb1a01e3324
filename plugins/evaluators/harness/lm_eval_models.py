"""Give EleutherAI's harness a model in memory: as its own classes run one, or as the model's adapter does.

This module is imported only where the harness is there and is asked for.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from lm_eval.api.model import LM
from lm_eval.models.hf_vlms import HFMultimodalLM
from lm_eval.models.huggingface import HFLM
from torch import nn

from ecoflap.core.errors import DataError
from ecoflap.plugins.evaluators.harness.texts import Asked, texts_of

TOKENS = 256  # the harness' own, where a task does not say


def language(model: Any, tokenizer: Any, batch_size: int) -> LM:
    """Make the harness' ``hf`` of a language model.

    Its tokenizer is copied, because the harness gives one a padding token, which is not to be saved with the model.
    """
    return HFLM(pretrained=model, tokenizer=deepcopy(tokenizer), batch_size=batch_size)


class Multimodal(HFMultimodalLM):  # type: ignore[misc]
    """Is the harness' ``hf-multimodal`` with a processor from memory, where the harness reads one by its name."""

    def __init__(self, model: Any, processor: Any, batch_size: int) -> None:
        self._given = deepcopy(processor)
        super().__init__(pretrained=model, batch_size=batch_size)

    def _create_tokenizer(self, *_: Any, **__: Any) -> None:
        self.processor, self.tokenizer = self._given, self._given.tokenizer


class Speaking(LM):  # type: ignore[misc]
    """Has a model say what its adapter has it say; likelihoods it does not know."""

    MULTIMODAL = True

    def __init__(self, model: nn.Module, adapter: Any, batch_size: int) -> None:
        super().__init__()
        self._spoken, self._adapter, self._size = model, adapter, batch_size

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Make a text for each request: its text, its settings, and in tasks with images a mapping that holds them."""
        asked = []
        for text, settings, *more in (request.args for request in requests):
            asked.append(Asked(text, [image for one in more for image in one.get("visual") or ()], settings))
        return texts_of(self._spoken, self._adapter, asked, self._size, TOKENS)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Refuse tasks that compare likelihoods."""
        raise DataError(
            "this task compares how likely texts are, and an adapter only makes texts: take a task of output_type "
            "generate_until, or, for a language model, through: harness."
        )

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Refuse tasks that want the likelihood of a whole text."""
        self.loglikelihood(requests)
        return []
