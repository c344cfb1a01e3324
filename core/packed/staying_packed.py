"""Move pruned matrices from a packed file into a model without making them dense."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ecoflap.core.disk.safetensors_header import DTYPES
from ecoflap.core.errors import FormatError, KernelError, ModelError
from ecoflap.core.kernel.arena import Arena
from ecoflap.core.kernel.library import Values
from ecoflap.core.kernel.matrix import pack_rows
from ecoflap.core.kernel.order import Shape, all_bits
from ecoflap.core.packed.contents import Entry
from ecoflap.core.packed.packing import Candidate, Packing, arena_of, replace, why_dense
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
        values: Values,
    ) -> "StayingPacked":
        """Choose what stays packed, from what a file says that it holds.

        :param names: By the name that the file stores a tensor under, all that it has in the model.
        :param type_of: As for :func:`ecoflap.core.packed.into_model.fill`.
        :param values: How they are held: in int8 what is not pruned is packed too.
        """
        candidates: dict[str, Candidate] = {}
        packing = Packing(values)
        for name, entry in entries.items():
            is_asked = entry.kept is not None if values == "exact" else _is_weight(model, name, entry)
            if not is_asked or entry.same_as is not None:
                continue
            shape = _shape(entry, type_of(name, DTYPES[entry.dtype]), values)
            reason = next(filter(None, (_why_dense(model, one, entry, shape) for one in names[name])), "")
            if reason:
                packing.dense[name] = reason
            else:
                candidates[name] = Candidate(tuple(names[name]), shape)
        stored = frozenset(name for name in candidates if entries[name].packed)
        return cls(candidates, stored, packing, arena_of(candidates.values()))

    def put(self, model: nn.Module, name: str, stored: StoredPacked | Tensor) -> None:
        """Put one matrix into the model; beside it only what the file has of it is in memory.

        :raises FormatError: Where its mask does not fit.
        :raises ModelError: Where it holds what has no int8.
        """
        candidate = self.candidates[name]
        shape, packed = candidate.shape, self.arena.take(candidate.shape.nbytes)
        if isinstance(stored, Tensor):
            stored = StoredPacked(all_bits(shape), stored.reshape(-1))
        values = stored.values.to(shape.dtype)
        if shape.values != "exact" and not values.isfinite().all():
            raise ModelError(
                f"{name} holds a weight that is not finite, for which no int8 stands. Say weights='packed' for it."
            )
        try:
            pack_rows(packed, shape, stored.bits, values)
        except KernelError as error:
            raise FormatError(f"the packed weight {name} is damaged: {error}") from error
        replace(model, candidate, packed)
        self.packing.add(name, candidate.shape)


def _is_weight(model: nn.Module, name: str, entry: Entry) -> bool:
    """Say whether int8 can be expected of it: real numbers with two axes or more that are no buffer."""
    owner, _, attribute = name.rpartition(".")
    is_parameter = attribute in model.get_submodule(owner)._parameters
    return is_parameter and len(entry.shape) > 1 and DTYPES[entry.dtype].is_floating_point


def _shape(entry: Entry, dtype: torch.dtype, values: Values) -> Shape:
    """Say what it is when it is packed: of what the file holds dense nothing is left out."""
    outputs, inputs = entry.shape if len(entry.shape) == 2 else (0, 0)
    kept = entry.kept if entry.packed and entry.kept is not None else outputs * inputs
    return Shape(dtype, outputs, inputs, kept, values)


def _why_dense(model: nn.Module, name: str, entry: Entry, shape: Shape) -> str:
    owner, _, attribute = name.rpartition(".")
    is_matrix = len(entry.shape) == 2
    reason = why_dense(model.get_submodule(owner), attribute, shape if is_matrix else None, shape.dtype)
    return reason or ("" if entry.packed or shape.values != "exact" else "the file holds it dense")
