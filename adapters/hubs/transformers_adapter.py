"""Do what the adapters of models of transformers do alike: recognise a model, read it, and write it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ecoflap.adapters.hubs.hugging_face import (
    load_processor,
    load_transformers_model,
    save_model,
    save_surroundings,
    save_weights,
)
from ecoflap.adapters.hubs.kept_in_float32 import type_of_most
from ecoflap.adapters.shared.saved_config import say_type
from ecoflap.core.contracts.records import Batch
from ecoflap.core.model.anatomy import Source
from ecoflap.core.model.gguf_header import forget_header


class TransformersAdapter(ABC):
    """Is half an adapter: it recognises, reads and writes models of one or a few classes of transformers.

    What a family adds to that is in the methods below that begin with an underscore.

    :cvar _kind: The class of transformers that reads the family's models.
    :cvar _processor_kind: The one that reads what the family has as its processor.
    :cvar _has_doubles: Whether other classes are laid out like the family's, so that a model in memory is recognised by
        its class too.
    """

    _kind: ClassVar[str]
    _processor_kind: ClassVar[str] = "AutoTokenizer"
    _has_doubles: ClassVar[bool] = False

    def __init__(self) -> None:
        self.processor: Any = None

    def matches(self, source: Source) -> bool:
        """Say whether a model is of this family: by its configuration, and one in memory by its structure too."""
        config, model = source.config, source.model
        if model is not None and not self._is_laid_out(model):
            return False
        if not config:
            return model is not None
        if model is not None and self._has_doubles:
            names = [kind.__name__ for kind in type(model).__mro__]
        else:
            names = config.get("architectures") or [None]
        return any(self._is_read(config.get("model_type", ""), name) for name in names)

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """Load the model in eval mode, and its processor; ``device="meta"`` reads neither weights nor processor.

        In float16 some models keep a part in float32, as transformers has it.
        """
        if source.model is not None:
            return source.model.eval()
        model = self._read_model(source, dtype, device)
        if device != "meta":
            if source.with_processor:
                self.processor = self.read_processor(source, model)
            forget_header()
        return model

    def read_processor(self, source: Source, model: nn.Module) -> Any:
        """Read the processor that belongs to a model, from where the model is read; None where there is none."""
        return load_processor(self._processor_kind, source)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model as transformers does, with the processor beside it."""
        save_model(model, self.processor, folder)
        self._amend(model, folder)

    def save_weights(self, model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
        """Write some of the weights as :meth:`save` does, and nothing beside them."""
        save_weights(model, weights, folder)

    def save_surroundings(self, model: nn.Module, folder: Path) -> None:
        """Write what :meth:`save` writes beside the weights."""
        save_surroundings(model, self.processor, folder)
        self._amend(model, folder)

    def _amend(self, model: nn.Module, folder: Path) -> None:
        """Correct the saved configuration; it has the first weight's type, and InstructBLIP's is kept in float32."""
        first = next((one.dtype for one in model.parameters() if one.is_floating_point()), None)
        most = type_of_most(model)
        if most not in (None, first):
            say_type(folder, most)
        self._correct(model, folder)

    def own_inputs(self, model: nn.Module, batch: Batch) -> Mapping[str, Any] | None:
        """Give a batch with its labels, or with the wish for the loss of its pairs, as transformers has either.

        None for a class that computes no loss, and for a batch without labels.
        """
        taken = signature(type(model).forward).parameters
        labels = self._labels(model, batch)
        if "labels" in taken and labels is not None:
            wish: dict[str, Any] = {"labels": labels}
        elif "return_loss" in taken:
            wish = {"return_loss": True}
        else:
            return None
        if "use_cache" in taken:
            wish["use_cache"] = False
        return {**{name: value for name, value in batch.items() if name in taken}, **wish}

    @staticmethod
    @abstractmethod
    def _is_read(model_type: str, name: str | None) -> bool:
        """Say whether models of a type and class are the family's.

        :param model_type: The configuration's.
        :param name: The name of a class; None where the configuration names none.
        """

    @staticmethod
    @abstractmethod
    def _is_laid_out(model: nn.Module) -> bool:
        """Say whether a model in memory has its towers where the family has them."""

    def _read_model(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """Read the model from a folder or the hub."""
        return load_transformers_model(self._kind, source, dtype, device)

    def _labels(self, model: nn.Module, batch: Batch) -> Tensor | None:
        """Give the labels by which transformers computes a loss; by default those that the batch has."""
        labels: Tensor | None = batch.get("labels")
        return labels

    def _correct(self, model: nn.Module, folder: Path) -> None:
        """Correct what transformers wrote wrongly into the configuration in a folder; by default nothing."""
        return
