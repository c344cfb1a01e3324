"""Find the two towers of BLIP-2 of transformers that see: a vision transformer, and a Q-Former that reads it."""

import torch
from jaxtyping import Int8
from torch import Tensor, nn

from ecoflap.adapters.shared.images import image_tokens
from ecoflap.adapters.shared.matrices import matrices, tower_at
from ecoflap.adapters.shared.members import find, member
from ecoflap.core.contracts.records import IMAGE, Batch
from ecoflap.core.model.anatomy import Block, Layer, Tower

VISION, QFORMER = "vision_model.encoder.layers", "qformer.encoder.layer"


def towers_that_see(model: nn.Module, calls: int = 1) -> list[Tower]:
    """Give the vision transformer, and the Q-Former, which is kept by default.

    :param calls: How often the Q-Former runs in one forward.
    """
    return [tower_at(model, VISION, "vision"), tower_at(model, QFORMER, "qformer", calls=calls, prunable=False)]


def layers_that_see(block: Block) -> list[Layer]:
    """Give the layers of a block of either; the Q-Former's cross-attention reads the vision transformer."""
    across = ("crossattention.attention.key", "crossattention.attention.value")
    return list(matrices(block, reads=lambda name: "vision" if name in across else ""))


def tokens_that_see(model: nn.Module, batch: Batch, tower: str) -> Int8[Tensor, "batch tokens"]:
    """Say what the positions of the vision transformer, or of the Q-Former's queries, are: all are of the image."""
    if tower == "vision":
        return image_tokens(member(model, "vision_model.embeddings"), batch["pixel_values"])
    queries = member(model, "query_tokens", nn.Parameter).shape[1]
    return torch.full((len(batch["pixel_values"]), queries), IMAGE, dtype=torch.int8)


def has_both(model: nn.Module) -> bool:
    """Say whether a model is laid out as one that has both towers."""
    return all(find(model, path, nn.ModuleList) is not None for path in (VISION, QFORMER))
