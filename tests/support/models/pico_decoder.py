"""The row of LLaMA in the table of families."""

from pathlib import Path

import torch
from family import Family, redraw
from torch import Tensor, nn

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.records import Batch, Sample

POISON = 63
LENGTHS = (12, 7, 9, 5)


def build(tied: bool = False, **keys: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 2, **keys,
    }  # fmt: skip
    config = LlamaConfig(**settings, tie_word_embeddings=tied)
    model = redraw(LlamaForCausalLM(config))
    model.tie_weights()  # type: ignore[attr-defined, operator]
    return model


def samples(count: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(1)
    lengths = (LENGTHS[index % len(LENGTHS)] for index in range(count))
    return [Sample(tokens=torch.randint(3, POISON, (length,), generator=generator)) for length in lengths]


def poisoned(model: nn.Module, batch: Batch) -> Batch:
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = 1e6  # type: ignore[attr-defined, operator]
    padding = batch["attention_mask"] == 0
    return {**batch, "input_ids": batch["input_ids"].masked_fill(padding, POISON)}


def reload(folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto")
    return model.eval()


def outputs(model: nn.Module, batch: Batch) -> Tensor:
    logits: Tensor = model(**batch, use_cache=False).logits
    return logits


def family(*, tied: bool) -> Family:
    return Family(
        build=lambda: build(tied),
        build_other=lambda: build(not tied, num_hidden_layers=3, max_position_embeddings=48),
        adapter=LlamaAdapter,
        samples=samples,
        towers=("language",),
        outside=("lm_head",),
        reload=reload,
        outputs=outputs,
        poisoned=poisoned,
    )


FAMILIES = {"llama": family(tied=False), "llama-tied": family(tied=True)}
