"""A compute device that is not there: blocks whose weights are NaN unless they are the one that runs."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ecoflap.core.forward.placement import Placement, tensors_of
from ecoflap.core.model.anatomy import Block


@dataclass(frozen=True)
class Idle(Placement):
    """Weights are saved beside the model and brought in for as long as they are held; each visit is recorded."""

    beside: dict[int, Tensor] = field(default_factory=dict)
    owner: dict[int, str] = field(default_factory=dict)
    visits: list[str] = field(default_factory=list)

    def put_aside(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            for tensor in tensors_of(block.module):
                if tensor.is_floating_point():
                    self.beside[id(tensor)], self.owner[id(tensor)] = tensor.data, block.name
                    tensor.data = torch.full_like(tensor.data, torch.nan)

    def put_back(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            for tensor in tensors_of(block.module):
                if tensor.is_floating_point() and bool(tensor.data.isnan().any()):  # others were written to
                    tensor.data = self.beside[id(tensor)]

    @contextmanager
    def held(self, tensors: Iterable[Tensor]) -> Iterator[None]:
        mine = [tensor for tensor in tensors if id(tensor) in self.beside]
        here = {self.owner[id(tensor)] for tensor in mine}
        assert len(here) <= 1, "more than one block at a time"
        self.visits.extend(f"{name} in" for name in here)
        idle = [tensor.data for tensor in mine]
        # A weight that is perturbed, or pruned, has been given its value already.
        for tensor in mine:
            if bool(tensor.data.isnan().any()):
                tensor.data = self.beside[id(tensor)]
        try:
            with super().held(mine):
                yield
        finally:
            for tensor, empty in zip(mine, idle, strict=True):
                tensor.data = empty
            self.visits.extend(f"{name} out" for name in here)
