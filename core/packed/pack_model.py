"""Have a model in memory run from packed weights: its pruned matrices are packed where they are."""

from collections.abc import Iterator

import torch
from torch import nn

from ecoflap.core.errors import ModelError
from ecoflap.core.kernel.matrix import pack_dense, shape_for
from ecoflap.core.kernel.order import Shape
from ecoflap.core.packed.packing import (
    ATTRIBUTE,
    LEAST_SPARSITY,
    Candidate,
    Packing,
    arena_of,
    refuse_packed,
    replace,
    why_dense,
)


def pack_model(model: nn.Module) -> Packing:
    """Replace each matrix that is pruned by one that is packed and stays so while it is multiplied, on the CPU.

    The model is changed in place, and takes less memory; it is run as before, and cannot be trained. Its state dict
    holds dense weights under the names that it had. What runs packed is an ``nn.Linear`` that is at least 35 % zeros.

    :param model: A pruned one: weights that are zero are what is not stored.
    :return: What is packed now, and what stays dense and why. It stands at ``model.ecoflap_packing``, too.
    :raises ModelError: Where the model is not on the CPU, or is packed already.
    """
    refuse_packed(model)
    elsewhere = sorted({str(p.device) for p in model.parameters() if p.device.type != "cpu"})
    if elsewhere:
        raise ModelError(f"packed weights are multiplied on the CPU, and this model is on {', '.join(elsewhere)}")
    packing = Packing()
    candidates = list(_candidates(model, packing))
    arena = arena_of(candidates)
    for candidate in candidates:
        weight = model.get_parameter(candidate.names[0])
        replace(model, candidate, pack_dense(weight, arena.take(candidate.shape.nbytes)))
        packing.add(candidate.names[0], candidate.shape)
    setattr(model, ATTRIBUTE, packing)
    return packing


def _candidates(model: nn.Module, packing: Packing) -> Iterator[Candidate]:
    """Find what is to run packed; what is pruned and stays dense is noted."""
    shared: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(name)
    for names in shared.values():
        weight = model.get_parameter(names[0])
        if weight.ndim < 2 or not _is_pruned(weight):
            continue
        shape = shape_for(weight) if weight.ndim == 2 else None
        reason = next(filter(None, (_why_dense(model, name, shape, weight) for name in names)), "")
        if reason or shape is None:
            packing.dense[names[0]] = reason
        else:
            yield Candidate(tuple(names), shape)


def _why_dense(model: nn.Module, name: str, shape: Shape | None, weight: torch.Tensor) -> str:
    owner, _, attribute = name.rpartition(".")
    return why_dense(model.get_submodule(owner), attribute, shape, weight.dtype)


def _is_pruned(weight: torch.Tensor) -> bool:
    return weight.numel() - int(weight.count_nonzero()) >= LEAST_SPARSITY * max(1, weight.numel())
