"""Do what all generic adapters do alike: take a model apart by watching it run, and read and write it."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor, nn

from ecoflap.adapters.generic.classes import class_named, made_for, names_in, processor_for, reads_others
from ecoflap.adapters.generic.watching.examples import Inputs, cacheless, image_token, patches_of, placed
from ecoflap.adapters.generic.watching.layers_seen import VISION, Texts
from ecoflap.adapters.generic.watching.probe import QFORMER, QUESTION, failure, taken_apart_by
from ecoflap.adapters.generic.watching.taken_apart import SeenBlock
from ecoflap.adapters.hubs.experts import experts_one_by_one
from ecoflap.adapters.hubs.hugging_face import load_transformers_model
from ecoflap.adapters.hubs.remembered import Remembered
from ecoflap.adapters.hubs.transformers_adapter import TransformersAdapter
from ecoflap.adapters.hubs.weightless import WithoutProducts, lent_weights
from ecoflap.adapters.shared.losses import IGNORED, mean_nll_in_chunks
from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.shared.texts import check_lengths
from ecoflap.core.contracts.records import IMAGE, Batch
from ecoflap.core.errors import DataError, EcoflapError, ModelError
from ecoflap.core.model.anatomy import Block, Layer, Source, Tower


class GenericAdapter(TransformersAdapter):
    """Is what the generic adapters share. What a model is made of is seen as it runs, on inputs of a few tokens.

    That is remembered for as long as the model is the same one, because watching a large model takes seconds.

    :cvar _mapping: The name of transformers' table of the classes that the adapter reads.
    """

    priority = -10
    _has_doubles = True
    _mapping: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self._taken_apart = Remembered(lambda model: taken_apart_by(model, self._examples))

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """Give the stacks of blocks that run and that the loss depends on, and the matrices between them."""
        return tuple(self._taken_apart(model).towers)

    def layers(self, block: Block) -> Sequence[Layer]:
        """Give the layers that were seen to run in a block of :meth:`towers`."""
        if not isinstance(block, SeenBlock):
            raise ModelError(f"{block.name} is no block that {type(self).__name__}.towers() gave.")
        return block.layers

    def running(self, model: nn.Module) -> AbstractContextManager[None]:
        """Have experts run one by one, so that what each of them reads can be seen."""
        return experts_one_by_one(model)

    def left_out(self, model: nn.Module) -> Mapping[str, str]:
        """Say which parameters and blocks are no layers on purpose, and why."""
        return self._taken_apart(model).left_out

    def why_not(self, source: Source) -> str | None:
        """Say what transformers has a model for that no adapter claims."""
        return made_for(source)

    def max_length(self, model: nn.Module) -> int | None:
        """Give how many positions the configuration of the text model says that there are."""
        config: Any = model.config
        return find(config.get_text_config(), "max_position_embeddings", int)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Compute the mean negative log-likelihood of each token that is to be said, of the model's own logits."""
        with self.running(model):
            logits = self._logits(model, self._arguments(model, batch))
        return mean_nll_in_chunks(logits, self._targets(model, batch).to(logits.device))

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Say what is image and what is text. Of a tower that reads no text nothing is padding.

        :param tower: The head too, which reads what is to be said.
        """
        if tower == "decoder" or is_head(model, tower):
            return self._tokens_said(model, batch)
        if tower in (QFORMER, QUESTION) and "qformer_attention_mask" in batch:
            return self._tokens_asked(model, batch, tower)
        patches = patches_of(batch) if tower == VISION else None
        if patches is not None:
            return patches.to(torch.int8) * IMAGE
        if tower not in ("language", "encoder") and find(model, tower, nn.Module) is None:
            return torch.full((len(batch["input_ids"]), 1), IMAGE, dtype=torch.int8)
        return self._tokens_read(model, batch)

    def _tokens_asked(self, model: nn.Module, batch: Batch, tower: str) -> Int8[Tensor, "batch tokens"]:
        """Say what is query and what is text of what a Q-Former reads."""
        asked: Tensor = batch["qformer_attention_mask"].to(torch.int8)
        queries = member(model, "config.num_query_tokens", int)
        return asked if tower == QUESTION else F.pad(asked, (queries, 0), value=IMAGE)

    def _tokens_read(self, model: nn.Module, batch: Batch) -> Int8[Tensor, "batch tokens"]:
        """Say what is image and what is text of what the model reads."""
        kinds: Tensor = batch["attention_mask"]
        token = image_token(model.config)
        if token is not None:
            kinds = kinds * torch.where(batch["input_ids"] == token, IMAGE, 1)
        return kinds.to(torch.int8)

    def _tokens_said(self, model: nn.Module, batch: Batch) -> Int8[Tensor, "batch tokens"]:
        """Say which positions the head is given and which of them are real: here those whose token is to be said."""
        said: Tensor = self._targets(model, batch) != IGNORED
        return said.to(torch.int8)

    @abstractmethod
    def _examples(self, model: nn.Module) -> Iterable[tuple[Inputs, Texts]]:
        """Yield small inputs for a model, each with the lengths of its texts."""

    @abstractmethod
    def _targets(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give the label of each position that logits are made for."""

    def _arguments(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Give the arguments of the model's forward: the batch where the model is, and without a cache."""
        return {**placed(model, batch), **cacheless(model)}

    def _logits(self, model: nn.Module, arguments: Mapping[str, Any]) -> Tensor:
        try:
            logits: Tensor = model(**arguments).logits
        except EcoflapError:
            raise
        except (ValueError, IndexError) as error:  # as of more places for an image than vectors
            self._refuse_longer(model, arguments)
            raise DataError(
                f"the {type(model).__name__} cannot read what its {type(self.processor).__name__} made: "
                f"{str(error).rstrip('.')}. {_is_it_its_own(model, self.processor)}"
            ) from error
        except Exception as error:  # a model raises whatever it likes
            self._refuse_longer(model, arguments)
            raise ModelError(f"the forward of {type(model).__name__} stopped with {failure(error)}.") from error
        return logits

    def _refuse_longer(self, model: nn.Module, arguments: Mapping[str, Any]) -> None:
        """Refuse a batch that a model could not read because a text of it is longer than the model has positions.

        Of a model that computes positions there are always as many as it takes; on a GPU nothing can be asked any more.
        """
        if not any(isinstance(one, nn.Embedding) and "position" in name for name, one in model.named_modules()):
            return
        masks, said = ("attention_mask", "decoder_attention_mask"), arguments.get("labels")
        for real in (*map(arguments.get, masks), None if said is None else said != IGNORED):
            if real is not None and real.ndim == 2 and real.device.type == "cpu":
                check_lengths(real.sum(1).tolist(), self.max_length(model))

    def _tried(self, model: nn.Module, batch: Batch) -> Batch:
        """Give a batch, which a model without weights is run on first: its processor may be another model's.

        Nothing is multiplied, so that takes seconds at most. A run would find it out once it has read the weights.

        :raises DataError: Where the model cannot read it.
        """
        if next(model.parameters()).is_meta:
            with torch.no_grad(), lent_weights(model), self.running(model), WithoutProducts():
                self._logits(model, self._arguments(model, batch))
        return batch

    @classmethod
    def _is_read(cls, model_type: str, name: str | None) -> bool:
        known = names_in(cls._mapping)
        is_there = name in known.values() if name is not None else model_type in known
        return is_there and not reads_others(name or known[model_type])

    @staticmethod
    def _is_laid_out(model: nn.Module) -> bool:
        return hasattr(model, "config") and hasattr(model, "save_pretrained")

    def _read_model(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        return load_transformers_model(class_named(source, self._kind), source, dtype, device)


def is_head(model: nn.Module, tower: str) -> bool:
    """Say whether a matrix outside the blocks, by its name, is what makes the logits."""
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    return head is not None and find(model, tower, nn.Module) is head


def _is_it_its_own(model: nn.Module, processor: Any) -> str:
    """Ask whether a processor is the model's own, and say what transformers has for such a model."""
    kind = str(find(model, "config.model_type", str))
    own, is_image = processor_for(kind), hasattr(processor, "image_processor")
    known = f" For a model of type {kind!r} transformers has {own}." if own and own != type(processor).__name__ else ""
    sizes = " Are its patches and the size of its images those of config.json?" if is_image and not known else ""
    return f"Is it the one that belongs to the model?{known}{sizes}"
