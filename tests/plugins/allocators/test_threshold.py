"""One threshold for all weights, against a sort of all numbers."""

from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_contexts import context

from ecoflap import EcoflapError, Group, WeightScores
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.plugins.allocators.threshold import Threshold

FEW = st.sampled_from([0.0, -0.0, 0.5, 1.0, 1.0000001, 3e-45, 1e30])
ROWS = st.lists(st.lists(FEW | st.floats(0, 10, width=32), min_size=1, max_size=30), min_size=1, max_size=6)


@pytest.fixture(scope="session")
def group(tmp_path_factory):
    """``group(rows)``: a group with a layer for each list of numbers."""
    folder, number = tmp_path_factory.mktemp("numbers"), count()

    def group(*rows, name="", **keys):
        found = []
        for row in rows:
            file = folder / f"{next(number)}.safetensors"
            found.append(WeightScores.written(file, "w", torch.tensor([row], dtype=torch.float32)))
        layers, size = tuple(f"{name}.{i}" for i in range(len(rows))), sum(map(len, rows))
        return Group(name, size, 0.0, layers, weight_scores=tuple(found), **keys)

    return group


def sorted_down(rows):
    """All numbers, largest first, each with the place of its row; in float64, which holds any float32."""
    values = np.concatenate([np.asarray(row, np.float32).astype(np.float64) for row in rows])
    places = np.repeat(np.arange(len(rows)), list(map(len, rows)))
    order = np.argsort(-values, kind="stable")
    return values[order], places[order]


@settings(max_examples=60)
@given(ROWS, st.floats(0, 1))
def test_the_largest_of_all_are_counted_where_they_are(group, rows, share):
    groups = [group(row, name=str(at)) for at, row in enumerate(rows)]
    keep = int(share * sum(map(len, rows)))
    counts = Threshold()(groups, keep)
    assert sum(counts) == keep
    values, places = sorted_down(rows)
    threshold = values[keep - 1] if keep else np.inf
    above, ties = (np.bincount(places[hit], minlength=len(rows)) for hit in (values > threshold, values == threshold))
    for at, counted in enumerate(counts):  # of those that equal it each group has a share by how many it has
        share_of_ties = (keep - above.sum()) * ties[at] / max(ties.sum(), 1)
        assert above[at] <= counted <= above[at] + ties[at]
        assert abs(counted - above[at] - share_of_ties) < 1


@settings(max_examples=60)
@given(ROWS, st.data())
def test_caps_and_floors_hold_and_the_sum_kept_is_the_largest(group, rows, data):
    """Against the greedy choice: all floors first, then the largest of what may still be kept."""
    rows = [[*row, 0.25] for row in rows]
    caps = [data.draw(st.integers(0, len(row))) for row in rows]
    floors = [data.draw(st.integers(0, cap)) for cap in caps]
    keep = data.draw(st.integers(sum(floors), sum(caps)))
    groups = [group(row, name=str(at), cap=caps[at], floor=floors[at]) for at, row in enumerate(rows)]
    counts = Threshold()(groups, keep)
    assert sum(counts) == keep
    assert all(low <= counted <= high for low, counted, high in zip(floors, counts, caps, strict=True))

    def worth(kept):
        return sum(sum(sorted(np.float32(row).tolist(), reverse=True)[:n]) for row, n in zip(rows, kept, strict=True))

    best, left = list(floors), keep - sum(floors)
    seen = [0] * len(rows)
    for _, place in zip(*sorted_down(rows), strict=True):
        seen[place] += 1
        if left and floors[place] < seen[place] <= caps[place]:
            best[place] += 1
            left -= 1
    assert worth(counts) == pytest.approx(worth(best), rel=1e-12)


def test_layers_of_a_group_are_counted_together(group):
    one, other = group([9.0, 1.0], [8.0, 2.0], name="a"), group([3.0, 2.5], name="b")
    assert Threshold()([one, other], 3) == [2, 1]
    assert Threshold()([one, other], 5) == [3, 2]


def test_ties_go_by_share_and_then_by_name(group):
    groups = [group([1.0] * 4, name="b"), group([1.0] * 4, name="a"), group([2.0, 0.0], name="c")]
    assert Threshold()(groups, 5) == [2, 2, 1]
    assert Threshold()(groups, 4) == [1, 2, 1]


def test_each_tower_keeps_the_same_share_by_a_threshold_of_its_own(group):
    groups = [
        group([100.0, 50.0, 10.0, 5.0], name="v0", tower="vision"), group([60.0, 1.0], name="v1", tower="vision"),
        group([0.1, 0.2, 0.3], name="l0", tower="language"), group([0.4, 0.5, 0.6], name="l1", tower="language"),
    ]  # fmt: skip
    assert Threshold()(groups, 6) == [4, 2, 0, 0]
    assert Threshold("tower")(groups, 6) == [2, 1, 0, 3]
    assert sum(Threshold("tower")(groups, 7)) == 7  # ⌊N_t·(1 − s)⌋ of each tower, and the weight that is left over


def test_towers_that_are_named_together_share_a_threshold(group):
    groups = [
        group([100.0, 50.0], name="v", tower="vision"), group([9.0, 8.0], name="e", tower="encoder"),
        group([1.0, 2.0], name="d", tower="decoder"), group([5.0, 6.0], name="q", tower="query"),
    ]  # fmt: skip
    assert Threshold("tower")(groups, 4) == [1, 1, 1, 1]
    assert Threshold((("encoder", "decoder"),))(groups, 4) == [1, 2, 0, 1]
    assert Threshold((("vision", "query"), ("encoder", "decoder")))(groups, 4) == [2, 2, 0, 0]
    with pytest.raises(EcoflapError, match="each names encoder twice; a tower has one threshold"):
        Threshold((("encoder", "decoder"), ("encoder",)))


def test_a_plan_hears_of_towers_that_the_model_lacks(pico_llama):
    model = pico_llama()
    anatomy = Anatomy.of(LlamaAdapter().towers(model), LlamaAdapter().layers)
    (problem,) = Threshold((("langage", "language"),)).problems(context(SimpleNamespace(score=None), anatomy))
    assert problem == "each: no tower named 'langage'. Did you mean 'language'? Known: language."


def test_without_numbers_it_says_of_which_group(group):
    with pytest.raises(EcoflapError, match="threshold needs a number of each weight, and has none of x"):
        Threshold()([group([1.0], name="a"), Group("x", 3, 1.0)], 2)


def test_a_plan_hears_of_groups_of_several_towers():
    def said(each, granularity):
        return list(Threshold(each).problems(context(SimpleNamespace(score=SimpleNamespace(granularity=granularity)))))

    assert said("model", "model") == said("tower", "block") == []
    (problem,) = said("tower", "model")
    assert problem.startswith("each tower has a threshold, and with score.granularity: model all towers are one")
