"""What the table needs of each family: a pico model, its adapter, samples, and its own library's way to read it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Batch, Sample


def redraw(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough that every layer has a healthy gradient, the same whatever was drawn before."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.08).to(parameter.dtype)
    return model.eval()


@dataclass(frozen=True)
class Family:
    """One row of the table.

    :param build: A pico model in float32 and eval mode, every time with the same weights.
    :param build_other: Another model of the family, of another size, that takes the same processor.
    :param larger: An adapter and a model that reads larger images, where its processor follows from that; None where a
        processor is saved by itself, and may be of another size for any model.
    :param adapter: The adapter as a user gets it for this model, with a processor where it needs one.
    :param samples: So many samples, of unequal lengths where they hold text.
    :param towers: The names of the towers that a run walks by default, in order.
    :param kept: Those of them that are kept by default.
    :param outside: The matrices outside the blocks that a recipe may include, in order.
    :param reload: The saved folder, read by the family's own library.
    :param outputs: What must be the same after saving and loading.
    :param poisoned: A batch whose padding holds a token that the model (changed in place) embeds as 1e6; None where
        there is no padding.
    :param is_whole_on_disk: Whether the saved folder says what model it is of; else it holds weights for one at hand.
    :param cannot: Types that its own library cannot run it in, with the reason.
    :param real_text: Where its text is, of a model whose texts are padded even alone; else None.
    :param real_patches: Where its images are, of a model whose rows of patches are padded even alone; else None.
    :param multiplies: What its matrices are multiplied by, where that is not ``F.linear``.
    :param own_loss: What its loss is held against, by the model's own forward, where that computes logits only.
    :param is_compared: Whether there is a loss of the model's own at all; where there is no head, one is made up.
    :param batch_size: Of the calibration.
    :param named: ``model.adapter`` of a recipe, where the adapter needs parameters for this model.
    """

    build: Callable[[], nn.Module]
    build_other: Callable[[], nn.Module]
    adapter: Callable[[], Adapter]
    samples: Callable[[int], Sequence[Sample]]
    towers: tuple[str, ...]
    reload: Callable[[Path], nn.Module]
    outputs: Callable[[nn.Module, Batch], Tensor | tuple[Tensor, ...]]
    kept: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    poisoned: Callable[[nn.Module, Batch], Batch] | None = None
    is_whole_on_disk: bool = True
    cannot: Mapping[torch.dtype, str] = field(default_factory=dict)
    real_text: Callable[[Batch], Tensor] | None = None
    real_patches: Callable[[Batch], Tensor] | None = None
    multiplies: str = ""
    own_loss: Callable[[nn.Module, Batch], Tensor] | None = None
    is_compared: bool = True
    batch_size: int = 2
    larger: Callable[[], tuple[Adapter, nn.Module]] | None = None
    named: Mapping[str, Any] | None = None
