"""T5 and its likes, an encoder and a decoder that reads it: T5, T5 v1.1, FlanT5 and mT5, read from transformers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from ecoflap.adapters.hubs.hugging_face import load_model, load_processor, save_model, save_surroundings
from ecoflap.adapters.shared.generation import check_prompts, generated, without_ends
from ecoflap.adapters.shared.losses import IGNORED, mean_nll
from ecoflap.adapters.shared.matrices import matrices, matrix_outside, part
from ecoflap.adapters.shared.rows import padded_rows
from ecoflap.adapters.shared.saved_config import say_untied
from ecoflap.adapters.views.texts import views_of_encoder_and_decoder
from ecoflap.core.contracts.abilities import Generation, Said
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Batch, Sample, View
from ecoflap.core.errors import DataError
from ecoflap.core.model.anatomy import Block, Layer, Source, Tower

FAMILIES = frozenset({"t5", "mt5"})
HEADS = ("ForConditionalGeneration", "T5WithLMHeadModel")  # the second is how old checkpoints call the first
NO_TOKENIZER = (
    "this model needs a tokenizer to read text: put tokenizer.json or spiece.model beside its config.json, or give "
    "ecoflap.run a processor."
)


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["T5Adapter"]]:
    return {"t5": T5Adapter}


class T5Adapter:
    """``T5ForConditionalGeneration`` and ``MT5ForConditionalGeneration``, from a hub id, a folder or memory.

    The loss is the cross entropy of the decoder's text given the encoder's. A window of tokens is cut in the middle:
    the encoder reads its first half, and the decoder is to say the second (a prefix language model, as in ECoFLaP).
    """

    def __init__(self) -> None:
        self.processor: Any = None

    def matches(self, source: Source) -> bool:
        """By ``model_type``, and by its structure for a model in memory."""
        config, model = source.config, source.model
        if model is not None and not _is_laid_out(model):
            return False
        heads = config.get("architectures") or HEADS
        known = config.get("model_type") in FAMILIES and any(head.endswith(HEADS) for head in heads)
        return known or (model is not None and not config)

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """The model in eval mode, and its tokenizer; ``device="meta"`` reads neither weights nor tokenizer.

        In 16 bits transformers keeps some matrices (``wo`` of a T5 in float16) in float32, and so does this.
        """
        if source.model is not None:
            return source.model.eval()
        model = load_model("AutoModelForSeq2SeqLM", source, dtype, device)
        if device == "meta":
            untie(model, source.config)
        else:
            self.processor = load_processor("AutoTokenizer", source)
        return model

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        return towers_of_t5(model)

    def layers(self, block: Block) -> Sequence[Layer]:
        return layers_of_t5(block)

    def max_length(self, model: nn.Module) -> int | None:
        """None: positions are relative, so a text may be of any length."""
        return None

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """The encoder's text and the decoder's, each padded on the right to the longest.

        From a question and its first answer (or text), from tokens, or from text alone, which is cut in the middle.
        """
        pairs = [self._pair(number, sample) for number, sample in enumerate(samples)]
        if not pairs:
            raise DataError("a batch needs at least one sample.")
        read, said = zip(*pairs, strict=True)
        input_ids, mask = padded_rows(read)
        labels, _ = padded_rows(said, IGNORED)
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Mean negative log-likelihood of each token the decoder is to say, given the encoder's text."""
        device = part(model, "shared").weight.device
        labels = batch["labels"].to(device)
        logits = model(
            input_ids=batch["input_ids"].to(device),
            attention_mask=batch["attention_mask"].to(device),
            decoder_input_ids=part(model, "prepare_decoder_input_ids_from_labels")(labels),
            use_cache=False,
        ).logits
        return mean_nll(logits, labels)

    def generate(self, model: nn.Module, samples: Sequence[Sample], generation: Generation) -> list[Said]:
        """What the decoder says to each question, which the encoder reads."""
        check_prompts(samples)
        ids, mask = padded_rows([self._ids(str(sample.question)) for sample in samples])
        device = part(model, "shared").weight.device
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        return generated(model, self.processor, inputs, generation, 1)  # after what a decoder begins with

    def tokens_of(self, text: str) -> tuple[int, ...]:
        return tuple(without_ends(self._ids(text), [self.processor.eos_token_id]))

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Position j of the decoder says label j, so it is real where that label is."""
        real: Tensor = batch["labels"] != IGNORED if tower == "decoder" else batch["attention_mask"]
        return real.to(torch.int8)

    def save(self, model: nn.Module, folder: Path) -> None:
        """As transformers writes it, with the tokenizer beside it."""
        save_model(model, self.processor, folder)
        _put_right(model, folder)

    def save_surroundings(self, model: nn.Module, folder: Path) -> None:
        """The same without the weights."""
        save_surroundings(model, self.processor, folder)
        _put_right(model, folder)

    def export_views(self, model: nn.Module) -> Sequence[View]:
        return list(views_of_encoder_and_decoder(model))

    def _pair(self, number: int, sample: Sample) -> tuple[list[int], list[int]]:
        """What the encoder reads and what the decoder is to say."""
        said = sample.answers[0] if sample.answers else sample.text
        if sample.question is not None and said is not None:
            return self._ids(sample.question), self._ids(said)
        if sample.tokens is None and sample.text is None:
            raise DataError(
                f"this model reads text: sample {number} of a batch holds neither tokens, nor text, nor a question "
                f"with an answer."
            )
        ids = self._ids(str(sample.text)) if sample.tokens is None else sample.tokens.tolist()
        if len(ids) < 2:
            raise DataError(
                f"sample {number} of a batch holds {len(ids)} tokens: at least two are needed, one for the encoder and "
                f"one for the decoder."
            )
        return ids[: len(ids) // 2], ids[len(ids) // 2 :]

    def _ids(self, text: str) -> list[int]:
        """Its tokens, with those that the tokenizer adds: the end of the text."""
        if self.processor is None:
            raise DataError(NO_TOKENIZER)
        return list(self.processor(text)["input_ids"])


def _put_right(model: nn.Module, folder: Path) -> None:
    """What transformers gets wrong in a saved configuration."""
    if part(model, "lm_head.weight") is not part(model, "shared.weight"):
        say_untied(folder)


def towers_of_t5(model: nn.Module, prefix: str = "") -> list[Tower]:
    """Encoder, decoder and head.

    :param prefix: The path of the T5 in the model, with a dot at its end.
    """

    def tower(name: str) -> Tower:
        blocks = part(model, f"{prefix}{name}.block")
        return Tower(name, tuple(Block(f"{prefix}{name}.block.{i}", block, name) for i, block in enumerate(blocks)))

    return [tower("encoder"), tower("decoder"), Tower.of_matrix(model, f"{prefix}lm_head")]


def layers_of_t5(block: Block) -> list[Layer]:
    """Of a block of encoder or decoder, or of the head. The relative position bias is an embedding, so it is none."""
    if block.tower not in ("encoder", "decoder"):
        return matrix_outside(block, reads="decoder", layout="batch token")
    return list(matrices(block, reads=_read_by))


def _read_by(name: str) -> str:
    return "encoder" if name.endswith(("EncDecAttention.k", "EncDecAttention.v")) else ""


def untie(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Give a T5 without weights a head of its own where its ``config.json`` says so; transformers 5 ties every T5."""
    head = part(model, "lm_head")
    if config.get("tie_word_embeddings") is False and head.weight is part(model, "shared").weight:
        head.weight = nn.Parameter(head.weight.detach().clone())


def _is_laid_out(model: nn.Module) -> bool:
    stacks = (part(model, f"{name}.block") for name in ("encoder", "decoder"))
    return (
        all(isinstance(stack, nn.ModuleList) for stack in stacks)
        and isinstance(part(model, "shared"), nn.Embedding)
        and isinstance(part(model, "lm_head"), nn.Linear)
    )
