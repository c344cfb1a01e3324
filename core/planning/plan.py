"""The plan: how many weights each layer keeps, and why. It sums exactly to what the recipe asks."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property
from hashlib import sha256
from math import inf, isfinite
from typing import Any

from ecoflap.core.budget.counts import Budget, Group, Keep, Pattern, keep_count
from ecoflap.core.budget.curves import Curve
from ecoflap.core.budget.water_fill import split
from ecoflap.core.budget.weight_scores import WeightScores
from ecoflap.core.contracts.answers import shown
from ecoflap.core.contracts.protocols import Allocator
from ecoflap.core.contracts.records import Estimate, Granularity, TokenChoice
from ecoflap.core.errors import EcoflapError, ModelError
from ecoflap.core.guards.untouched import settings_put_back
from ecoflap.core.model.anatomy import Anatomy, Block, Layer
from ecoflap.core.planning.scores import Scores
from ecoflap.core.seeding import seed_for, seeded

SHARED = "model"
"""The name of the pool of all layers that have no sparsity of their own."""


@dataclass(frozen=True)
class Pool:
    """Layers that share one budget: those of all towers together, or of a tower with a sparsity of its own.

    :param sparsity: The share that goes, as an exact fraction; or the pattern every layer gets.
    """

    name: str
    sparsity: Fraction | Pattern
    layers: tuple[tuple[Block, Layer], ...]

    @property
    def size(self) -> int:
        """Count the weights of its layers."""
        return sum(layer.size for _, layer in self.layers)


@dataclass(frozen=True)
class PlannedLayer:
    """The budget of one layer.

    :param size: How many weights it has.
    :param keep: How many of them stay.
    :param group: The group whose sparsity it shares.
    :param pattern: ``n:m`` where the layer keeps a pattern; ``keep`` is then what that comes to.
    """

    size: int
    keep: int
    tower: str
    block: str
    group: str
    pattern: str | None = None

    @property
    def budget(self) -> Budget:
        """Give what a pruner is asked for."""
        return Pattern.parse(self.pattern) if self.pattern else Keep(self.keep)


@dataclass(frozen=True)
class PlannedGroup:
    """The share of the budget that one group has.

    :param tower: Empty where its layers are of several towers.
    :param score: None where nothing was scored; of a curve the rise at the level nearest the pool's sparsity; of
        numbers of single weights what their sums come to.
    :param standard_error: That of the score, where the scorer gave the terms that it is a mean of.
    :param curve: How the loss rises with the group's sparsity, where the scorer gave curves.
    """

    size: int
    keep: int
    tower: str
    score: float | None = None
    standard_error: float | None = None
    curve: Curve | None = None


@dataclass(frozen=True)
class Plan:
    """The budget of every layer and the share of every group, by name, in the order the model runs.

    :param tokens: Which tokens count in statistics of layers' inputs, where several choices were tried; None where the
        recipe says it.
    """

    layers: Mapping[str, PlannedLayer]
    groups: Mapping[str, PlannedGroup]
    tokens: TokenChoice | None = None

    @property
    def size(self) -> int:
        """Count the weights of all planned layers."""
        return sum(layer.size for layer in self.layers.values())

    @property
    def keep(self) -> int:
        """Count those of them that stay."""
        return sum(layer.keep for layer in self.layers.values())

    @property
    def sparsity(self) -> float:
        """Compute the share of them that goes."""
        return self._sparsity(list(self.layers.values()))

    def sparsity_by_tower(self) -> dict[str, float]:
        """Compute that share for each tower with planned layers, in the order in which the model runs them."""
        towers = dict.fromkeys(layer.tower for layer in self.layers.values())
        return {tower: self._sparsity([x for x in self.layers.values() if x.tower == tower]) for tower in towers}

    @staticmethod
    def _sparsity(layers: Sequence[PlannedLayer]) -> float:
        return 1 - sum(layer.keep for layer in layers) / sum(layer.size for layer in layers)

    @cached_property
    def digest(self) -> str:
        """Tell the plan from any other: a SHA-256 of all that it says."""
        return sha256(json.dumps(self.dump()).encode()).hexdigest()

    def dump(self) -> dict[str, Any]:
        """Give what ``plan.json`` holds; ``read_plan`` makes a plan of it again."""
        return {
            "version": 1,
            "size": self.size,
            "keep": self.keep,
            "sparsity": self.sparsity,
            "towers": self.sparsity_by_tower(),
            "groups": {name: asdict(group) for name, group in self.groups.items()},
            "layers": {name: asdict(layer) for name, layer in self.layers.items()},
            **({"tokens": self.tokens} if self.tokens else {}),
        }


def make_plan(
    pools: Sequence[Pool],
    allocator: Allocator,
    granularity: Granularity,
    scores: Scores | None,
    before: Plan | None = None,
    seed: int = 0,
) -> Plan:
    """Make the plan of each pool on its own.

    :param scores: None for an allocator that looks at none.
    :param before: The plan of the round before, of which no layer keeps more: that is the cap of each group.
    :param seed: Of what the allocator draws from the global generators: the recipe's.
    """
    layers: dict[str, PlannedLayer] = {}
    groups: dict[str, PlannedGroup] = {}
    with settings_put_back(), seeded(seed_for(seed, "allocate")):
        for pool in pools:
            for name, members, group in _budgeted(pool, allocator, granularity, scores, before):
                groups[name] = group
                layers |= members
    return Plan(layers, groups)


def _budgeted(
    pool: Pool, allocator: Allocator, granularity: Granularity, scores: Scores | None, before: Plan | None
) -> Iterator[tuple[str, dict[str, PlannedLayer], PlannedGroup]]:
    if isinstance(pool.sparsity, Pattern):
        yield from _patterned(pool, pool.sparsity)
        return
    members = _members(pool, granularity)
    groups = [_group(name, inside, scores) for name, inside in members.items()]
    if before is not None:
        groups = [replace(group, cap=sum(before.layers[name].keep for name in group.layers)) for group in groups]
    keep = keep_count(pool.size, pool.sparsity)
    kept = _checked_keeps(type(allocator).__name__, groups, keep, allocator(list(groups), keep))
    for group, count in zip(groups, kept, strict=True):
        inside = members[group.name]
        sizes, names = [layer.size for _, layer in inside], [layer.name for _, layer in inside]
        most = sizes if before is None else [before.layers[name].keep for name in names]
        counts = split(count, sizes, names, most)
        planned = {
            layer.name: PlannedLayer(layer.size, layer_keep, block.tower, block.name, group.name)
            for (block, layer), layer_keep in zip(inside, counts, strict=True)
        }
        yield group.name, planned, _planned_group(group, count, pool.sparsity, is_scored=scores is not None)


def _planned_group(group: Group, count: int, sparsity: Fraction, *, is_scored: bool) -> PlannedGroup:
    if group.curve is not None:
        told = group.curve.nearest(float(sparsity))
        return PlannedGroup(group.size, count, group.tower, told, curve=group.curve)
    score = float(group.score) if is_scored else None
    error = group.score.standard_error if isinstance(group.score, Estimate) else inf
    # Nothing is known of a single term's standard error, and JSON knows no infinity.
    return PlannedGroup(group.size, count, group.tower, score, error if isfinite(error) else None)


def _patterned(pool: Pool, pattern: Pattern) -> Iterator[tuple[str, dict[str, PlannedLayer], PlannedGroup]]:
    for block, layer in pool.layers:
        if layer.shape[1] % pattern.m:
            raise ModelError(f"{layer.name}: its {layer.shape[1]} inputs cannot be divided into runs of {pattern.m}")
        keep = pattern.keep_of(layer.size)
        planned = PlannedLayer(layer.size, keep, block.tower, block.name, layer.name, f"{pattern.n}:{pattern.m}")
        yield layer.name, {layer.name: planned}, PlannedGroup(layer.size, keep, block.tower)


def _members(pool: Pool, granularity: Granularity) -> dict[str, list[tuple[Block, Layer]]]:
    groups: dict[str, list[tuple[Block, Layer]]] = {}
    for block, layer in pool.layers:
        name = {"layer": layer.name, "block": block.name, "tower": block.tower, "model": pool.name}[granularity]
        groups.setdefault(name, []).append((block, layer))
    return groups


def _group(name: str, inside: Sequence[tuple[Block, Layer]], scores: Scores | None) -> Group:
    size = sum(layer.size for _, layer in inside)
    layers = tuple(layer.name for _, layer in inside)
    tower, block = (_only({getattr(block, key) for block, _ in inside}) for key in ("tower", "name"))
    score = scores.of(_scored_sizes(inside, scores)) if scores else 0.0
    if isinstance(score, Curve):
        return Group(name, size, 0.0, layers, tower=tower, block=block, curve=score)
    found = (scores.values.get(name) for name in layers) if scores else ()
    numbers = tuple(one for one in found if isinstance(one, WeightScores))
    return Group(name, size, score, layers, tower=tower, block=block, weight_scores=numbers)


def _only(names: set[str]) -> str:
    """Give the one name there is; empty where there are several."""
    return names.pop() if len(names) == 1 else ""


def _scored_sizes(inside: Sequence[tuple[Block, Layer]], scores: Scores) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for block, layer in inside:
        name = layer.name if scores.unit == "layer" else block.name
        sizes[name] = sizes.get(name, 0) + layer.size
    return sizes


def _checked_keeps(name: str, groups: Sequence[Group], keep: int, kept: Sequence[Any]) -> Sequence[int]:
    """Hold an allocator to its contract: whole numbers within each group's bounds, which sum to the budget."""
    if not isinstance(kept, Sequence) or not all(isinstance(count, int) for count in kept):
        raise EcoflapError(
            f"the allocator {name} answered {shown(kept)}; a list of Python's whole numbers is wanted, as "
            f"[int(count) for count in …] and a tensor's or an array's .tolist() are"
        )
    if len(kept) != len(groups) or sum(kept) != keep:
        raise EcoflapError(
            f"the allocator {name} keeps {shown(sum(kept))} weights in {len(kept)} groups; it was asked for {keep} in "
            f"{len(groups)}"
        )
    for group, count in zip(groups, kept, strict=True):
        if not group.floor <= count <= group.most:
            raise EcoflapError(
                f"the allocator {name} keeps {shown(count)} of the {group.size} weights of {group.name}, which keeps "
                f"{group.floor} to {group.most}"
            )
    return kept


def pools_of(
    anatomy: Anatomy, sparsity: Fraction | Pattern, own: Mapping[str, Fraction | Pattern | None], kept: Sequence[str]
) -> list[Pool]:
    """Say which layers share which budget.

    :param sparsity: The shared budget's.
    :param own: Towers named by the recipe, with their own sparsity or None to share. Naming one that is kept by default
        includes it.
    :param kept: Towers the recipe keeps whole.
    """
    shared: list[tuple[Block, Layer]] = []
    pools: list[Pool] = []
    for tower in anatomy.towers:
        if tower.name in kept or not (tower.prunable or tower.name in own):
            continue
        layers = list(anatomy.layers(tower.blocks))
        tower_sparsity = own.get(tower.name)
        if tower_sparsity is None:
            shared += layers
        else:
            pools.append(Pool(tower.name, tower_sparsity, tuple(layers)))
    return [Pool(SHARED, sparsity, tuple(shared)), *pools] if shared else pools


def scored_in(anatomy: Anatomy, pools: Iterable[Pool]) -> Anatomy:
    """Give the anatomy of the towers whose budgets scores divide: of none that is kept, or that has a pattern."""
    divided = [pool for pool in pools if not isinstance(pool.sparsity, Pattern)]
    blocks = {block.name for pool in divided for block, _ in pool.layers}
    towers = tuple(tower for tower in anatomy.towers if tower.blocks[0].name in blocks)
    return Anatomy(towers, anatomy.layers_of)
