"""Have matrices of a model on a GPU run 2:4: torch's semi-structured tensors, on sparse tensor cores.

Of every four weights of a row that lie together at most two are not zero (Mishra et al., "Accelerating Sparse Deep
Neural Networks", 2021). What is stored is those two and where they are: 9/16 of the bytes in 16 bits.
"""

import warnings
from collections.abc import Collection, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ecoflap.core.dtypes import dtype_name
from ecoflap.core.errors import KernelError, ModelError
from ecoflap.core.packed.packing import ATTRIBUTE, Packing, what_would_be_lost

ROWS, COLUMNS = 32, 64
"""What outputs and inputs have to be multiples of, for cuSPARSELt and for CUTLASS, in 16 bits."""
LEAST_CAPABILITY = (8, 0)
"""Of an Ampere, the first that has sparse tensor cores."""
_WAY_OUT = "On the CPU any pattern runs packed: device='cpu', or move it there and pack it. For a GPU prune it 2:4."


class TwoFourLinear(nn.Linear):
    """Multiplies as an ``nn.Linear`` whose weights are 2:4; they cannot be trained.

    A state dict has them dense, under the name they had, and so takes them.
    """

    def __init__(self, dense: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self.register_parameter("bias", dense.bias)
        self.register_parameter("weight", _compressed(dense.weight.detach()))
        self.train(dense.training)

    def _apply(self, fn: Any, recurse: bool = True) -> "TwoFourLinear":
        """Refuse another type or device: what is compressed is neither cast nor moved."""
        probe = fn(torch.empty(1, dtype=self.weight.dtype, device=self.weight.device))
        if (probe.dtype, probe.device) != (self.weight.dtype, self.weight.device):
            raise KernelError(
                f"2:4 weights on {self.weight.device} are neither moved nor cast. Load the model with weights='dense', "
                f"convert it, then ecoflap.pack_model(model)."
            )
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight.detach().to_dense()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        name = f"{prefix}weight"
        if name not in state_dict:
            super()._load_from_state_dict(state_dict, prefix, *more)
            return
        weight = state_dict[name].to(self.weight.device, self.weight.dtype)
        if reason := why_not_two_four(weight):
            raise KernelError(f"{name} cannot be taken by a layer that runs 2:4: {reason}")
        del self._parameters["weight"]  # torch would copy into it, and nothing is copied into what is compressed
        others = {key: value for key, value in state_dict.items() if key != name}
        super()._load_from_state_dict(others, prefix, *more)
        self.register_parameter("weight", _compressed(weight))


def run_two_four(model: nn.Module) -> Packing:
    """Put modules that run 2:4 in the place of each ``nn.Linear`` whose weights are; in place, on the GPU they are on.

    Where there is none, the model stays dense, and a warning says why.

    :raises ModelError: Where the GPU has no sparse tensor cores, or the model is on several kinds of device.
    """
    _refuse_other_devices({parameter.device for parameter in model.parameters()})
    packing = Packing()
    for name, module, reason in list(_candidates(model)):
        if reason:
            packing.dense[f"{name}.weight"] = reason
            continue
        weight = module.weight
        owner, _, child = name.rpartition(".")
        setattr(model.get_submodule(owner), child, TwoFourLinear(module))
        packing.packed.append(f"{name}.weight")
        packing.bytes_dense += weight.nbytes
        packing.bytes_packed += weight.nbytes * 9 // 16
    setattr(model, ATTRIBUTE, packing)
    if not packing.packed:
        why = next((f"{name}: {reason}" for name, reason in packing.dense.items()), "no nn.Linear of it is half zeros")
        told = f"no matrix of this model runs packed on the GPU, all stay dense. {why}. {_WAY_OUT}"
        warnings.warn(told, stacklevel=3)  # for who packs
    return packing


def _refuse_other_devices(devices: Collection[torch.device]) -> None:
    """Refuse a model that is elsewhere than on GPUs with sparse tensor cores."""
    if {device.type for device in devices} != {"cuda"}:
        raise ModelError(f"a model that is to run 2:4 is on GPUs whole, and this is on {', '.join(map(str, devices))}")
    weak = [device for device in devices if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY]
    if weak:
        raise ModelError(f"{weak[0]} has no sparse tensor cores, which GPUs have from Ampere on: leave it dense")


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Linear, str]]:
    """Find linear layers that are half zero or more, each with the reason why it stays dense."""
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    for name, module in model.named_modules():
        if type(module) is not nn.Linear or 2 * int(module.weight.count_nonzero()) > module.weight.numel():
            continue
        is_shared = "another module has its weights too" if holders[id(module.weight)] > 1 else ""
        yield name, module, is_shared or what_would_be_lost(module) or why_not_two_four(module.weight)


def why_not_two_four(weight: Float[Tensor, "out in"]) -> str:
    """Say why a matrix cannot run 2:4; empty where it can."""
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return f"it is {dtype_name(weight.dtype)}, and not in 16 bits"
    outputs, inputs = weight.shape
    if outputs % ROWS or inputs % COLUMNS or not weight.numel():
        return f"it is {outputs} × {inputs}, and not a multiple of {ROWS} × {COLUMNS}"
    if int(weight.reshape(outputs, -1, 4).count_nonzero(dim=-1).max()) > 2:
        return "more than two of four weights that lie together are not zero: prune it with pattern 2:4"
    return ""


def _compressed(weight: Float[Tensor, "out in"]) -> nn.Parameter:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor is in prototype stage")
        return nn.Parameter(torch.sparse.to_sparse_semi_structured(weight.contiguous()), requires_grad=False)
