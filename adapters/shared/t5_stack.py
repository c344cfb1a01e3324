"""Find the encoder and decoder of a T5, on its own or as the text model of another."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ecoflap.adapters.shared.matrices import matrices, tower_at
from ecoflap.adapters.shared.members import member
from ecoflap.core.model.anatomy import Block, Layer, Tower


def towers_of_t5(model: nn.Module, prefix: str = "") -> list[Tower]:
    """Give encoder, decoder and head.

    :param prefix: The path of the T5 in the model, with a dot at its end.
    """
    stacks = [tower_at(model, f"{prefix}{name}.block", name) for name in ("encoder", "decoder")]
    return [*stacks, Tower.of_matrix(model, f"{prefix}lm_head")]


def layers_of_t5(block: Block) -> list[Layer]:
    """Give the layers of a block of encoder or decoder.

    The relative position bias is an embedding, so it is none of them.
    """
    return list(matrices(block, reads=_read_by))


def untie(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Give a T5 without weights a head of its own where its ``config.json`` says so; transformers 5 ties every T5."""
    head = member(model, "lm_head", nn.Linear)
    if config.get("tie_word_embeddings") is False and head.weight is member(model, "shared.weight"):
        head.weight = nn.Parameter(head.weight.detach().clone())


def _read_by(name: str) -> str:
    """Cross-attention reads its keys and values off the encoder."""
    return "encoder" if name.endswith(("EncDecAttention.k", "EncDecAttention.v")) else ""
