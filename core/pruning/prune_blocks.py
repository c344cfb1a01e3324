"""The fine step: walk the model block by block, each block seeing the already pruned ones before it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.budget.select import is_finite, kept_only
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.events import Event, LayerPruned, Progress, Warned
from ecoflap.core.contracts.records import LayerPlace, Pruned, Statistics
from ecoflap.core.disk.safetensors_header import StoredAs
from ecoflap.core.disk.sealed import Sealed, SealedTensor, open_sealed, write_sealed
from ecoflap.core.errors import EcoflapError, FormatError, ModelError
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Block, Layer
from ecoflap.core.pruning.masks import PackedMasks, pack, popcount
from ecoflap.core.pruning.plan import Plan, PlannedLayer
from ecoflap.core.recipe.part_spec import PartSpec

_FORMAT = "ecoflap.block"


@dataclass(frozen=True)
class BlockwisePruning:
    """Prunes the planned layers of a model in place, block by block.

    :param pruner_of: The pruner of each tower with planned layers.
    :param folder: Where each finished block is kept, so that a run that was cut off goes on behind it: its masks, and
        the weights of layers where the pruner changed more than that.
    """

    replay: Replay
    plan: Plan
    pruner_of: Mapping[str, PartSpec]
    folder: Path
    emit: Callable[[Event], None]

    def __call__(self) -> PackedMasks:
        """Prune every block that is not finished yet, and return all masks."""
        masks = PackedMasks()
        planned = [self._planned(block) for block in self.replay.blocks]
        last = max(index for index, layers in enumerate(planned) if layers)
        total, done = sum(1 for layers in planned if layers), 0
        for index, layers in enumerate(planned[: last + 1]):
            if layers:
                self._finish_block(index, layers, masks)
                done += 1
                self.emit(Progress("prune", done, total, "blocks"))
            if self._needs_data(index, planned):
                self.replay.advance(index)
        return masks

    def _planned(self, block: Block) -> list[Layer]:
        return [layer for layer in self.replay.anatomy.layers_of[block.name] if layer.name in self.plan.layers]

    def _needs_data(self, index: int, planned: Sequence[Sequence[Layer]]) -> bool:
        """Say whether a block behind this one is still to be pruned by what it sees."""
        later = [at for at, layers in enumerate(planned) if layers and at > index]
        return any(self._needs(at) and not self._file_of(at).is_file() for at in later)

    def _needs(self, index: int) -> tuple[type[Any], ...]:
        """Give the statistics that the pruner of a block asks for."""
        needs: tuple[type[Any], ...] = self.pruner_of[self.replay.blocks[index].tower].options.needs
        return needs

    def _file_of(self, index: int) -> Path:
        """Name the file of a finished block; three digits are for the eye, and a thousandth block has four."""
        return self.folder / f"{index:03d}.safetensors"

    def _finish_block(self, index: int, layers: Sequence[Layer], masks: PackedMasks) -> None:
        path = self._file_of(index)
        if path.is_file():
            self._take_over(index, layers, masks)
        else:
            changed = self._prune(index, layers, masks)
            tensors = {f"{layer.name}.mask": _sealed(masks.bits[layer.name]) for layer in layers}
            tensors |= {layer.name: _sealed(layer.weight.data) for layer in changed}
            write_sealed(path, _FORMAT, self._of(index), tensors)

    def _prune(self, index: int, layers: Sequence[Layer], masks: PackedMasks) -> list[Layer]:
        """Prune one block, and return the layers that are more than their mask on the old weight."""
        pruner = self.pruner_of[self.replay.blocks[index].tower]
        needs = self._needs(index)
        with blaming(f"a statistic of the pruner {pruner.use}"):
            seen = self.replay.run(index, needs) if needs else {}
        self._warn_of_unfed(layers, seen)
        notes: set[str] = set()
        changed = []
        for layer in layers:
            started = perf_counter()
            planned = self.plan.layers[layer.name]
            with self.replay.placement.held([layer.parameter]):
                weight = layer.weight.data.contiguous()
                place = self._place(index, layer)
                pruned = pruned_layer(weight, planned, pruner, seen.get(layer.name, Statistics()), place)
                more = not _same_bits(pruned.weight, kept_only(weight, pruned.mask))
            if more:
                changed.append(layer)
            layer.weight.data.copy_(pruned.weight)
            _put(masks, layer, pruned.mask)
            for note in [note for note in pruned.notes if note not in notes]:
                self.emit(Warned(f"{layer.name}: {note}"))
            # Layers that share an input share what is noted of it: it is told of the first of them.
            notes.update(pruned.notes)
            zeros = planned.keep - int(pruned.weight.ne(0).count_nonzero())
            self.emit(LayerPruned(layer.name, planned.keep, layer.size, zeros, perf_counter() - started))
        return changed

    def _warn_of_unfed(self, layers: Sequence[Layer], seen: Mapping[str, Statistics]) -> None:
        """Name the experts that no token reached: the pruner has nothing but their weights to go by."""
        unfed = [layer.name for layer in layers if layer.name in seen and not seen[layer.name].is_fed]
        if unfed:
            some = f"{', '.join(unfed[:6])}{' …' if len(unfed) > 6 else ''}"
            sentence = (
                f"the router sent no calibration token to {len(unfed)} matrices of experts, which are pruned by their "
                f"weights alone: {some}. More or other calibration data may reach them"
            )
            self.emit(Warned(sentence))

    def _place(self, index: int, layer: Layer) -> LayerPlace:
        block = self.replay.blocks[index]
        tower = [other.name for other in self.replay.blocks if other.tower == block.tower]
        inside = [other.name for other in self.replay.anatomy.layers_of[block.name]]
        return LayerPlace(layer.name, block.tower, block.name, tower.index(block.name), inside.index(layer.name))

    def _of(self, index: int) -> str:
        """Say which block of which plan a file is, so that no other's is taken for it."""
        return json.dumps({"block": self.replay.blocks[index].name, "plan": self._plan_digest})

    @cached_property
    def _plan_digest(self) -> str:
        return sha256(json.dumps(self.plan.dump()).encode()).hexdigest()

    def _take_over(self, index: int, layers: Sequence[Layer], masks: PackedMasks) -> None:
        """Read a finished block, every byte of it checked."""
        path = self._file_of(index)
        try:
            with open_sealed(path, _FORMAT) as file:
                if file.manifest != self._of(index):
                    raise FormatError(f"{path}: this is another block, or one of another plan")
                changed = {layer.name: _as_stored(layer) for layer in layers if layer.name in file.hashes}
                file.expect_as(changed | {f"{layer.name}.mask": _bits_of(layer) for layer in layers})
                for layer in layers:
                    self._take_over_layer(file, layer, masks)
        except FormatError as error:
            anew = "Delete it, and the run prunes that block again; or start anew with --fresh"
            raise FormatError(*(f"{problem.removesuffix('.')}. {anew}" for problem in error.problems)) from error

    def _take_over_layer(self, file: Sealed, layer: Layer, masks: PackedMasks) -> None:
        bits = file.read(f"{layer.name}.mask")
        if popcount(bits) != self.plan.layers[layer.name].keep:
            raise FormatError(f"{file.path}: the mask of {layer.name} does not hold what the plan keeps")
        masks.put(layer.name, bits, tuple(layer.as_stored(layer.weight).shape))
        old, mask = layer.weight.data, layer.oriented(masks[layer.name]).to(layer.weight.device)
        old.copy_(file.read(layer.name) if layer.name in file.hashes else kept_only(old, mask))


def _sealed(tensor: Tensor) -> SealedTensor:
    return SealedTensor(tensor.dtype, tuple(tensor.shape), lambda: tensor)


def _as_stored(layer: Layer) -> StoredAs:
    return StoredAs(layer.weight.dtype, tuple(layer.weight.shape))


def _bits_of(layer: Layer) -> StoredAs:
    return StoredAs(torch.uint8, ((layer.size + 7) // 8,))


def _put(masks: PackedMasks, layer: Layer, mask: Bool[Tensor, "out in"]) -> None:
    """Add a layer's mask, which is kept as its parameter lies."""
    stored = layer.as_stored(mask)
    masks.put(layer.name, pack(stored), tuple(stored.shape))


def pruned_layer(
    weight: Float[Tensor, "out in"], planned: PlannedLayer, pruner: PartSpec, seen: Statistics, place: LayerPlace
) -> Pruned:
    """Ask a pruner for one layer, and hold its answer to the plan: a pruner may come from anywhere."""
    try:
        with blaming(f"the pruner {pruner.use}"):
            pruned: Pruned = pruner.built(weight, seen, planned.budget, place)
            problem = _broken(pruned, weight, planned)
    except EcoflapError as error:
        raise type(error)(*(f"{place.name}: {problem}" for problem in error.problems)) from error
    if problem:
        raise ModelError(f"{place.name}: the pruner {pruner.use} {problem}")
    return pruned


def _broken(pruned: Any, weight: Float[Tensor, "out in"], planned: PlannedLayer) -> str | None:
    """Say what is wrong with a pruner's answer; None where it is what the plan wants."""
    if not isinstance(pruned, Pruned):
        return f"returned {pruned!r:.100}; a pruner returns a Pruned of a mask and a weight"
    if pruned.mask.dtype != torch.bool or pruned.mask.shape != weight.shape:
        mask = f"{pruned.mask.dtype} {tuple(pruned.mask.shape)}"
        return f"returned a mask of {mask} for a weight of {tuple(weight.shape)}"
    kept = int(pruned.mask.count_nonzero())
    if kept != planned.keep:
        return f"kept {kept} weights where the plan keeps {planned.keep}"
    if isinstance(planned.budget, Pattern) and not _holds(planned.budget, pruned.mask):
        return f"did not keep {planned.budget.n} of every {planned.budget.m} inputs"
    found, wanted = ((tuple(tensor.shape), tensor.dtype) for tensor in (pruned.weight, weight))
    if found != wanted:
        return f"returned a weight of {found} for one of {wanted}"
    if bool((pruned.weight.ne(0) > pruned.mask).any()):
        return "left a weight that its mask prunes"
    return None if is_finite(pruned.weight) else "returned NaN or infinite weights"


def _same_bits(a: Float[Tensor, "out in"], b: Float[Tensor, "out in"]) -> bool:
    """Say whether two tensors are equal byte for byte; 0.0 and -0.0 are not."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _holds(pattern: Pattern, mask: Bool[Tensor, "out in"]) -> bool:
    return bool((mask.reshape(-1, pattern.m).count_nonzero(dim=1) == pattern.n).all())
