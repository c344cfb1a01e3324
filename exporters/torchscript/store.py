"""Store a pruned weight in a TorchScript file: packed on disk, dense in memory, by code that the file itself carries.

On disk it is the kept values in the weight's own type and one bit a weight, the first in the lowest bit. TorchScript
stores the methods below beside the weights, and ``torch.jit.load`` runs ``__setstate__`` once for each weight: so it is
dense before the first run, in a process that has never heard of this package.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, List, Tuple, no_type_check  # noqa: UP035 - what TorchScript reads

import torch
from torch import Tensor, nn

from ecoflap.core.contracts.records import StoredTensor


@contextmanager
def quiet() -> Iterator[None]:
    """Run without the warnings of ``torch.jit``: that it is deprecated, and what a trace takes for constant.

    The first is in the exporter's notes; whether the second does harm is found by running the file at other sizes.
    ``torch.jit`` also looks at every property of a module, and so at those that a library warns of.
    """
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning, torch.jit.TracerWarning):  # type: ignore[attr-defined]
            warnings.simplefilter("ignore", kind)
        yield


class EcoflapPackedWeight(nn.Module):
    """Holds one weight, compiled by :func:`packed`. Its methods may say and call only what TorchScript knows.

    The weight is a parameter, so that ``.to``, ``.half`` and ``state_dict`` of the loaded model see it.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)

    @no_type_check
    def forward(self) -> Tensor:
        return self.weight

    @no_type_check
    def checksum(self, values: Tensor, bits: Tensor, shape: List[int]) -> int:  # noqa: UP006
        """Sum up what is stored, because ``torch.jit.load`` does not notice a byte that has changed."""
        width = values.element_size()
        whole = torch.int16 if width == 2 else torch.int64 if width == 8 else torch.int32
        found = int(torch.view_copy(values, dtype=whole).sum().item()) + int(bits.sum().item())
        for side in shape:
            found = 31 * found + side
        return found

    @no_type_check
    def __getstate__(self) -> Tuple[Tensor, Tensor, int, List[int], bool]:  # noqa: UP006
        flat = self.weight.detach().reshape(-1)
        kept = flat.ne(0)
        rows = torch.constant_pad_nd(kept, [0, (8 - flat.numel() % 8) % 8]).reshape(-1, 8)
        places = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=flat.device)
        bits = (rows * places).sum(1, dtype=torch.uint8)
        values = flat[kept]
        shape = self.weight.shape
        return values, bits, self.checksum(values, bits, shape), shape, self.training

    @no_type_check
    def __setstate__(self, state: Tuple[Tensor, Tensor, int, List[int], bool]):  # noqa: UP006, ANN204
        values, bits, checksum, shape, training = state
        if bits.dtype != torch.uint8 or bits.dim() != 1 or values.dim() != 1 or not values.is_floating_point():
            raise ValueError("ecoflap: this file is damaged: a packed weight is not a row of values and a row of bytes")
        # Never more weights than bits, so that a product cannot overflow.
        size, most = 0 if 0 in shape else 1, 8 * bits.numel()
        for side in shape:
            size = -1 if size < 0 or side < 0 or (side > 0 and size > most // side) else size * side
        if size < 0 or bits.numel() != (size + 7) // 8:
            raise ValueError(f"ecoflap: this file is damaged: {bits.numel()} bytes of mask for a weight of {shape}")
        places = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bits.device)
        kept = bits.unsqueeze(1).bitwise_and(places).ne(0).reshape(-1)
        count = int(kept.count_nonzero().item())
        if count != values.numel() or bool(kept[size:].any().item()):
            raise ValueError(
                f"ecoflap: this file is damaged: the mask of a weight of {shape} keeps {count}, "
                f"and there are {values.numel()} values"
            )
        if checksum != self.checksum(values, bits, shape):
            raise ValueError(f"ecoflap: this file is damaged: the checksum of a weight of {shape} is another")
        flat = torch.zeros(size, dtype=values.dtype, device=values.device)
        flat.masked_scatter_(kept[:size], values)
        self.weight = flat.reshape(shape)
        self.training = training


def packed(weight: Tensor) -> Any:
    """Make a scripted module without inputs that returns the weight, and is stored packed.

    Zeros of either sign are dropped. In memory the module shares the weight.
    """
    with quiet():
        for method in (EcoflapPackedWeight.__getstate__, EcoflapPackedWeight.__setstate__):
            torch.jit.export(method)
        return torch.jit.script(EcoflapPackedWeight(weight))


def stored(name: str, weight: Tensor, pack: bool) -> StoredTensor:
    """Say how a weight is stored in a file: packed where that makes it smaller, and dense otherwise.

    :param pack: False where it is to be dense anyway.
    """
    kept, width = int(weight.count_nonzero()), weight.element_size()
    dense, small = weight.numel() * width, kept * width + (weight.numel() + 7) // 8
    form = "bitmask" if pack and small < dense else "dense"
    return StoredTensor(name, form, tuple(weight.shape), kept, dense, small if form == "bitmask" else dense)
