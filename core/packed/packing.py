"""Say which matrices of a model run packed, and hold them together: :class:`Packing`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ecoflap.core.errors import ModelError
from ecoflap.core.kernel.arena import Arena
from ecoflap.core.kernel.library import TYPES, Values
from ecoflap.core.kernel.order import Shape
from ecoflap.core.kernel.packed_module import PackedLinear

ATTRIBUTE = "ecoflap_packing"
LEAST_SPARSITY = 0.35
"""Below it the masks cost more time than the weights that are not read save."""


@dataclass
class Packing:
    """Says what of a model is packed.

    :param values: How its weights are held: as they are, or in int8.
    :param packed: The names of the weights that are, as ``state_dict()`` has them.
    :param dense: Of prunable weights that are not, each with the reason.
    :param bytes_dense: What the packed ones took dense.
    :param bytes_packed: What they take now, masks and scales included.
    """

    values: Values = "exact"
    packed: list[str] = field(default_factory=list)
    dense: dict[str, str] = field(default_factory=dict)
    bytes_dense: int = 0
    bytes_packed: int = 0

    def add(self, name: str, shape: Shape) -> None:
        """Count a weight as packed."""
        self.packed.append(name)
        self.bytes_dense += shape.bytes_dense
        self.bytes_packed += shape.nbytes

    def __str__(self) -> str:
        """Tell it in sentences, a line for each reason why weights are dense."""
        share = f", {self.bytes_packed / self.bytes_dense:.3f} of its bytes" if self.bytes_dense else ""
        how = {"exact": "", "int8": " in int8", "int8a8": " in int8 with x in int8"}[self.values]
        lines = [f"{len(self.packed)} matrices run packed{how}{share}."]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.dense.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"dense, because {reason}: {', '.join(names[:3])}{more}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Candidate:
    """Names a weight that may run packed, and what it would be then.

    :param names: Its names in the model; more than one where modules share it.
    """

    names: tuple[str, ...]
    shape: Shape


def why_dense(module: nn.Module, attribute: str, shape: Shape | None, dtype: torch.dtype) -> str:
    """Say why a weight stays dense; empty where it can run packed.

    :param module: The one that holds it.
    :param shape: What it would be packed; None where that is not asked, because it is no matrix.
    """
    kind = type(module).__name__
    if type(module) is not nn.Linear or attribute != "weight" or shape is None:
        return f"only an nn.Linear runs packed yet, and this is {attribute!r} of a {kind}"
    if dtype not in TYPES:
        return f"{str(dtype).removeprefix('torch.')} is not multiplied packed"
    sparsity = 1 - shape.kept / max(1, shape.outputs * shape.inputs)
    if shape.values == "exact" and sparsity < LEAST_SPARSITY:
        return f"less than {100 * LEAST_SPARSITY:.0f} % of it is zero"
    if shape.values != "exact" and shape.nbytes >= shape.bytes_dense:
        return "int8 with masks and scales would take no fewer bytes"
    if module._forward_hooks or module._forward_pre_hooks:
        return "its module has hooks, which would be lost"
    return ""


def arena_of(candidates: Iterable[Candidate]) -> Arena:
    """Reserve memory for all that will run packed."""
    return Arena(candidate.shape.nbytes for candidate in candidates)


def replace(model: nn.Module, candidate: Candidate, packed: torch.Tensor) -> None:
    """Put modules with packed weights in the place of those that held them dense, with their biases."""
    for name in candidate.names:
        owner = name.rpartition(".")[0]
        parent, _, child = owner.rpartition(".")
        before: Any = model.get_submodule(owner)
        module = PackedLinear(packed, before.bias).train(before.training)
        setattr(model.get_submodule(parent), child, module)


def packed_modules(model: nn.Module) -> Iterator[tuple[str, PackedLinear]]:
    """Find what runs packed already."""
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            yield name, module


def refuse_packed(model: nn.Module) -> None:
    """Refuse a model that runs packed, where dense parameters are asked for."""
    names = [name for name, _ in packed_modules(model)]
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ModelError(
            f"the weights of {', '.join(names[:3])}{more} are packed already: they can be run and saved, and not "
            f"pruned or packed again. Load the model with weights='dense'."
        )
