"""Adapt LLaMA and the decoders laid out like it: one stack of blocks of seven matrices, read from transformers."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.hubs.transformers_adapter import TransformersAdapter
from ecoflap.adapters.shared.generation import check_length, check_prompts, generated, gone_on, opening, padded_left
from ecoflap.adapters.shared.losses import mean_nll_of_hidden
from ecoflap.adapters.shared.matrices import matrix_outside, tower_at
from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.shared.texts import padded_rows, text_tokens
from ecoflap.adapters.views.texts import views_of_decoder
from ecoflap.core.contracts.abilities import Generation, Said
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Batch, Sample, View
from ecoflap.core.errors import DataError, ModelError
from ecoflap.core.model.anatomy import Block, Layer, Tower

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


class LlamaAdapter(TransformersAdapter):
    """Adapts ``LlamaForCausalLM`` and models of its layout, from a hub id, a folder, a GGUF file or memory.

    A GGUF file's weights are de-quantised to float32, and cast from there where another type is asked for.
    """

    _kind = "AutoModelForCausalLM"

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """Give the stack of blocks, and the head, which the loss applies in chunks."""
        return [tower_at(model, "model.layers", "language"), Tower.of_matrix(model, "lm_head", calls=None)]

    def layers(self, block: Block) -> Sequence[Layer]:
        """Give the seven matrices of a block in the order they run, or the one of the head."""
        if block.tower == "lm_head":
            return matrix_outside(block)
        missing = [name for name in MATRICES if not _has_matrix(block.module, name)]
        if missing:
            raise ModelError(f"{block.name} is not a LLaMA block: it has no {', '.join(missing)}.")
        return [Layer(f"{block.name}.{name}.weight", block.module.get_submodule(name)) for name in MATRICES]

    def max_length(self, model: nn.Module) -> int | None:
        """Give how many positions the configuration says that the model has."""
        return find(model, "config.max_position_embeddings", int)

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Put windows of tokens side by side, padded on the right to the longest."""
        windows = [sample.tokens for sample in samples if sample.tokens is not None and len(sample.tokens)]
        if len(windows) < len(samples) or not windows:
            raise DataError("this model reads tokens: each sample needs at least one, and a batch at least one sample.")
        input_ids, mask = padded_rows([window.tolist() for window in windows])
        return {"input_ids": input_ids, "attention_mask": mask}

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Compute the mean negative log-likelihood of each real token given those before it."""
        device = _embedding(model).device
        input_ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        real = (mask[:, :-1] * mask[:, 1:]).bool()
        targets = input_ids[:, 1:][real]
        if not len(targets):
            raise DataError("a batch holds no token to predict: a text needs at least two tokens.")
        seen = None if _ends_in_padding(mask) else mask
        output = member(model, "model")(input_ids=input_ids, attention_mask=seen, use_cache=False)
        head = member(model, "lm_head", nn.Module)
        vocabulary = member(head, "weight", nn.Parameter).shape[0]
        return mean_nll_of_hidden(head, output.last_hidden_state[:, :-1][real], targets, vocabulary)

    def generate(self, model: nn.Module, samples: Sequence[Sample], generation: Generation) -> list[Said]:
        """Have the model go on with each question."""
        check_prompts(samples)
        prompts = [opening(self._ids(str(sample.question)), self.processor) for sample in samples]
        check_length(prompts, generation, self.max_length(model))
        ids, mask = padded_left(prompts)
        device = _embedding(model).device
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        return generated(model, self.processor, inputs, generation, ids.shape[1])

    def tokens_of(self, model: nn.Module, text: str) -> tuple[int, ...]:
        """Give the tokens of a text that goes on after a blank."""
        ends = [self.processor.eos_token_id] if self.processor is not None else []
        return gone_on(self._ids(":"), self._ids(f": {text}"), ends)

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Say that every position is text where the mask is 1."""
        return text_tokens(batch)

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give ``decoder``, and ``decoder_with_past`` where this version of transformers has caches for it."""
        return list(views_of_decoder(model))

    @staticmethod
    def _is_read(model_type: str, name: str | None) -> bool:
        return model_type in FAMILIES and (name is None or name.endswith("ForCausalLM"))

    @staticmethod
    def _is_laid_out(model: nn.Module) -> bool:
        blocks = find(model, "model.layers", nn.ModuleList)
        if blocks is None or find(model, "lm_head", nn.Linear) is None:
            return False
        return all(_has_matrix(block, name) for block in blocks for name in MATRICES)

    def _ids(self, text: str) -> list[int]:
        """Give a text's tokens, with those that the tokenizer adds."""
        if self.processor is None:
            raise DataError(
                "this model needs a tokenizer to read a question: put tokenizer.json beside its config.json, or give "
                "ecoflap.run a processor."
            )
        return list(self.processor(text)["input_ids"])


def _embedding(model: nn.Module) -> nn.Parameter:
    return member(model, "model.embed_tokens.weight", nn.Parameter)


def _has_matrix(block: nn.Module, name: str) -> bool:
    weight = find(block, f"{name}.weight", nn.Parameter)
    return weight is not None and weight.ndim == 2


def _ends_in_padding(mask: Int64[Tensor, "batch tokens"]) -> bool:
    """Say whether padding, if any, comes after all text: a causal model's text never sees it, so no mask is needed.

    Without a mask attention takes its fast path, and nothing of the size tokens × tokens is made.
    """
    return bool((mask[:, 1:] <= mask[:, :-1]).all())
