"""LLaMA and the decoder-only models laid out like it: one stack of blocks of seven matrices, read from transformers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.hubs.hugging_face import load_model, load_processor, save_model, save_surroundings
from ecoflap.adapters.shared.generation import (
    check_length,
    check_prompts,
    generated,
    gone_on,
    opening,
    padded_left,
)
from ecoflap.adapters.shared.losses import mean_nll_of_hidden
from ecoflap.adapters.shared.matrices import matrix_outside, part
from ecoflap.adapters.views.texts import views_of_decoder
from ecoflap.core.contracts.abilities import Generation, Said
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Batch, Sample, View
from ecoflap.core.errors import DataError, ModelError
from ecoflap.core.model.anatomy import Block, Layer, Source, Tower

# Families whose head is a plain linear layer. Those that scale or cap their logits (Gemma, Granite, Cohere) are not
# here: the loss below would be wrong for them.
FAMILIES = frozenset({
    "llama", "ernie4_5", "helium", "ministral", "mistral", "olmo", "olmo2", "olmo3", "qwen2", "qwen3", "seed_oss",
    "smollm3",
})  # fmt: skip
MATRICES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["LlamaAdapter"]]:
    return {"llama": LlamaAdapter}


class LlamaAdapter:
    """``LlamaForCausalLM`` and models of its layout, from a hub id, a folder, a GGUF file or memory.

    A GGUF file's weights are de-quantised to float32, and cast from there where another type is asked for.
    """

    def __init__(self) -> None:
        self.processor: Any = None

    def matches(self, source: Source) -> bool:
        """By ``model_type``, and by its structure for a model in memory."""
        config, model = source.config, source.model
        if model is not None and not _is_laid_out(model):
            return False
        heads = config.get("architectures") or ["ForCausalLM"]
        known = config.get("model_type") in FAMILIES and any(head.endswith("ForCausalLM") for head in heads)
        return known or (model is not None and not config)

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """The model in eval mode, and its tokenizer; ``device="meta"`` reads neither weights nor tokenizer."""
        if source.model is not None:
            return source.model.eval()
        model = load_model("AutoModelForCausalLM", source, dtype, device)
        if device != "meta":
            self.processor = load_processor("AutoTokenizer", source)
        return model

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        blocks = part(model, "model.layers")
        language = tuple(Block(f"model.layers.{i}", block, "language") for i, block in enumerate(blocks))
        return [Tower("language", language), Tower.of_matrix(model, "lm_head", calls=None)]

    def layers(self, block: Block) -> Sequence[Layer]:
        """The seven matrices in the order they run."""
        if block.tower == "lm_head":
            return matrix_outside(block)
        missing = [name for name in MATRICES if not _has_matrix(block.module, name)]
        if missing:
            raise ModelError(f"{block.name} is not a LLaMA block: it has no {', '.join(missing)}.")
        return [Layer(f"{block.name}.{name}.weight", block.module.get_submodule(name)) for name in MATRICES]

    def max_length(self, model: nn.Module) -> int | None:
        return getattr(part(model, "config"), "max_position_embeddings", None)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Token windows side by side, padded on the right to the longest."""
        windows = [sample.tokens for sample in samples if sample.tokens is not None and len(sample.tokens)]
        if len(windows) < len(samples) or not windows:
            raise DataError("this model reads tokens: each sample needs at least one, and a batch at least one sample.")
        shape = len(windows), max(map(len, windows))
        input_ids, attention_mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        for row, window in enumerate(windows):
            input_ids[row, : len(window)] = window
            attention_mask[row, : len(window)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Mean negative log-likelihood of each real token given those before it."""
        device = part(model, "model.embed_tokens").weight.device
        input_ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        real = (mask[:, :-1] * mask[:, 1:]).bool()
        targets = input_ids[:, 1:][real]
        if not len(targets):
            raise DataError("a batch holds no token to predict: a text needs at least two tokens.")
        seen = None if _ends_in_padding(mask) else mask
        output = part(model, "model")(input_ids=input_ids, attention_mask=seen, use_cache=False)
        head = part(model, "lm_head")
        return mean_nll_of_hidden(head, output.last_hidden_state[:, :-1][real], targets, head.weight.shape[0])

    def generate(self, model: nn.Module, samples: Sequence[Sample], generation: Generation) -> list[Said]:
        """How the model goes on with each question."""
        check_prompts(samples)
        prompts = [opening(self._ids(str(sample.question)), self.processor) for sample in samples]
        check_length(prompts, generation, self.max_length(model))
        ids, mask = padded_left(prompts)
        device = part(model, "model.embed_tokens").weight.device
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        return generated(model, self.processor, inputs, generation, ids.shape[1])

    def tokens_of(self, text: str) -> tuple[int, ...]:
        """Of a text that goes on after a blank."""
        ends = [self.processor.eos_token_id] if self.processor is not None else []
        return gone_on(self._ids(":"), self._ids(f": {text}"), ends)

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        mask: Tensor = batch["attention_mask"]
        return mask.to(torch.int8)

    def save(self, model: nn.Module, folder: Path) -> None:
        """As transformers writes it, with the tokenizer beside it."""
        save_model(model, self.processor, folder)

    def save_surroundings(self, model: nn.Module, folder: Path) -> None:
        """The same without the weights."""
        save_surroundings(model, self.processor, folder)

    def export_views(self, model: nn.Module) -> Sequence[View]:
        return list(views_of_decoder(model))

    def _ids(self, text: str) -> list[int]:
        """Its tokens, with those that the tokenizer adds."""
        if self.processor is None:
            raise DataError(
                "this model needs a tokenizer to read a question: put tokenizer.json beside its config.json, or give "
                "ecoflap.run a processor."
            )
        return list(self.processor(text)["input_ids"])


def _is_laid_out(model: nn.Module) -> bool:
    blocks = part(model, "model.layers")
    return (
        isinstance(blocks, nn.ModuleList)
        and isinstance(part(model, "lm_head"), nn.Linear)
        and all(_has_matrix(block, name) for block in blocks for name in MATRICES)
    )


def _has_matrix(block: nn.Module, name: str) -> bool:
    weight = part(block, f"{name}.weight")
    return isinstance(weight, nn.Parameter) and weight.ndim == 2


def _ends_in_padding(mask: Int64[Tensor, "batch tokens"]) -> bool:
    """Whether padding, if any, comes after all text: a causal model's text then never sees it, so no mask is needed.

    Without a mask attention takes its fast path, and nothing of the size tokens × tokens is made.
    """
    return bool((mask[:, 1:] <= mask[:, :-1]).all())
