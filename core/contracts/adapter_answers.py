"""Hold what an adapter says of a batch to what its contract has; adapters come from anywhere."""

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ecoflap.core.contracts.answers import shown
from ecoflap.core.contracts.blame import PartError, blaming
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import IMAGE, PADDING, Batch
from ecoflap.core.model.anatomy import Source


def loaded_by(adapter: Adapter, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
    """Have an adapter load a model.

    :raises PartError: Where it gives no model.
    """
    model: Any = adapter.load(source, dtype, device)
    if not isinstance(model, nn.Module):
        raise PartError(
            f"the adapter {type(adapter).__name__}, loading {source.name}, gave {shown(model)}; its load returns the "
            f"model, which is an nn.Module"
        )
    return model


def max_length_of(adapter: Adapter, model: nn.Module) -> int | None:
    """Ask an adapter how many tokens a text may have; None where there is no limit.

    :raises PartError: Where it raises, or gives no number of tokens.
    """
    who = f"the adapter {type(adapter).__name__}, asked for its longest text,"
    with blaming(who):
        longest: Any = adapter.max_length(model)
    if longest is not None and (not isinstance(longest, int) or isinstance(longest, bool) or longest < 1):
        raise PartError(f"{who} gave {shown(longest)}; a number of tokens is wanted, or None where there is no limit")
    return longest


def loss_of(adapter: Adapter, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Compute an adapter's loss of a batch.

    :raises PartError: Where it raises, or gives no tensor of one number that gradients flow from where they are wanted.
    """
    who = f"the adapter {type(adapter).__name__}, computing the loss,"
    with blaming(who):
        loss = adapter.loss(model, batch)
    return held_loss(who, loss)


def held_loss(who: str, loss: Any) -> Float[Tensor, ""]:
    """Give a loss, where it is one.

    :param who: Whose it is, and doing what.
    :raises PartError: Where it is no tensor of one number that gradients flow from where they are wanted.
    """
    wanted = "one floating-point number is wanted, as logits' mean cross entropy is"
    if not isinstance(loss, Tensor):
        raise PartError(f"{who} gave {shown(loss)}; a tensor of {wanted}")
    if loss.dim() or not loss.is_floating_point():
        raise PartError(f"{who} gave a tensor of {tuple(loss.shape)} in {loss.dtype}; {wanted}")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise PartError(
            f"{who} gave one that no gradient flows from: it was detached, or computed under no_grad(), or no "
            f"layer has a part in it"
        )
    return loss


def tokens_of(
    adapter: Adapter, model: nn.Module, batch: Batch, tower: str, call: int = 0
) -> Shaped[Tensor, "batch tokens"]:
    """Ask an adapter what each position of a tower's hidden states is.

    :raises PartError: Where it raises, or gives no two axes of whole numbers from ``PADDING`` to ``IMAGE``.
    """
    who = f"the adapter {type(adapter).__name__}, asked for the tokens of its tower {tower!r},"
    with blaming(who):
        tokens = adapter.tokens(model, batch, tower, call)
    wanted = "a number for each position of each sample is wanted: 0 for padding, 1 for text, 2 for an image or a query"
    if not isinstance(tokens, Tensor):
        raise PartError(f"{who} gave {shown(tokens)}; {wanted}")
    if tokens.dim() != 2 or tokens.is_floating_point() or tokens.is_complex():
        raise PartError(f"{who} gave a tensor of {tuple(tokens.shape)} in {tokens.dtype}; {wanted}")
    if tokens.numel() and not PADDING <= int(tokens.min()) <= int(tokens.max()) <= IMAGE:
        raise PartError(f"{who} gave numbers from {int(tokens.min())} to {int(tokens.max())}; {wanted}")
    return tokens
