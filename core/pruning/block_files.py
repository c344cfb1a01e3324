"""The finished blocks of a run that is under way: their masks, and the weights of which more than the mask changed."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ecoflap.core.disk.safetensors_header import StoredAs
from ecoflap.core.errors import FormatError
from ecoflap.core.model.anatomy import Anatomy, Block, Layer
from ecoflap.core.planning.plan import Plan
from ecoflap.core.pruning.finished_weights import FinishedWeights, check_put_away
from ecoflap.core.pruning.masks import PackedMasks, popcount
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.core.sealing.sealed import Sealed, open_sealed, sealed, with_way_out, write_sealed

_FORMAT = "ecoflap.block"
_WAY_OUT = "Delete it, and the run prunes that block again; or start anew with --fresh"
_WEIGHTS = "weights"
"""The key of a file's manifest with the SHA-256 of each weight of the block, where these are in files of their own."""


class FinishedLayer(NamedTuple):
    """Holds what became of a layer.

    :param bits: Its packed mask.
    :param weight: None where it is the mask on the weight from before.
    """

    bits: UInt8[Tensor, "bytes"]
    weight: Float[Tensor, "out in"] | None


@dataclass(frozen=True)
class BlockFiles:
    """Writes and reads the files of finished blocks of one plan; the first of several processes does so for all.

    :param finished_weights: Takes all weights of a finished block out of memory, and its file has their SHA-256; None
        where the model is in memory, and the file has what pruning changed of them.
    """

    folder: Path
    plan: Plan
    ranks: Ranks
    finished_weights: FinishedWeights | None = None

    def is_there(self, index: int) -> bool:
        """Say whether an earlier process has finished a block."""
        return self._path(index).name in self._names

    def write(
        self, index: int, block: Block, masks: PackedMasks, layers: Sequence[Layer], changed: Sequence[Layer]
    ) -> None:
        """Keep a block.

        :param layers: Those whose masks are kept.
        :param changed: Those whose weights are kept, too.
        """
        tensors = {f"{layer.name}.mask": sealed(masks.bits[layer.name]) for layer in layers}
        manifest = self._of(block)
        if self.finished_weights is None:
            tensors |= {layer.name: sealed(layer.weight.data) for layer in changed}
        else:
            finished_weights = self.finished_weights
            manifest[_WEIGHTS] = self.ranks.first(lambda: finished_weights.put_away(index, block))
            self._follow(index, block)
        self.ranks.at_first(lambda: write_sealed(self._path(index), _FORMAT, json.dumps(manifest), tensors))

    def read(self, index: int, block: Block, layers: Sequence[Layer]) -> Mapping[str, FinishedLayer]:
        """Read a block by its layers' names, every byte of it checked; weights that were put away are held then."""
        finished = self.ranks.first(lambda: self._read(index, block, layers))
        self._follow(index, block)
        return finished

    def _follow(self, index: int, block: Block) -> None:
        """Hold the weights of a block where the first process has put them, in every process before any goes on.

        What they are mapped from may be deleted then, as the first does behind the last block, when the model is saved.
        """
        if self.finished_weights is not None:
            if self.ranks.rank > 0:
                self.finished_weights.hold(index, block)
            self.ranks.gather(None)

    @cached_property
    def _names(self) -> frozenset[str]:
        return self.ranks.first(lambda: frozenset(path.name for path in self.folder.glob("*.safetensors")))

    def _path(self, index: int) -> Path:
        """Name the file of a block; three digits are for the eye, and a thousandth block has four."""
        return self.folder / f"{index:03d}.safetensors"

    def _of(self, block: Block) -> dict[str, Any]:
        """Say which block of which plan a file is, so that no other's is taken for it."""
        return {"block": block.name, "plan": self.plan.digest}

    def _read(self, index: int, block: Block, layers: Sequence[Layer]) -> dict[str, FinishedLayer]:
        path = self._path(index)
        with with_way_out(_WAY_OUT), open_sealed(path, _FORMAT) as file:
            manifest = file.mapping()
            hashes = manifest.pop(_WEIGHTS, None)
            if manifest != self._of(block) or (hashes is None) != (self.finished_weights is None):
                raise FormatError(f"{path}: this is another block, or one of another plan")
            changed = {layer.name: _as_stored(layer) for layer in layers if layer.name in file.hashes}
            file.expect_as(changed | {f"{layer.name}.mask": _bits_of(layer) for layer in layers})
            if self.finished_weights is not None:
                self.finished_weights.take_up(index, block, hashes)
            return {layer.name: self._read_layer(file, layer) for layer in layers}

    def _read_layer(self, file: Sealed, layer: Layer) -> FinishedLayer:
        bits = file.read(f"{layer.name}.mask")
        if popcount(bits) != self.plan.layers[layer.name].keep:
            raise FormatError(f"{file.path}: the mask of {layer.name} does not hold what the plan keeps")
        return FinishedLayer(bits, file.read(layer.name) if layer.name in file.hashes else None)


def are_all_there(folder: Path, plan: Plan, anatomy: Anatomy) -> bool:
    """Say whether a folder has a file of each block with layers of a plan, for this process alone."""
    files = BlockFiles(folder, plan, ALONE)
    planned = (any(layer.name in plan.layers for layer in anatomy.layers_of[block.name]) for block in anatomy.blocks)
    return all(files.is_there(index) for index, is_planned in enumerate(planned) if is_planned)


def is_block_file(path: Path) -> bool:
    """Say by its name whether a file is that of a finished block; ``000 (copy).safetensors`` is somebody's own."""
    return re.fullmatch(r"[0-9]{3,}\.safetensors", path.name) is not None


def check_block_file(path: Path) -> None:
    """Refuse the file of a finished block, and the files of its weights, where one is not what was written."""
    with open_sealed(path, _FORMAT) as file:
        file.read_through()
        check_put_away(path.parent, int(path.stem), file.mapping().get(_WEIGHTS) or {})


def _as_stored(layer: Layer) -> StoredAs:
    return StoredAs(layer.weight.dtype, tuple(layer.weight.shape))


def _bits_of(layer: Layer) -> StoredAs:
    return StoredAs(torch.uint8, ((layer.size + 7) // 8,))
