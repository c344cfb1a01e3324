"""Have a model in memory run from packed weights: its pruned matrices are packed where they are."""

from collections.abc import Iterator

import torch
from torch import nn

from ecoflap.core.errors import ModelError, unknown
from ecoflap.core.kernel.library import VALUES, Values
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


def pack_model(model: nn.Module, values: Values = "exact") -> Packing:
    """Replace each matrix that is pruned by one that is packed and stays so while it is multiplied, on the CPU.

    The model is changed in place, and takes less memory; it is run as before, and cannot be trained. Its state dict
    holds dense weights under the names that it had. What runs packed is an ``nn.Linear`` that is at least 35 % zeros;
    in int8 each ``nn.Linear`` that takes fewer bytes so, pruned or not.

    :param model: A pruned one: weights that are zero are what is not stored.
    :param values: ``exact`` keeps weights bit by bit. ``int8`` rounds them to int8, with a scale for each output, and
        what they are multiplied with to int16, with a scale for each token; ``int8a8`` rounds that to int8 too.
    :return: What is packed now, and what stays dense and why. It stands at ``model.ecoflap_packing``, too.
    :raises ModelError: Where the model is not on the CPU, or is packed already.
    """
    if values not in VALUES:
        raise ModelError(f"values: {unknown('way to hold values', values, list(VALUES))}")
    refuse_packed(model)
    elsewhere = sorted({str(p.device) for p in model.parameters() if p.device.type != "cpu"})
    if elsewhere:
        raise ModelError(f"packed weights are multiplied on the CPU, and this model is on {', '.join(elsewhere)}")
    packing = Packing(values)
    candidates = list(_candidates(model, packing))
    arena = arena_of(candidates)
    for candidate in candidates:
        weight = model.get_parameter(candidate.names[0])
        replace(model, candidate, pack_dense(weight, arena.take(candidate.shape.nbytes), values))
        packing.add(candidate.names[0], candidate.shape)
    setattr(model, ATTRIBUTE, packing)
    return packing


def _candidates(model: nn.Module, packing: Packing) -> Iterator[Candidate]:
    """Find what is to run packed; what could be expected to, and stays dense, is noted."""
    shared: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(name)
    for names in shared.values():
        weight = model.get_parameter(names[0])
        if weight.ndim < 2 or (packing.values == "exact" and not _is_pruned(weight)):
            continue
        shape = shape_for(weight, packing.values) if weight.ndim == 2 else None
        reason = next(filter(None, (_why_dense(model, name, shape, weight) for name in names)), "")
        if reason or shape is None:
            packing.dense[names[0]] = reason
        else:
            yield Candidate(tuple(names), shape)


def _why_dense(model: nn.Module, name: str, shape: Shape | None, weight: torch.Tensor) -> str:
    owner, _, attribute = name.rpartition(".")
    reason = why_dense(model.get_submodule(owner), attribute, shape, weight.dtype)
    is_rounded = shape is not None and shape.values != "exact"
    return reason or ("a weight of it is not finite" if is_rounded and not weight.isfinite().all() else "")


def _is_pruned(weight: torch.Tensor) -> bool:
    return weight.numel() - int(weight.count_nonzero()) >= LEAST_SPARSITY * max(1, weight.numel())
