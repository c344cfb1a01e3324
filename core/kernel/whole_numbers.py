"""Round rows of weights to int8, where there is no library; ``kernels/src/int8.h`` describes it."""

import torch
from jaxtyping import Float32, Int8
from torch import Tensor

from ecoflap.core.errors import KernelError

_MOST = 127  # and not 128 below: no weight is without its negative


def rounded_rows(weight: Float32[Tensor, "out in"]) -> tuple[Int8[Tensor, "out in"], Float32[Tensor, " out"]]:
    """Give what weights are in scales of their row, as the nearest whole numbers, ties to even; and the scales.

    A scale is the largest absolute value over 127: 0 in a row of zeros, and of numbers that are too small for one.

    :raises KernelError: Where a weight is not finite.
    """
    if not weight.isfinite().all():
        raise KernelError("a weight is not finite, and no whole number stands for it")
    if not weight.numel():
        return weight.to(torch.int8), weight.new_zeros(len(weight))
    scales = weight.abs().amax(dim=1) / _MOST
    times = (weight.double() / scales.double()[:, None]).nan_to_num(0, 0, 0)  # divided by a scale of 0
    return times.clamp(-_MOST, _MOST).round().to(torch.int8), scales
