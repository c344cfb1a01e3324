"""Move pruned matrices from a packed file into a model without making them dense."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ecoflap.core.disk.safetensors_header import DTYPES
from ecoflap.core.errors import FormatError, KernelError
from ecoflap.core.kernel.arena import Arena
from ecoflap.core.kernel.matrix import pack_rows
from ecoflap.core.kernel.order import Shape
from ecoflap.core.packed.contents import Entry
from ecoflap.core.packed.packing import Candidate, Packing, arena_of, replace, why_dense
from ecoflap.core.packed.read_packed import StoredPacked


@dataclass(frozen=True)
class StayingPacked:
    """Puts packed matrices into a model as they are read, all into one arena.

    :param candidates: What stays packed, by the name that the file stores it under.
    """

    candidates: Mapping[str, Candidate]
    packing: Packing
    arena: Arena

    @classmethod
    def of(
        cls,
        model: nn.Module,
        entries: Mapping[str, Entry],
        names: Mapping[str, Sequence[str]],
        type_of: Callable[[str, torch.dtype], torch.dtype],
    ) -> "StayingPacked":
        """Choose what stays packed, from what a file says that it holds.

        :param names: By the name that the file stores a tensor under, all that it has in the model.
        :param type_of: As for :func:`ecoflap.core.packed.into_model.fill`.
        """
        candidates: dict[str, Candidate] = {}
        packing = Packing()
        for name, entry in entries.items():
            if entry.kept is None or entry.same_as is not None:
                continue
            shape = _shape(entry, type_of(name, DTYPES[entry.dtype]))
            reason = next(filter(None, (_why_dense(model, one, entry, shape) for one in names[name])), "")
            if reason:
                packing.dense[name] = reason
            else:
                candidates[name] = Candidate(tuple(names[name]), shape)
        return cls(candidates, packing, arena_of(candidates.values()))

    def put(self, model: nn.Module, name: str, stored: StoredPacked) -> None:
        """Put one matrix into the model; beside it only what the file has of it is in memory.

        :raises FormatError: Where its mask does not fit.
        """
        candidate = self.candidates[name]
        packed = self.arena.take(candidate.shape.nbytes)
        try:
            pack_rows(packed, candidate.shape, stored.bits, stored.values.to(candidate.shape.dtype))
        except KernelError as error:
            raise FormatError(f"the packed weight {name} is damaged: {error}") from error
        replace(model, candidate, packed)
        self.packing.add(name, candidate.shape)


def _shape(entry: Entry, dtype: torch.dtype) -> Shape:
    outputs, inputs = entry.shape if len(entry.shape) == 2 else (0, 0)
    return Shape(dtype, outputs, inputs, entry.kept or 0)


def _why_dense(model: nn.Module, name: str, entry: Entry, shape: Shape) -> str:
    owner, _, attribute = name.rpartition(".")
    is_matrix = len(entry.shape) == 2
    reason = why_dense(model.get_submodule(owner), attribute, shape if is_matrix else None, shape.dtype)
    return reason or ("" if entry.packed else "the file holds it dense")
