"""Have a model in memory run from packed weights: its pruned matrices are packed where they are."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ecoflap.core.errors import ModelError, unknown
from ecoflap.core.kernel.library import TYPES, VALUES, Values
from ecoflap.core.kernel.matrix import shape_for
from ecoflap.core.kernel.order import Shape
from ecoflap.core.packed.forms import form_of, pack_into
from ecoflap.core.packed.packing import (
    ATTRIBUTE,
    LEAST_SPARSITY,
    Candidate,
    Packing,
    arena_of,
    begun,
    is_expected,
    is_replaced,
    put_packed,
    refuse_packed,
    vocabulary_weights,
    warn_of_none,
    why_dense,
)
from ecoflap.core.packed.two_four import run_two_four

_ORIGINAL = "_orig"
_PRUNED = 0.1
"""Where a matrix has more zeros it was pruned, if by too little, and it is said that it stays dense."""


def pack_model(model: nn.Module, values: Values = "exact", embeddings: Values | None = None) -> Packing:
    """Replace each matrix that is pruned by one that is packed and stays so while it is multiplied.

    On a GPU that is each ``nn.Linear`` of which of every four weights that lie together two are zero, in 16 bits. Where
    there is none, here or there, a warning says why. What follows is of the CPU.

    The model is changed in place, and takes less memory; it is run as before, and cannot be trained. Its state dict
    holds dense weights under the names that it had. What runs packed are matrices that are at least 35 % zeros, of an
    ``nn.Linear``, a ``Conv1D``, an attention or experts; in int8 each that takes fewer bytes so, pruned or not.

    :param model: A pruned one: weights that are zero are what is not stored.
    :param values: ``exact`` keeps weights bit by bit. ``int8`` rounds them to int8, with a scale for each output, and
        what they are multiplied with to int16, with a scale for each token; ``int8a8`` rounds that to int8 too.
    :param embeddings: How embeddings and the head are held, pruned or not; None leaves embeddings, and a head that is
        one of them, dense.
    :return: What is packed now, and what stays dense and why. It stands at ``model.ecoflap_packing``, too.
    :raises ModelError: Where the model is packed already, is on a device where nothing runs packed, or is on a GPU
        without sparse tensor cores.
    :raises KernelError: Where ``ECOFLAP_KERNEL`` names a path that cannot be taken here.
    """
    for where, said in (("values", values), ("embeddings", embeddings)):
        if said not in VALUES and (where, said) != ("embeddings", None):
            raise ModelError(f"{where}: {unknown('way to hold values', str(said), list(VALUES))}")
    _refuse_unpackable(model)
    gpus = _gpus_of(model)
    if not gpus:
        return _pack_for_cpu(model, begun(values, embeddings))
    if values == "exact" and embeddings is None:
        return run_two_four(model)
    raise ModelError(
        f"int8 and packed embeddings are multiplied on the CPU, and this model is on {', '.join(gpus)}; there 2:4 "
        f"matrices run as they are: pack_model(model)"
    )


def _refuse_unpackable(model: Any) -> None:
    """Refuse what is no model, or one whose layers cannot be replaced by packed ones."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"a model in memory is wanted, and no {type(model).__name__}; load_model reads a folder")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("this model is compiled by torch.jit, and its layers cannot be replaced: pack it before that")
    refuse_packed(model)


def _gpus_of(model: nn.Module) -> list[str]:
    """Name the GPUs that a model is on.

    :raises ModelError: Where it is on a device where nothing runs packed.
    """
    elsewhere = sorted({str(p.device) for p in model.parameters() if p.device.type != "cpu"})
    if any(not one.startswith("cuda") for one in elsewhere):
        raise ModelError(
            f"this model is on {', '.join(elsewhere)}, and packed weights are multiplied on the CPU, or on cuda where "
            f"they are 2:4. Move it there first, by model.to('cpu'); what is on meta has no numbers: load it."
        )
    return elsewhere


def _pack_for_cpu(model: nn.Module, packing: Packing) -> Packing:
    """Put packed matrices in the place of all that run so, and note what is packed and what stays dense."""
    candidates = list(_candidates(model, packing))
    arena = arena_of(candidates)
    for candidate in candidates:
        packed = arena.take(candidate.nbytes)
        ends = pack_into(packed, candidate.form, model.get_parameter(candidate.names[0]), candidate.shape.values)
        put_packed(model, candidate, packed, ends)
        packing.add(candidate.names[0], candidate.shape, ends[-1])
    setattr(model, ATTRIBUTE, packing)
    warn_of_none(packing)
    return packing


def _candidates(model: nn.Module, packing: Packing) -> Iterator[Candidate]:
    """Find what is to run packed; what could be expected to, and stays dense, is noted."""
    shared: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(name)
    of_words = frozenset() if packing.embeddings is None else vocabulary_weights(model)
    for names in shared.values():
        weight, is_vocabulary = model.get_parameter(names[0]), not of_words.isdisjoint(names)
        values = packing.held(is_vocabulary)
        if weight.ndim < 2 or not weight.numel():
            continue
        owner, _, attribute = names[0].rpartition(".")
        module = model.get_submodule(owner)
        form = form_of(module, attribute)
        expected = is_expected(model, names) and (values != "exact" or not isinstance(module, nn.Embedding))
        could_run = expected and form is not None
        is_told = is_vocabulary or _has_mask(module, attribute)
        if not (is_told or _is_asked(weight, expected, could_run, values, packing)):
            continue
        shapes = [shape_for(part, values) for part in form.split(weight)] if form and weight.dtype in TYPES else []
        shape = form.whole(shapes) if form and shapes else None
        reasons = (_why_dense(model, name, shape, weight, is_vocabulary) for name in names)
        reason = next(filter(None, reasons), "")
        if reason or shape is None or form is None:
            packing.dense[names[0]] = reason
        else:
            yield Candidate(tuple(names), shape, form, sum(one.nbytes for one in shapes))


def _why_dense(model: nn.Module, name: str, shape: Shape | None, weight: torch.Tensor, is_vocabulary: bool) -> str:
    owner, _, attribute = name.rpartition(".")
    if not owner and is_replaced(model):
        return "it is the model's own, and another module is put into the place of one inside of a model"
    module = model.get_submodule(owner)
    if _has_mask(module, attribute):
        pruned = attribute.removesuffix(_ORIGINAL)
        return f"its mask is held apart: torch.nn.utils.prune.remove(module, {pruned!r}) makes its weights zero"
    reason = why_dense(module, attribute, shape, weight.dtype, is_vocabulary)
    is_rounded = shape is not None and shape.values != "exact"
    return reason or ("a weight of it is not finite" if is_rounded and not weight.isfinite().all() else "")


def _has_mask(module: nn.Module, attribute: str) -> bool:
    """Say whether a parameter is what ``torch.nn.utils.prune`` makes zeros of by a mask in each forward."""
    mask = module._buffers.get(f"{attribute.removesuffix(_ORIGINAL)}_mask") if attribute.endswith(_ORIGINAL) else None
    return isinstance(module, nn.Linear) and mask is not None and not bool(mask.all())


def _is_asked(weight: torch.Tensor, expected: bool, could_run: bool, values: Values, packing: Packing) -> bool:
    """Say whether a weight is to run packed, or has zeros enough to be named: of one that was not pruned int8 can be.

    What is nothing but zeros and no matrix was not pruned: position embeddings begin so.

    :param expected: Whether its modules are of those that run packed.
    :param could_run: Whether it can be itself; its share of zeros is told to the packing then.
    """
    if weight.is_floating_point() and weight.element_size() == 1:  # torch counts no zeros of float8
        return expected
    zeros = (weight.numel() - int(weight.count_nonzero())) / max(1, weight.numel())
    if expected:
        if could_run:
            packing.most_zeros = max(zeros, packing.most_zeros or 0)
        return zeros >= _PRUNED or values != "exact"
    return LEAST_SPARSITY <= zeros < 1
