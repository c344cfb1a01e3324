"""Move pruned matrices from a packed file into a model without making them dense."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ecoflap.core.disk.safetensors_header import DTYPES
from ecoflap.core.errors import FormatError, KernelError, ModelError
from ecoflap.core.kernel.arena import Arena
from ecoflap.core.kernel.library import Values
from ecoflap.core.kernel.order import Shape
from ecoflap.core.packed.contents import Entry
from ecoflap.core.packed.forms import Form, as_unpruned, form_of, pack_stored_into
from ecoflap.core.packed.packing import (
    Candidate,
    Packing,
    arena_of,
    is_expected,
    put_packed,
    vocabulary_weights,
    why_dense,
)
from ecoflap.core.packed.read_packed import StoredPacked


@dataclass(frozen=True)
class StayingPacked:
    """Puts packed matrices into a model as they are read, all into one arena.

    :param candidates: What is packed in memory, by the name that the file stores it under.
    :param stored: Those that the file holds packed.
    """

    candidates: Mapping[str, Candidate]
    stored: Set[str]
    packing: Packing
    arena: Arena

    @classmethod
    def of(
        cls,
        model: nn.Module,
        entries: Mapping[str, Entry],
        names: Mapping[str, Sequence[str]],
        type_of: Callable[[str, torch.dtype], torch.dtype],
        packing: Packing,
    ) -> "StayingPacked":
        """Choose what stays packed, from what a file says that it holds.

        :param names: By the name that the file stores a tensor under, all that it has in the model.
        :param type_of: As for :func:`ecoflap.core.packed.into_model.fill`.
        :param packing: Says how they are held, and is told what is packed and what is not: in int8 that is what is not
            pruned, too.
        """
        candidates: dict[str, Candidate] = {}
        of_words = frozenset() if packing.embeddings is None else vocabulary_weights(model)
        for name, entry in entries.items():
            is_vocabulary = not of_words.isdisjoint(names.get(name, ()))
            values = packing.held(is_vocabulary)
            is_any = is_vocabulary or values != "exact"
            is_asked = entry.kept is not None or (is_any and _is_weight(model, names.get(name, ()), entry))
            if not is_asked or entry.same_as is not None:
                continue
            owner, _, attribute = name.rpartition(".")
            form = form_of(model.get_submodule(owner), attribute)
            shape = _shape(entry, form, type_of(name, DTYPES[entry.dtype]), values)
            reasons = (_why_dense(model, one, entry, shape, is_vocabulary) for one in names[name])
            reason = next(filter(None, reasons), "")
            if reason or form is None:
                packing.dense[name] = reason
            else:
                candidates[name] = Candidate(tuple(names[name]), shape, form, form.most_bytes(shape))
        stored = frozenset(name for name in candidates if entries[name].packed)
        return cls(candidates, stored, packing, arena_of(candidates.values()))

    def put(self, model: nn.Module, name: str, stored: StoredPacked | Tensor) -> None:
        """Put one matrix into the model; beside it only what the file has of it is in memory.

        :raises FormatError: Where its mask does not fit.
        :raises ModelError: Where it holds what has no int8.
        """
        candidate = self.candidates[name]
        shape, packed = candidate.shape, self.arena.take(candidate.nbytes)
        stored = as_unpruned(stored) if isinstance(stored, Tensor) else stored
        values = stored.values.to(shape.dtype)
        if shape.values != "exact" and not values.isfinite().all():
            raise ModelError(
                f"{name} holds a weight that is not finite, for which no int8 stands. Say weights='packed' for it."
            )
        try:
            ends = pack_stored_into(packed, candidate.form, shape, StoredPacked(stored.bits, values))
        except KernelError as error:
            raise FormatError(f"the packed weight {name} is damaged: {error}") from error
        put_packed(model, candidate, packed, ends)
        self.packing.add(name, shape, ends[-1])


def _is_weight(model: nn.Module, names: Sequence[str], entry: Entry) -> bool:
    """Say whether int8 can be expected of it: real numbers with which a module multiplies, that are no buffer."""
    is_matrix = len(entry.shape) > 1 and DTYPES[entry.dtype].is_floating_point
    return is_matrix and all(_is_parameter(model, name) for name in names) and is_expected(model, names)


def _is_parameter(model: nn.Module, name: str) -> bool:
    owner, _, attribute = name.rpartition(".")
    return attribute in model.get_submodule(owner)._parameters


def _shape(entry: Entry, form: Form | None, dtype: torch.dtype, values: Values) -> Shape:
    """Say what its matrices are together when they are packed: of what the file holds dense nothing is left out."""
    outputs, inputs = form.sizes(entry.shape) if form else (0, 0)
    outputs *= form.matrices if form else 0
    kept = entry.kept if entry.packed and entry.kept is not None else outputs * inputs
    return Shape(dtype, outputs, inputs, kept, values)


def _why_dense(model: nn.Module, name: str, entry: Entry, shape: Shape, is_vocabulary: bool) -> str:
    owner, _, attribute = name.rpartition(".")
    reason = why_dense(model.get_submodule(owner), attribute, shape, shape.dtype, is_vocabulary)
    is_taken = entry.packed or is_vocabulary or shape.values != "exact"
    return reason or ("" if is_taken else "the file holds it dense")
