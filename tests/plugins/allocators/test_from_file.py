import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealed_by_hand import write_sealed

from ecoflap.core.budget.counts import Group, keep_count
from ecoflap.core.errors import EcoflapError
from ecoflap.plugins.allocators.from_file import FromFile, _sparsity_that_leaves, ecoflap_register_allocators

PLAN = {
    "version": 1,
    "sparsity": 0.5,
    "kept": 12,
    "size": 24,
    "layers": {
        "layers.0.q": {"size": 8, "keep": 3, "group": "layers.0"},
        "layers.0.k": {"size": 8, "keep": 4, "group": "layers.0"},
        "layers.1.q": {"size": 8, "keep": 5, "group": "layers.1"},
    },
}
GROUPS = [Group("layers.0", 16, 0.0, ("layers.0.q", "layers.0.k")), Group("layers.1", 8, 0.0, ("layers.1.q",))]


@pytest.fixture
def plan(tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(PLAN))
    return file


def test_is_offered():
    assert ecoflap_register_allocators() == {"from_file": FromFile}
    assert FromFile.takes is None


def test_a_group_keeps_what_its_layers_keep(plan):
    assert FromFile(plan)(GROUPS, 12) == [7, 5]


def test_a_run_folder_will_do(plan):
    write_sealed(plan, PLAN)
    assert FromFile(plan.parent)(GROUPS, 12) == [7, 5]
    assert FromFile(plan)(GROUPS, 12) == [7, 5]


def test_a_plan_of_a_run_is_held_to_its_seal(plan):
    with pytest.raises(EcoflapError, match=r"plan\.json: its last line should hold a seal, and does not"):
        FromFile(plan.parent)(GROUPS, 12)
    write_sealed(plan, PLAN)
    plan.write_text(plan.read_text().replace('"keep": 3', '"keep": 4'))
    for path in (plan, plan.parent):
        with pytest.raises(EcoflapError, match=r"plan\.json:9: this line is not what was written .* take its seal out"):
            FromFile(path)(GROUPS, 12)


def test_a_group_of_one_layer_by_its_name(plan):
    assert FromFile(plan)([Group("layers.0.k", 8, 0.0)], 4) == [4]


def test_no_such_file(tmp_path):
    with pytest.raises(EcoflapError, match=r"nowhere.*no such file"):
        FromFile(tmp_path / "nowhere")(GROUPS, 12)
    with pytest.raises(EcoflapError, match=r"plan\.json: no such file"):
        FromFile(tmp_path)(GROUPS, 12)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"layers": 3}', "\x00"],
)
def test_what_is_no_plan(plan, text):
    plan.write_text(text)
    with pytest.raises(EcoflapError, match=r"plan\.json.*plan"):
        FromFile(plan)(GROUPS, 12)


@pytest.mark.parametrize("entry", [3, *({"size": 8, "keep": keep} for keep in (1.5, "1", None)), {"size": 8}])
def test_a_layer_without_whole_numbers_is_named(plan, entry):
    layers = {**PLAN["layers"], "layers.1.q": entry}
    plan.write_text(json.dumps({"layers": layers}))
    with pytest.raises(EcoflapError, match=r"plan\.json: of layers\.1\.q it does not say by whole numbers"):
        FromFile(plan)(GROUPS, 12)


def test_every_missing_layer_is_named_with_the_nearest(plan):
    groups = [Group("x", 16, 0.0, ("layers.0.qq", "layers.0.k")), Group("y", 8, 0.0, ("layers.7.q",))]
    with pytest.raises(EcoflapError, match=r"(?s)2 problems.*'layers\.0\.qq'.*'layers\.0\.q'\?.*'layers\.7\.q'"):
        FromFile(plan)(groups, 12)


def test_other_sizes(plan):
    with pytest.raises(EcoflapError, match=r"layers\.1\.q has 8 weights there and 9"):
        FromFile(plan)([Group("layers.1", 9, 0.0, ("layers.1.q",))], 5)


def test_it_says_what_it_keeps_where_it_can_tell(plan, tmp_path):
    assert FromFile(plan).keeps(["layers.0.q", "layers.1.q"]) == 8
    assert FromFile(plan).keeps(["layers.0.q", "layers.7.q"]) is None
    assert FromFile(tmp_path / "nowhere").keeps(["layers.0.q"]) is None
    plan.write_text("{")
    assert FromFile(plan).keeps(["layers.0.q"]) is None


def test_another_budget_says_both_numbers_and_a_sparsity_that_fits(plan):
    with pytest.raises(EcoflapError, match=r"keeps 12 .* sparsity 11\. Leave sparsity out.* write 0\.5$"):
        FromFile(plan)(GROUPS, 11)


@given(st.integers(1, 10**10).flatmap(lambda size: st.tuples(st.integers(0, size), st.just(size))))
def test_the_sparsity_that_is_told_fits(counts):
    kept, size = counts
    share = _sparsity_that_leaves(kept, size)
    assert 0 <= share <= 1
    assert keep_count(size, share) == kept


@pytest.mark.parametrize("bounds", [{"floor": 6}, {"cap": 4}])
def test_floors_and_caps_hold(plan, bounds):
    with pytest.raises(EcoflapError, match=r"keeps 5 of layers\.1"):
        FromFile(plan)([Group("layers.1", 8, 0.0, ("layers.1.q",), **bounds)], 5)


def test_a_plan_of_another_model_is_told_in_one_sentence(plan):
    groups = [Group(f"blocks.{i}", 8, 0.0, (f"blocks.{i}.q",)) for i in range(9)]
    with pytest.raises(EcoflapError) as caught:
        FromFile(plan)(groups, 12)
    assert caught.value.problems == (
        f"{plan}: it lacks 9 layers (blocks.0.q, blocks.1.q, blocks.2.q and 6 more), and has others (layers.0.q, "
        f"layers.0.k, layers.1.q). Name a plan of this model, or keep their towers whole here, by towers: "
        "{NAME: keep}",
    )
