"""What is trained: a projector from patches to words, and a change of low rank of the language model's matrices."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, WORDS = 384, 576
"""Width of the vision tower, and of the language model."""
RANK, ALPHA = 8, 16
CHANGED = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")


class Projector(nn.Module):
    """Two linear layers with a GELU between them, as LLaVA-1.5 has it, on features of mean 0 and deviation 1."""

    def __init__(self, mean: Float[Tensor, " width"], deviation: Float[Tensor, " width"]) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(WIDTH, WORDS), nn.Linear(WORDS, WORDS)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, patches: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes words"]:
        return self.linear_2(F.gelu(self.linear_1((patches - self.mean) / self.deviation)))

    def folded(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Give it as two plain layers in a smaller type; the bias makes up for how the matrix was rounded."""
        first = (self.linear_1.weight / self.deviation).to(dtype)
        bias = self.linear_1.bias - first.float() @ self.mean
        second = self.linear_2
        whole = {"linear_1.weight": first, "linear_1.bias": bias}
        whole |= {"linear_2.weight": second.weight, "linear_2.bias": second.bias}
        return {name: weight.detach().to(dtype).contiguous() for name, weight in whole.items()}


class LowRank(nn.Module):
    """A linear layer that stays as it is, plus a trained product of two thin matrices.

    LoRA: Hu et al., 2021 (arXiv:2106.09685). W x + α / r · B A x, where B begins as zero.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.frozen = [linear.weight]  # in a list: no parameter of this module
        out, read = linear.weight.shape
        self.down = nn.Parameter(torch.randn(RANK, read) / math.sqrt(read))
        self.up = nn.Parameter(torch.zeros(out, RANK))

    def forward(self, inputs: Float[Tensor, "*axes read"]) -> Float[Tensor, "*axes out"]:
        thin = F.linear(inputs, self.down.to(inputs.dtype))
        return F.linear(inputs, self.frozen[0]) + F.linear(thin, (self.up * (ALPHA / RANK)).to(inputs.dtype))

    def shipped(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Give the two matrices, whose product is the change."""
        return {"up": (self.up * (ALPHA / RANK)).detach().to(dtype), "down": self.down.detach().to(dtype)}


def with_low_rank(stack: nn.Module) -> nn.ModuleDict:
    """Put a :class:`LowRank` in the place of each matrix that is changed, and give them by name, dots as slashes."""
    named = [(name, module) for name, module in stack.named_modules() if name.rpartition(".")[2] in CHANGED]
    changes = {name: LowRank(linear) for name, linear in named}
    for name, change in changes.items():
        owner, _, own = name.rpartition(".")
        setattr(stack.get_submodule(owner), own, change)
    return nn.ModuleDict({name.replace(".", "/"): change for name, change in changes.items()})


def shipped(projector: Projector, changes: nn.ModuleDict) -> dict[str, Tensor]:
    """Give all that was learnt in half precision, under the names that :mod:`build_llava` reads."""
    found = {f"multi_modal_projector.{name}": weight for name, weight in projector.folded(torch.float16).items()}
    for name, change in changes.items():
        place = f"language_model.{name.replace('/', '.')}"
        found |= {f"{place}.{which}": weight for which, weight in change.shipped(torch.float16).items()}
    return found


def changed(state: Mapping[str, Tensor], learnt: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the changes to the weights of a language model."""
    whole = dict(state)
    for name in state:
        place = f"language_model.{name.removesuffix('.weight')}"
        if f"{place}.up" in learnt:
            whole[name] = state[name] + learnt[f"{place}.up"].float() @ learnt[f"{place}.down"].float()
    return whole


def parameters(*modules: Any) -> list[nn.Parameter]:
    """Give what is trained of several modules."""
    return [parameter for module in modules for parameter in module.parameters()]
