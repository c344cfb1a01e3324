"""Adapt LLaMA and the decoders laid out like it: one stack of blocks of seven matrices, read from transformers."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.hubs.transformers_adapter import TransformersAdapter
from ecoflap.adapters.shared.losses import IGNORED, mean_nll_of_hidden
from ecoflap.adapters.shared.matrices import matrix_outside, tower_at
from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.shared.text_batches import going_on, texts_gone_on_with, windows_of, within_vocabulary
from ecoflap.adapters.shared.texts import text_tokens
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
        return within_vocabulary(model, windows_of(samples))

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
        return texts_gone_on_with(model, self.processor, samples, generation, self.max_length(model))

    def tokens_of(self, model: nn.Module, text: str) -> tuple[int, ...]:
        """Give the tokens of a text that goes on after a blank."""
        return going_on(self.processor, text)

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

    def _labels(self, model: nn.Module, batch: Batch) -> Int64[Tensor, "batch tokens"]:
        """Give every real token as a label: transformers has the one before it predict it."""
        labels: Tensor = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        return labels


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
