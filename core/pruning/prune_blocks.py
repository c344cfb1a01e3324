"""The fine step: walk the model block by block, each block seeing the already pruned ones before it."""

from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from ecoflap.core.bits import count_nonzero, pack_mask, same_bits
from ecoflap.core.budget.select import kept_only
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.events import Event, LayerPruned, Progress, Refined, Warned
from ecoflap.core.contracts.protocols import LossStatistic, is_of_inputs
from ecoflap.core.contracts.records import Mended, Statistics, TokenChoice
from ecoflap.core.errors import first_of
from ecoflap.core.forward.observation import Observed
from ecoflap.core.forward.paused import PausedForwards
from ecoflap.core.forward.replay import Replay
from ecoflap.core.guards.untouched import settings_put_back
from ecoflap.core.model.anatomy import Block, Layer
from ecoflap.core.planning.plan import Plan
from ecoflap.core.pruning.block_files import BlockFiles, FinishedLayer
from ecoflap.core.pruning.cumulative import held_within
from ecoflap.core.pruning.dense_blocks import DenseBlocks
from ecoflap.core.pruning.finished_weights import FinishedWeights
from ecoflap.core.pruning.masks import PackedMasks, unpack
from ecoflap.core.pruning.mended_blocks import mended_in
from ecoflap.core.pruning.pruner_answer import pruned_layer
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.refining.block_view import BlockView
from ecoflap.core.refining.dense_block import DenseBlock, targets_of
from ecoflap.core.refining.refine import refine_block
from ecoflap.core.refining.subblocks import Inside
from ecoflap.core.statistics.few_tokens import few_tokens, warning_of_few
from ecoflap.core.statistics.gram import Gram

_NOTHING_LEFT = "the pruner has set every weight that its mask keeps to 0"


class _Outcome(NamedTuple):
    """Holds what became of a layer that was pruned, for the processes that did not prune it.

    :param few: How many tokens its Gram matrix is of, where they are fewer than its inputs.
    """

    layer: FinishedLayer
    notes: tuple[str, ...]
    done: LayerPruned
    few: str | None
    mended: tuple[Mended, ...]


@dataclass(frozen=True)
class BlockwisePruning:
    """Prunes the planned layers of a model in place, block by block.

    Each layer is pruned by one of the processes that share the replay's batches, and taken over by the others.

    :param pruner_of: The pruner of each tower with planned layers.
    :param refiners_of: The refiners of each tower's blocks, in their order; a tower that is not named has none.
    :param dense: A replay of the same model in which each block is recorded before it is pruned; None where nobody asks
        what the dense model gave.
    :param tokens_of: Which tokens count in statistics, by tower; all real ones in a tower that is not named.
    :param sequential: Whether statistics are taken again before each group of a block's layers that share an input.
    :param left: The masks of the round before, within which this one's are; empty in the first.
    :param dense_weights: The weights that layers had before the first round, for pruners and refiners that ask for them
        or for what the dense model gave; empty where the model is dense.
    :param folder: Where each finished block is kept, so that a run that was cut off goes on behind it: its masks, and
        the weights of layers where the pruner changed more than that.
    :param finished_weights: Takes all weights of a finished block out of memory; None where the model is in memory.
    """

    replay: Replay
    plan: Plan
    pruner_of: Mapping[str, PartSpec]
    folder: Path
    emit: Callable[[Event], None]
    _: KW_ONLY
    refiners_of: Mapping[str, Sequence[PartSpec]] = field(default_factory=dict)
    dense: Replay | None = None
    sequential: bool = False
    tokens_of: Mapping[str, TokenChoice] = field(default_factory=dict)
    left: Mapping[str, Tensor] = field(default_factory=dict)
    dense_weights: Mapping[str, Tensor] = field(default_factory=dict)
    finished_weights: FinishedWeights | None = None

    def __call__(self) -> PackedMasks:
        """Prune every block that is not finished yet, and return all masks."""
        masks = PackedMasks()
        planned = [self._planned(block) for block in self.replay.blocks]
        self._keep_loss_gradients(planned)
        last = max(index for index, layers in enumerate(planned) if layers)
        total, done = sum(1 for layers in planned if layers), 0
        for index, layers in enumerate(planned[: last + 1]):
            if self.finished_weights is not None and index < last:
                self.finished_weights.read_ahead(self.replay.blocks[index + 1])
            is_finished = bool(layers) and self._files.is_there(index)
            with settings_put_back():  # a run that was cut off behind this block goes on without what was set in it
                inside = self._dense_blocks.advance(index, [] if is_finished else layers, self._refiners(index))
                if layers:
                    self._finish_block(index, layers, masks, inside)
                    done += 1
                    self.emit(Progress("prune", done, total, "blocks"))
            if self._needs_data(index, planned) and self.replay.finished <= index:
                self.replay.advance(index)
        return masks

    @settings_put_back()
    def _keep_loss_gradients(self, planned: Sequence[Sequence[Layer]]) -> None:
        """Take the loss' gradient of the dense model, before any block is pruned or taken over, where pruners want it.

        A run that goes on takes it anew: it is the same.
        """
        wanted: dict[type[Any], list[Layer]] = {}
        for index, layers in enumerate(planned):
            if layers and not self._files.is_there(index):
                for need in self._needs(index):
                    if issubclass(need, LossStatistic):
                        wanted.setdefault(need, []).extend(layers)
        if wanted:
            union = list({layer.name: layer for layers in wanted.values() for layer in layers}.values())
            self.replay.keep_loss_gradients(union, tuple(wanted), self.folder)

    def _planned(self, block: Block) -> list[Layer]:
        return [layer for layer in self.replay.anatomy.layers_of[block.name] if layer.name in self.plan.layers]

    def _needs_data(self, index: int, planned: Sequence[Sequence[Layer]]) -> bool:
        """Say whether a block behind this one is still to be pruned by what it sees."""
        later = [at for at, layers in enumerate(planned) if layers and at > index]
        return any((self._needs(at) or self._refiners(at)) and not self._files.is_there(at) for at in later)

    def _needs(self, index: int) -> tuple[type[Any], ...]:
        """Give the statistics that the pruner of a block asks for."""
        needs: tuple[type[Any], ...] = self.pruner_of[self.replay.blocks[index].tower].options.needs
        return needs

    def _refiners(self, index: int) -> Sequence[PartSpec]:
        """Give the refiners of a block. A single matrix outside the blocks has nothing that it could mend."""
        block = self.replay.blocks[index]
        return () if self.replay.anatomy.is_outside(block) else self.refiners_of.get(block.tower, ())

    @cached_property
    def _dense_blocks(self) -> DenseBlocks:
        return DenseBlocks(self.replay, self.dense, self.dense_weights)

    @cached_property
    def _files(self) -> BlockFiles:
        return BlockFiles(self.folder, self.plan, self.replay.ranks, self.finished_weights)

    def _finish_block(self, index: int, layers: Sequence[Layer], masks: PackedMasks, inside: Sequence[Inside]) -> None:
        """Prune and refine a block, or take it over from an earlier process.

        :param inside: What its sub-blocks returned in the dense model, call by call, where that is asked for.
        """
        block = self.replay.blocks[index]
        if self._files.is_there(index):
            finished = self._files.read(index, block, layers)
            for layer in layers:
                _put(masks, layer, finished[layer.name].bits)
                if self.finished_weights is None:  # else its weights were taken up with the file
                    _take_over(layer, finished[layer.name])
        else:
            dense = self._dense_blocks.block(index, layers, self._refiners(index), inside)
            if self.finished_weights is not None:
                self.finished_weights.take_into_memory(layers)
            changed = self._prune(index, layers, masks)
            changed = list(layers) if self._refine(index, layers, masks, dense) else changed
            self._files.write(index, block, masks, layers, changed)

    def _prune(self, index: int, layers: Sequence[Layer], masks: PackedMasks) -> list[Layer]:
        """Prune one block, and return the layers that are more than their mask on the old weight.

        Layers that share an input share what is noted of it: it is told of the first of them.
        """
        bits: dict[str, Tensor] = {}
        notes: set[str] = set()
        few: dict[str, str] = {}
        changed: set[str] = set()
        mended: list[tuple[LayerPruned, tuple[Mended, ...]]] = []
        for layer, outcome in self._pruned(index, layers):
            self._tell(layer, outcome, notes)
            mended.append((outcome.done, outcome.mended))
            bits[layer.name] = outcome.layer.bits
            notes.update(outcome.notes)
            few |= {layer.name: outcome.few} if outcome.few else {}
            changed |= {layer.name} if outcome.layer.weight is not None else set()
        for layer in layers:
            _put(masks, layer, bits[layer.name])
        for event in mended_in(self.replay.blocks[index].name, mended):
            self.emit(event)
        if few:
            self.emit(Warned(warning_of_few({layer.name: few[layer.name] for layer in layers if layer.name in few})))
        return [layer for layer in layers if layer.name in changed]

    def _pruned(self, index: int, layers: Sequence[Layer]) -> Iterator[tuple[Layer, _Outcome]]:
        """Prune the layers of a block, and yield what became of each as soon as that is known."""
        if self.sequential and any(map(is_of_inputs, self._needs(index))):
            yield from self._pruned_in_turn(index, layers)
        else:
            seen = self._seen(index, layers)
            self._warn_of_unfed(layers, seen)
            yield from self._prune_layers(index, layers, seen)

    def _pruned_in_turn(self, index: int, layers: Sequence[Layer]) -> Iterator[tuple[Layer, _Outcome]]:
        """Prune the layers that share an input together, and look at those behind them when they are pruned."""
        alike = self.replay.fed_alike(index, layers)
        self._warn_of_unfed(layers, alike)
        with self.replay.paused(index, self._needs(index), layers, alike, self._tokens(index)) as paused:
            for group in by_input(layers, alike):
                yield from self._prune_layers(index, group, self._seen(index, group, paused))
            if not self._refiners(index):  # which change what it gives
                self.replay.take_over(index, paused)

    def _tokens(self, index: int) -> TokenChoice:
        """Say which tokens count in the statistics of a block's layers."""
        return self.tokens_of.get(self.replay.blocks[index].tower, "real")

    def _seen(self, index: int, layers: Sequence[Layer], paused: PausedForwards | None = None) -> Observed:
        """Take the statistics that a block's pruner asks for, with the block as it is now."""
        needs, tower = self._needs(index), self.replay.blocks[index].tower
        if not needs:
            return Observed.of({}, layers, self.replay.ranks.size)
        with blaming(f"a statistic of the pruner {self.pruner_of[tower].use}"):
            return self.replay.observed(index, needs, layers, self._tokens(index), paused)

    def _prune_layers(self, index: int, layers: Sequence[Layer], seen: Observed) -> Iterator[tuple[Layer, _Outcome]]:
        """Prune some layers of a block, each by its owner: own ones first, then those of the others are taken over."""
        ranks = self.replay.ranks
        mine: dict[str, _Outcome] = {}
        for layer in layers:
            if seen.owners[layer.name] == ranks.rank:
                mine[layer.name] = self._prune_layer(index, layer, seen)
                yield layer, mine[layer.name]
        outcomes = {name: one for some in ranks.gather(mine) for name, one in some.items()}
        for layer in layers:
            if layer.name not in mine:
                _take_over(layer, outcomes[layer.name].layer)
                yield layer, outcomes[layer.name]

    def _prune_layer(self, index: int, layer: Layer, seen: Observed) -> _Outcome:
        """Prune one layer in place."""
        pruner = self.pruner_of[self.replay.blocks[index].tower]
        started = perf_counter()
        planned = self.plan.layers[layer.name]
        with self.replay.placement.as_precise().held([layer.parameter]):
            weight = layer.weight.data.contiguous()
            place = self.replay.place(index, layer)
            statistics = self._with_dense_weight(layer, seen.seen.get(layer.name, Statistics()), weight, pruner)
            pruned = pruned_layer(weight, planned, pruner, statistics, place, self.replay.seed)
            if layer.name in self.left:
                left = layer.oriented(self.left[layer.name]).to(weight.device)
                pruned = held_within(pruned, weight, left, pruner.use)
            more = not same_bits(pruned.weight, kept_only(weight, pruned.mask))
        layer.weight.data.copy_(pruned.weight)
        zeros = planned.keep - count_nonzero(pruned.weight)
        nothing_left = (_NOTHING_LEFT,) if more and zeros == planned.keep > 0 else ()
        finished = FinishedLayer(pack_mask(layer.as_stored(pruned.mask)), layer.weight.data if more else None)
        done = LayerPruned(layer.name, planned.keep, layer.size, zeros, perf_counter() - started)
        few = next((few_tokens(one) for one in statistics.values() if isinstance(one, Gram)), None)
        return _Outcome(finished, (*pruned.notes, *nothing_left), done, few, pruned.mended)

    def _with_dense_weight(self, layer: Layer, seen: Statistics, weight: Tensor, pruner: PartSpec) -> Statistics:
        """Give a layer's statistics with its dense weight, where the pruner looks at that."""
        if not pruner.options.dense_weights:
            return seen
        dense = self.dense_weights[layer.name].to(weight) if layer.name in self.dense_weights else weight
        return seen.beside(dense)

    def _tell(self, layer: Layer, outcome: _Outcome, told: Container[str]) -> None:
        """Tell that a layer was pruned, and what was noted of it that is not told yet."""
        for note in [note for note in outcome.notes if note not in told]:
            self.emit(Warned(f"{layer.name}: {note}"))
        self.emit(outcome.done)

    def _refine(self, index: int, layers: Sequence[Layer], masks: PackedMasks, dense: DenseBlock) -> bool:
        """Let the refiners of a pruned block train its kept weights; say whether any of them did."""
        oriented = {layer.name: layer.oriented(masks[layer.name]) for layer in layers}
        done: list[Refined] = []
        refiners = self._refiners(index)
        replay = self.replay.with_all_batches() if refiners else self.replay
        for number, refiner in enumerate(refiners):
            asked = dense.of(targets_of([refiner.options]))
            view = BlockView(replay, index, layers, oriented, asked, refiner.options.target, self.replay.ranks)
            with view.opened():
                done += refine_block(view, refiner, number, self.emit)
        return any(one.is_kept for one in done)

    def _warn_of_unfed(self, layers: Sequence[Layer], seen: Observed) -> None:
        """Name the experts that no token reached: the pruner has nothing but their weights to go by."""
        unfed = [layer.name for layer in layers if layer.name in seen.seen and not seen.seen[layer.name].is_fed]
        if unfed:
            sentence = (
                f"the router sent no calibration token to {len(unfed)} matrices of experts, which are pruned by their "
                f"weights alone: {first_of(unfed, 6)}. More or other calibration data may reach them"
            )
            whole = unfed_wholly(layers, unfed)
            if whole:
                sentence += (
                    f". Of {first_of(whole, 2)} none was reached: a model that takes experts by an index of its own "
                    f"(`weight[chosen]`), or multiplies with a copy of theirs, does so unseen"
                )
            self.emit(Warned(sentence))


def unfed_wholly(layers: Sequence[Layer], unfed: Sequence[str]) -> list[str]:
    """Name the parameters of which each part is an expert's and none was reached."""
    parts: dict[Hashable, list[str]] = {}
    for layer in layers:
        if layer.layout == "routed" and layer.part is not None:
            parts.setdefault(_matrix_of_experts(layer), []).append(layer.name)
    return [names[0].split("[")[0] for names in parts.values() if set(names) <= set(unfed)]


def _matrix_of_experts(layer: Layer) -> Hashable:
    """Say what is the same of one matrix of all experts: what the adapter calls it, or the parameter it is part of."""
    return layer.of_experts or (layer.module, layer.attribute)


def by_input(layers: Sequence[Layer], seen: Observed) -> list[list[Layer]]:
    """Group a block's layers that share an input, in the order they run.

    Of experts, whose inputs are each one's own, those are a group that are the same matrix of all of them: parts of one
    parameter, or what the adapter calls one matrix.
    """
    groups: dict[Hashable, list[Layer]] = {}
    for layer in layers:
        key = _matrix_of_experts(layer) if layer.layout == "routed" else seen.inputs[layer.name]
        groups.setdefault(key, []).append(layer)
    return list(groups.values())


def _put(masks: PackedMasks, layer: Layer, bits: UInt8[Tensor, "bytes"]) -> None:
    masks.put(layer.name, bits, tuple(layer.as_stored(layer.weight).shape))


def _take_over(layer: Layer, finished: FinishedLayer) -> None:
    """Give a layer the weight that another process has found."""
    old = layer.weight.data
    mask = layer.oriented(unpack(finished.bits, tuple(layer.as_stored(old).shape)))
    old.copy_(kept_only(old, mask.to(old.device)) if finished.weight is None else finished.weight)
