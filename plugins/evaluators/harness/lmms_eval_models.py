"""Give LMMs-Lab's harness a model in memory, that says what its adapter has it say.

This module is imported only where the harness is there and is asked for.
"""

from collections.abc import Sequence
from typing import Any

from lmms_eval.api.model import lmms
from torch import nn

from ecoflap.core.errors import DataError
from ecoflap.plugins.evaluators.harness.texts import Asked, texts_of

TOKENS = 1024  # what most of the harness' own models take where a task does not say


class Speaking(lmms):  # type: ignore[misc]
    """Has a model say what its adapter has it say; likelihoods and conversations it does not know."""

    def __init__(self, model: nn.Module, adapter: Any, batch_size: int) -> None:
        super().__init__()
        self._spoken, self._adapter, self._size = model, adapter, batch_size

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Make a text for each request: its text, its settings, and what gives the images of its document."""
        asked = []
        for text, settings, images, number, task, split in (request.args for request in requests):
            shown = images(self.task_dict[task][split][number]) or []
            if any(not hasattr(one, "convert") for one in shown):
                raise DataError(f"the task {task} shows something else than images, and an adapter looks at images.")
            asked.append(Asked(text, shown, settings))
        return texts_of(self._spoken, self._adapter, asked, self._size, TOKENS)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuse tasks that compare likelihoods."""
        raise DataError(
            "this task compares how likely texts are, and an adapter only makes texts: take a task of output_type "
            "generate_until."
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse tasks that are conversations."""
        raise DataError(
            "this task is a conversation of several rounds, and an adapter answers once: take a task of output_type "
            "generate_until."
        )
