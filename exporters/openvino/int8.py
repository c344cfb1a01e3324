"""Round matrices and their inputs to eight bits, symmetrically: zero is zero, and every output has a scale.

    y = (x / s) (W s)ᵀ ≈ Δ_x Δ_w · round(x / (s Δ_x)) · round(W s / Δ_w)ᵀ,   Δ = max|·| / 127
    s_j = max|x_j|^α / max|W_·j|^(1-α)

Δ_x is one number, and Δ_w one for each output. Some inputs of a transformer are a hundred times as large as the others,
and one Δ_x would round those to nothing: s moves what is large from the inputs into the weights, and both are rounded
about as much. Xiao, Lin, Seznec, Wu, Demouth & Han, SmoothQuant, ICML 2023.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int8
from numpy import ndarray
from torch import Tensor

from ecoflap.exporters.openvino.inputs import Fed

LEVELS = 127
"""The largest number of eight bits whose negative is one too."""

_SMALLEST = 1e-5
"""Of a divisor, beside a median of 1: what was seen of an input may have been next to nothing by chance."""


@dataclass(frozen=True, eq=False)
class Rounded:
    """Is a matrix in eight bits.

    :param weight: Times ``scale`` it is the matrix, multiplied by the divisors of its inputs.
    """

    weight: Int8[ndarray, "out in"]
    scale: Float32[ndarray, "out 1"]


@dataclass(frozen=True, eq=False)
class Inputs:
    """Says how what is fed to matrices is rounded. Matrices that are fed the same have the same object.

    :param divisor: Of each input; None divides nothing.
    :param step: What one of the eight bits' numbers stands for, Δ_x.
    """

    divisor: Float32[ndarray, " in"] | None
    step: float


def rounded(weight: Float[Tensor, "out in"], inputs: Inputs | None) -> Rounded:
    """Round a matrix, multiplied by the divisors of its inputs."""
    wide = weight.detach().float().cpu()
    if inputs is not None and inputs.divisor is not None:
        wide = wide * torch.from_numpy(inputs.divisor)
    scale = wide.abs().amax(1, keepdim=True) / LEVELS
    scale[scale == 0] = 1  # an output without a weight
    return Rounded((wide / scale).round().to(torch.int8).numpy(), scale.numpy())


def rounding_of(fed: Fed, smoothing: float | None) -> Inputs:
    """Say how what is fed to matrices is rounded.

    :param smoothing: α; with None nothing is divided.
    """
    heaviest = fed.heaviest
    largest = torch.where(heaviest > 0, fed.largest, 0)  # what is multiplied by zeros alone may be rounded to anything
    if smoothing is None:
        return Inputs(None, _step(largest))
    known = (largest > 0) & (heaviest > 0)
    wanted = largest[known] ** smoothing / heaviest[known] ** (1 - smoothing)
    divisor = torch.ones_like(largest)  # of an input that was always zero, or that is multiplied by zeros
    divisor[known] = (wanted / wanted.median()).clamp(min=_SMALLEST) if len(wanted) else wanted
    return Inputs(divisor.numpy(), _step(largest / divisor))


def _step(largest: Float32[Tensor, " in"]) -> float:
    """Give what one number stands for; anything where nothing but zeros is rounded, or multiplies it."""
    return float(largest.max()) / LEVELS or 1.0
