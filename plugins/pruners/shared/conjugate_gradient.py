"""Solves for the kept weights of all rows at once, by conjugate gradients on each row's own kept inputs."""

import torch
from jaxtyping import Bool, Float32
from torch import Tensor


def by_conjugate_gradient(
    matrix: Float32[Tensor, "in in"],
    dense: Float32[Tensor, "out in"],
    start: Float32[Tensor, "out in"],
    mask: Bool[Tensor, "out in"],
    damping: float,
    steps: int,
) -> Float32[Tensor, "out in"]:
    """Go toward argmin tr((X − dense)(A + λI)(X − dense)ᵀ) on the mask.

    A has a diagonal of ones, so that preconditioning by the diagonal would change nothing.
    """

    def product(x: Float32[Tensor, "out in"]) -> Float32[Tensor, "out in"]:
        return (x @ matrix).add_(x, alpha=damping).mul_(mask)

    found = start.clone()
    residual = product(dense - found)
    direction = residual.clone()
    square = residual.square().sum(1, keepdim=True)
    for _ in range(steps):
        image = product(direction)
        # A row that is solved has a residual and a direction of zero, and stays where it is.
        length = square / (direction * image).sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        found.addcmul_(length, direction)
        residual.addcmul_(length, image, value=-1)
        before, square = square, residual.square().sum(1, keepdim=True)
        direction = direction.mul_(square / before.clamp_min(torch.finfo(torch.float32).tiny)).add_(residual)
    return found
