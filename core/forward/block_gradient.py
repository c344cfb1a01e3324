"""The gradient of one block's output norm with respect to its own weights, sample by sample."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ecoflap.core.errors import ModelError
from ecoflap.core.forward.nested import tensors_in
from ecoflap.core.forward.placement import requiring_grad
from ecoflap.core.forward.walk import BlockCall
from ecoflap.core.model.anatomy import Block, Layer


@contextmanager
def with_gradients(block: Block, layers: Sequence[Layer]) -> Iterator[None]:
    """Run a block so that its output has a graph down to these layers' weights and no further."""
    with requiring_grad(block.module, layers), torch.enable_grad():
        yield


def add_gradients(
    block: Block,
    layers: Sequence[Layer],
    output: Any,
    real: Bool[Tensor, "batch tokens"] | None,
    add: Callable[[Layer, Float[Tensor, "out in"]], None],
) -> None:
    """For each sample, hand each layer the gradient of ‖f(x)‖₂, f(x) being the block's output at the real tokens.

    An expert that no token of the sample reached has one of zeros, as in
    :func:`~ecoflap.core.forward.gradients.stream_gradients`.

    :param output: What the block returned; its first tensor is f(x).
    :param real: Which tokens are no padding; None for a block whose output has one row a sample, all of them real.
    """
    hidden = next(tensors_in(output), None)
    if hidden is None or not hidden.requires_grad:
        raise ModelError(f"{block.name}: its output does not depend on its layers, so it has no gradient")
    if real is not None:
        hidden = by_sample(block, layers, hidden, real)
    parameters = list({id(layer.parameter): layer.parameter for layer in layers}.values())
    for number, sample in enumerate(hidden):
        norm = (sample if real is None else sample[real[number].to(sample.device)]).float().norm()
        keep = number + 1 < len(hidden)
        gradients = torch.autograd.grad(norm, parameters, retain_graph=keep, allow_unused=True)
        of = {id(parameter): gradient for parameter, gradient in zip(parameters, gradients, strict=True)}
        for layer in layers:
            gradient = of[id(layer.parameter)]
            if gradient is not None:
                add(layer, layer.matrix_of(gradient))
            elif layer.layout == "routed":
                add(layer, torch.zeros_like(layer.weight))


def turned(
    block: Block, layers: Sequence[Layer], call: BlockCall, real: Bool[Tensor, "batch tokens"]
) -> Float32[Tensor, "batch tokens"]:
    """Give 1 − cos of each position's hidden state before and after one call of a block."""
    before, after = (next(tensors_in(given), None) for given in ((*call.args, dict(call.kwargs)), call.output))
    if before is None or after is None:
        raise ModelError(f"{block.name}: it is given no hidden states, or returns none, so they cannot drift")
    old, new = (by_sample(block, layers, hidden, real).float().flatten(2) for hidden in (before, after))
    return 1 - torch.cosine_similarity(old, new, dim=2)


def by_sample(
    block: Block, layers: Sequence[Layer], hidden: Float[Tensor, "..."], real: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens ..."]:
    """Turn what a block returned so that its first two axes are the samples and their positions; a view.

    A block may return them the other way round, as those of some CLIPs do, or behind an axis of its own, as Gemma 3n's
    several streams of hidden states; what is inside of it may return the positions of all samples one after the other.
    Where a batch has as many samples as positions, its shape does not tell the two orders apart, and the layers do: all
    of them are given tokens first where it is.

    :raises ModelError: Where none of its axes are those of the tower's tokens.
    """
    batch, tokens = real.shape
    layouts = {layer.layout for layer in layers}
    # An nn.MultiheadAttention is given tokens first in a block of either order, so that one layer says too little.
    token_first = layouts == {"token batch"}
    if hidden.dim() == 2 and len(hidden) == batch * tokens:
        if token_first:
            return hidden.reshape(tokens, batch, -1).transpose(0, 1)
        return hidden.reshape(batch, tokens, -1)
    if hidden.shape[:2] == (tokens, batch) and (token_first or ("token batch" in layouts and batch != tokens)):
        return hidden.transpose(0, 1)
    if hidden.shape[:2] == (batch, tokens):
        return hidden
    if hidden.shape[1:3] == (batch, tokens):
        return hidden.movedim(0, 2)
    raise ModelError(
        f"{block.name}: its output {tuple(hidden.shape)} is not of the {tuple(real.shape)} tokens that its tower has. "
        f"Its adapter's layout or tokens is wrong"
    )
