"""The gradient of one block's output norm with respect to its own weights, sample by sample."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ecoflap.core.errors import ModelError
from ecoflap.core.forward.walk import tensors_in
from ecoflap.core.model.anatomy import Block, Layer


@contextmanager
def with_gradients(block: Block, layers: Sequence[Layer]) -> Iterator[None]:
    """Run a block so that its output has a graph down to these layers' weights and no further."""
    flags = [(parameter, parameter.requires_grad) for parameter in block.module.parameters()]
    block.module.requires_grad_(False)
    for layer in layers:
        layer.parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def add_gradients(
    block: Block,
    layers: Sequence[Layer],
    output: Any,
    real: Bool[Tensor, "batch tokens"] | None,
    add: Callable[[Layer, Float[Tensor, "out in"]], None],
) -> None:
    """For each sample, hand each layer the gradient of ‖f(x)‖₂, f(x) being the block's output at the real tokens.

    :param output: What the block returned; its first tensor is f(x).
    :param real: Which tokens are no padding; None for a block whose output has one row a sample, all of them real.
    """
    hidden = _by_sample(block, layers, output)
    if real is not None and real.shape != hidden.shape[:2]:
        raise ModelError(
            f"{block.name}: its output {tuple(hidden.shape)} is not of the {tuple(real.shape)} tokens that its tower "
            f"has, so no gradient by sample can be taken. Its adapter's layout or tokens is wrong"
        )
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


def _by_sample(block: Block, layers: Sequence[Layer], output: Any) -> Float[Tensor, "batch ..."]:
    hidden = next(tensors_in(output), None)
    if hidden is None or not hidden.requires_grad:
        raise ModelError(f"{block.name}: its output does not depend on its layers, so it has no gradient")
    return hidden.transpose(0, 1) if layers[0].layout == "token batch" else hidden
