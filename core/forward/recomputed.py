"""Train a model with the activations of one block in memory: what a block was given lies on a disk until its backward.

Gradients are the same, bit for bit: the graph is that of the model's own forward, and what each of its steps has kept
for the backward is computed again.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ecoflap.core.disk.on_disk import matrix_on_disk
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.nested import map_tensors
from ecoflap.core.forward.placement import replaced_forwards
from ecoflap.core.model.anatomy import Block


@contextmanager
def recomputed_blocks(blocks: Sequence[Block], folder: Path) -> Iterator[None]:
    """Have each block run again in the backward, whoever calls the model's forward.

    :param folder: On whose disk lies what blocks were given, but for what does not lie there in one piece.
    :raises ModelError: In the backward, where a block has written into a mask or whatever else all blocks are given.
    """
    keeps_casts = weights_are_shared(blocks)

    def forward_of(_: int, block: Block) -> Callable[..., Any]:
        original = block.module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                output = original(*args, **kwargs)
                torch.clear_autocast_cache()
                return output
            given = _Given(block.name, original, args, kwargs, folder, keeps_casts)
            return checkpoint(given, use_reentrant=False)

        return forward

    with replaced_forwards(blocks, forward_of):
        yield


class _Given:
    """Runs a block on what it was given: first on that itself, and then on copies of what has a gradient.

    :param keeps_casts: Whether weights that autocast has made narrower stay so for the blocks behind this one.
    """

    def __init__(
        self,
        block: str,
        forward: Callable[..., Any],
        args: Any,
        kwargs: Mapping[str, Any],
        folder: Path,
        keeps_casts: bool,
    ) -> None:
        self._block, self._forward, self._folder, self._keeps_casts = block, forward, folder, keeps_casts
        self._shared: list[tuple[Tensor, int]] = []
        self._first: Any = (args, dict(kwargs))
        self._kept = self._copies(self._first)

    def __call__(self) -> Any:
        (args, kwargs), self._first = self._first or self._again(), None
        output = self._forward(*args, **kwargs)
        if not self._keeps_casts:
            torch.clear_autocast_cache()
        return output

    def _copies(self, given: Any) -> Any:
        """Copy what has a gradient, which is a block's own; others, as a mask or positions, all blocks are given."""
        copies: dict[int, Tensor] = {}

        def copied(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad or not tensor.is_contiguous():
                self._shared.append((tensor, tensor._version))
                return tensor
            if id(tensor) not in copies:
                copies[id(tensor)] = matrix_on_disk(tensor.detach(), self._folder).requires_grad_()
            return copies[id(tensor)]

        return map_tensors(given, copied)

    def _again(self) -> Any:
        """Give the same once more; of what a block may write to in place, where it has a gradient, another copy."""
        if any(tensor._version != version for tensor, version in self._shared):
            raise ModelError(
                f"{self._block} writes into what it is given, so that it cannot be computed again from that. Leave out "
                f"model.offload: disk, or refine block by block with reconstruct"
            )
        return map_tensors(self._kept, lambda one: one.clone() if one.is_leaf and one.requires_grad else one)


def weights_are_shared(blocks: Sequence[Block]) -> bool:
    """Say whether a weight is used by several calls of blocks: its gradients are then summed where autocast cast it."""
    uses = Counter(id(parameter) for block in blocks for parameter in block.module.parameters())
    return any(block.calls != 1 for block in blocks) or any(count > 1 for count in uses.values())
