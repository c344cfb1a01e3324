"""Budgets: pools, granularities, patterns, and what an allocator from anywhere may not do."""

from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from ecoflap import Anatomy, Block, Layer, Tower
from ecoflap.core.budget.counts import Keep, Pattern
from ecoflap.core.budget.curves import Curve
from ecoflap.core.contracts.records import Estimate
from ecoflap.core.errors import EcoflapError, ModelError
from ecoflap.core.planning.plan import make_plan, pools_of, scored_in
from ecoflap.core.planning.plan_file import read_plan, write_plan
from ecoflap.core.planning.scores import Scores
from ecoflap.plugins.allocators.ecoflap import Ecoflap
from ecoflap.plugins.allocators.owl import Owl
from ecoflap.plugins.allocators.uniform import Uniform


@pytest.fixture
def anatomy():
    """Three towers; the middle one is kept by default."""
    shapes = {"vision": (8, 6), "qformer": (4, 4), "language": (5, 7)}

    def tower(name):
        blocks = tuple(Block(f"{name}.{i}", nn.Identity(), name) for i in range(2))
        return Tower(name, blocks, prunable=name != "qformer")

    def layers(block):
        out, inputs = shapes[block.tower]
        return [Layer(f"{block.name}.{part}", nn.Linear(inputs, out)) for part in ("x", "y")]

    return Anatomy.of([tower(name) for name in shapes], layers)


def scored(anatomy, unit="layer"):
    names = [layer.name if unit == "layer" else block.name for block, layer in anatomy.layers()]
    return Scores(unit, "sum", {name: float(at + 1) for at, name in enumerate(dict.fromkeys(names))})


def test_towers_share_one_budget_unless_they_have_their_own(anatomy):
    shared = pools_of(anatomy, Fraction(1, 2), {}, [])
    assert [(pool.name, pool.size) for pool in shared] == [("model", 4 * 48 + 4 * 35)]
    own = pools_of(anatomy, Fraction(1, 2), {"vision": Fraction(1, 4), "qformer": None}, ["language"])
    assert [(pool.name, pool.sparsity, pool.size) for pool in own] == [
        ("model", Fraction(1, 2), 4 * 16),
        ("vision", Fraction(1, 4), 4 * 48),
    ]
    assert pools_of(anatomy, Fraction(1, 2), {}, ["vision", "language"]) == []


@pytest.mark.parametrize("granularity", ["layer", "block", "tower", "model"])
@pytest.mark.parametrize("sparsity", [Fraction(1, 2), Fraction(7, 10), Fraction(1, 3), Fraction(0)])
def test_every_pool_sums_exactly(anatomy, granularity, sparsity):
    pools = pools_of(anatomy, sparsity, {"vision": Fraction(1, 5)}, [])
    plan = make_plan(pools, Ecoflap(), granularity, scored(anatomy))
    for pool in pools:
        kept = sum(plan.layers[layer.name].keep for _, layer in pool.layers)
        assert kept == int(pool.size * (1 - pool.sparsity))
    for name, group in plan.groups.items():
        inside = [layer for layer in plan.layers.values() if layer.group == name]
        assert (sum(layer.keep for layer in inside), sum(layer.size for layer in inside)) == (group.keep, group.size)
    assert len(plan.groups) == {"layer": 8, "block": 4, "tower": 2, "model": 2}[granularity]


@given(
    shares=st.lists(st.integers(1, 99), min_size=2, max_size=4, unique=True).map(sorted),
    granularity=st.sampled_from(["layer", "block", "tower", "model"]),
    scores=st.lists(st.lists(st.integers(0, 99), min_size=8, max_size=8), min_size=4, max_size=4),
    allocator=st.sampled_from([Uniform(), Ecoflap(), Ecoflap(1.0), Owl(0.2)]),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_round_keeps_no_more_of_any_layer_than_the_one_before(anatomy, shares, granularity, scores, allocator):
    """Whatever the scores of each round are, counts are exact, and no layer gets back what it lost."""
    before, names = None, [layer.name for _, layer in anatomy.layers()]
    for share, values in zip(shares, scores, strict=False):
        pools = pools_of(anatomy, Fraction(share, 100), {}, [])
        found = Scores("layer", "sum", dict(zip(names, map(float, [*values, *values]), strict=False)))
        plan = make_plan(pools, allocator, granularity, None if allocator == Uniform() else found, before)
        assert plan.keep == plan.size * (100 - share) // 100
        if before is not None:
            assert all(layer.keep <= before.layers[name].keep for name, layer in plan.layers.items())
        before = plan


def test_more_score_keeps_more_within_a_shared_budget(anatomy):
    pools = pools_of(anatomy, Fraction(1, 2), {}, [])
    plan = make_plan(pools, Ecoflap(), "tower", scored(anatomy))
    shares = plan.sparsity_by_tower()
    assert shares["language"] < 0.5 < shares["vision"]
    assert plan.keep == plan.size // 2


def test_a_pattern_of_one_tower_beside_a_shared_sparsity(anatomy, tmp_path):
    pools = pools_of(anatomy, Fraction(1, 2), {"vision": Pattern(1, 2)}, [])
    scores = Scores("layer", "sum", {n: s for n, s in scored(anatomy).values.items() if "vision" not in n})
    plan = make_plan(pools, Ecoflap(), "block", scores)
    assert plan.layers["vision.0.x"].budget == Pattern(1, 2)
    assert plan.layers["vision.0.x"].keep == 24
    assert plan.groups["vision.0.x"].score is None
    assert isinstance(plan.layers["language.0.x"].budget, Keep)
    path = tmp_path / "plan.json"
    write_plan(path, plan, {}, tmp_path / "scores.jsonl")
    assert read_plan(path) == plan


def test_a_pattern_that_does_not_divide_the_inputs_is_refused_by_layer(anatomy):
    pools = pools_of(anatomy, Pattern(2, 4), {}, [])
    with pytest.raises(ModelError, match=r"^vision\.0\.x: its 6 inputs cannot be divided into runs of 4"):
        make_plan(pools, Uniform(), "layer", None)


def test_scores_of_blocks_count_once_and_errors_are_finite_or_none(anatomy):
    pools = pools_of(anatomy, Fraction(1, 2), {}, [])
    blocks = {block.name: Estimate([float(at), float(at) + 2]) for at, block in enumerate(anatomy.blocks)}
    plan = make_plan(pools, Ecoflap(), "block", Scores("block", "sum", blocks))
    assert plan.groups["vision.1"].score == 2.0
    assert plan.groups["vision.1"].standard_error == 1.0
    single = {name: Estimate([1.0]) for name in blocks}
    plan = make_plan(pools, Ecoflap(), "block", Scores("block", "sum", single))
    assert {group.standard_error for group in plan.groups.values()} == {None}


def test_a_group_has_the_curve_of_its_layers_and_its_plan_is_read_back(anatomy, tmp_path):
    seen = []

    class Uniformly:
        def __call__(self, groups, keep):
            seen.extend(groups)
            return Uniform()(groups, keep)

    names = [layer.name for block, layer in anatomy.layers() if block.tower != "qformer"]
    curves = {name: Curve((0.4, 0.75), (float(at), 2.0 * at)) for at, name in enumerate(names)}
    pools = pools_of(anatomy, Fraction(7, 10), {}, [])
    plan = make_plan(pools, Uniformly(), "block", Scores("layer", "sum", curves))
    assert [(group.block, group.score) for group in seen] == [(name, 0.0) for name in plan.groups]
    for name, group in plan.groups.items():
        first = names.index(f"{name}.x")
        assert group.curve == Curve((0.4, 0.75), (2.0 * first + 1, 4.0 * first + 2))
        assert (group.score, group.standard_error) == (4.0 * first + 2, None)
    write_plan(tmp_path / "plan.json", plan, {}, tmp_path / "none")
    assert read_plan(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        (lambda groups, keep: [group.size for group in groups], "keeps 332 weights in 2 groups; it was asked for 166"),
        (lambda groups, keep: [keep], "keeps 166 weights in 1 groups; it was asked for 166 in 2"),
        (lambda groups, keep: [keep + 1, -1], "keeps -1 of the 140 weights of language, which keeps 0 to 140"),
        (lambda groups, keep: [keep / 2] * 2, r"Wrong answered \[83.0, 83.0\]; a list of Python's whole numbers"),
    ],
)  # fmt: skip
def test_an_allocator_that_breaks_the_budget_is_refused(anatomy, counts, told):
    class Wrong:
        def __call__(self, groups, keep):
            return counts(groups, keep)

    with pytest.raises(EcoflapError, match=told):
        make_plan(pools_of(anatomy, Fraction(1, 2), {}, []), Wrong(), "tower", scored(anatomy))


def test_an_allocator_may_do_what_it_likes_with_its_list_of_groups(anatomy):
    class Clears:
        def __call__(self, groups, keep):
            kept = Uniform()(groups, keep)
            groups.clear()
            return kept

    pools = pools_of(anatomy, Fraction(1, 2), {}, [])
    expected = make_plan(pools, Uniform(), "tower", scored(anatomy))
    assert make_plan(pools, Clears(), "tower", scored(anatomy)) == expected


def test_what_is_scored_is_neither_kept_nor_of_a_pattern(anatomy):
    def towers(sparsity, own, kept):
        return [tower.name for tower in scored_in(anatomy, pools_of(anatomy, sparsity, own, kept)).towers]

    half = Fraction(1, 2)
    assert towers(half, {}, []) == ["vision", "language"]  # the Q-Former is kept by default
    assert towers(half, {"qformer": None}, ["vision"]) == ["qformer", "language"]
    assert towers(half, {"vision": Pattern(1, 2)}, []) == ["language"]
    assert towers(Pattern(2, 4), {}, []) == []
    assert towers(Pattern(2, 4), {"vision": half}, []) == ["vision"]
