"""The runs of a sweep before any begins: which there are, in which order, and what is refused."""

import json
import re

import pytest

from ecoflap.core.errors import RecipeError
from ecoflap.core.registry.registry import load_registry
from ecoflap.core.sweep.file import read_sweep
from ecoflap.core.sweep.grid import planned_runs, value_text
from ecoflap.core.text.strict_yaml import Place, parse_yaml


@pytest.fixture
def grid(plain, tmp_path):
    """``grid(methods=…, grid=…)``: the runs of a sweep over the pico recipe."""

    def grid(*set_, seeds=None, recipe=None, folder=None, **keys):
        (tmp_path / "recipe.yaml").write_text(json.dumps(plain(**(recipe or {}))))
        what = tmp_path / "recipe.yaml"
        if keys:
            what = tmp_path / "sweep.yaml"
            what.write_text(json.dumps({"version": 1, "recipe": "recipe.yaml", **keys}))
        return planned_runs(read_sweep(what, set_, seeds), folder or tmp_path / "runs", load_registry())

    return grid


def names(runs):
    return [run.folder.path.name for run in runs]


METHODS = {
    "magnitude": {"score": None, "prune": "magnitude"},
    "zeroth+wanda": {},
    "first": {"score": {"use": "first_order", "samples": 2}},
    "zeroth+sparsegpt": {"prune": "sparsegpt"},
}


def test_runs_with_the_same_scores_follow_each_other_seed_by_seed(grid):
    runs = grid(methods=METHODS, grid={"sparsity": [0.5, 0.6]}, seeds=[7, 4])
    assert names(runs) == [
        f"{method}-sparsity-{sparsity}-seed-{seed}"
        for seed in (7, 4)
        for method in ("magnitude", "zeroth+wanda", "zeroth+sparsegpt", "first")
        for sparsity in (0.5, 0.6)
    ]
    assert [run.scored for run in runs[:8]] == [False] * 2 + [True] * 6
    assert len({run.scores for run in runs}) == 1 + 2 * 2
    assert {run.state for run in runs} == {"to do"}


def test_a_seed_draws_the_data_that_are_calibrated_on_too_but_not_those_evaluated_on(grid, plain):
    text = plain()["calibration"]
    recipe = {"score": {"use": "zeroth_order", "samples": 2, "calibration": text}}
    for seed, run in zip((0, 1), grid(seeds="2", recipe=recipe), strict=True):
        told = run.recipe.plain()
        seeds = [told["seed"], told["calibration"]["seed"], told["score"]["calibration"]["seed"]]
        assert seeds == [seed] * 3
        assert told["evaluate"][0]["data"]["seed"] == 0


def test_without_seeds_the_recipes_own_are_left_alone(grid, plain):
    (run,) = grid(recipe={"seed": 3, "calibration": {**plain()["calibration"], "seed": 9}})
    assert names([run]) == ["seed-3"]
    assert run.recipe.plain()["calibration"]["seed"] == 9


def test_what_a_method_sets_is_its_only_value(grid):
    methods = {"dense heads": {"sparsity": 0.3, "score": None}, "zeroth": {}}
    runs = grid(methods=methods, grid={"sparsity": [0.5, 0.6], "score.samples": [1, 2]})
    assert names(runs) == [
        "dense-heads-seed-0",
        *(f"zeroth-sparsity-{s}-score.samples-{n}-seed-0" for n in (1, 2) for s in (0.5, 0.6)),
    ]
    assert runs[0].recipe.sparsity == 0.3


def test_a_parameter_of_the_grid_is_set_after_the_methods_part(grid):
    runs = grid(methods={"wanda": {"prune": {"use": "wanda"}}}, grid={"prune.compare": ["row", "layer"]})
    assert [run.recipe.prune.parameters["compare"] for run in runs] == ["row", "layer"]


@pytest.mark.parametrize("keys", [("prune.compare=row,layer", "prune.use=wanda,magnitude"), ()])
def test_another_part_does_not_drop_what_the_grid_sets_inside_of_it(grid, keys):
    of_file = {"grid": {"prune.compare": ["row", "layer"], "prune.use": ["wanda", "magnitude"]}} if not keys else {}
    runs = grid(*keys, **of_file)
    found = {(run.recipe.prune.use, run.recipe.prune.parameters["compare"]) for run in runs}
    assert found == {(use, compare) for use in ("wanda", "magnitude") for compare in ("row", "layer")}


def test_a_value_that_is_there_twice_is_one_run(grid):
    assert names(grid("sparsity=0.5,0.50,0.6")) == ["sparsity-0.5-seed-0", "sparsity-0.6-seed-0"]


def test_folders_are_apart_whatever_the_values_are_called(grid):
    runs = grid("prune={use: wanda},{use, wanda}".replace("{use, wanda}", "wanda"), "allocate={use: uniform},uniform")
    assert len(set(names(runs))) == 4
    long = [{"use": "magnitude", "compare": "row"}, {"use": "magnitude", "compare": "layer"}]
    runs = grid(methods={"m" * 200: {}, "m" * 201: {}}, grid={"prune": long})
    assert len(set(names(runs))) == 4
    assert all(len(name) < 140 and re.fullmatch(r"[\w.+-]+", name) for name in names(runs))


def test_every_problem_of_every_run_is_told_once_with_the_runs_that_have_it(grid, tmp_path):
    with pytest.raises(RecipeError) as caught:
        grid(
            "sparsty=1,2,3",
            methods={"a": {"prune": "wonda"}, "b": {"prune": {"use": "wanda", "compare": "rows"}}, "c": {}},
            grid={"sparsity": [0.5, 1.7]},
        )
    told = caught.value.problems
    assert len(told) == 4
    assert told[0].startswith("--set sparsty=1,2,3: sparsty: unknown key 'sparsty'. Did you mean 'sparsity'?")
    assert told[0].endswith("version.")  # in all of them, so that none is named
    (wonda,) = (problem for problem in told if "wonda" in problem)
    assert wonda.startswith(f"{tmp_path / 'sweep.yaml'}:1:")
    assert "no pruner named 'wonda'. Did you mean 'wanda'?" in wonda
    assert wonda.endswith("(in 6 of 18 runs: a, sparsity=0.5, sparsty=1; a, sparsity=0.5, sparsty=2; a, sparsity=0.5, "
                          "sparsty=3; and 3 more)")  # fmt: skip
    assert any("not 1.7" in problem and "(in 9 of 18 runs: " in problem for problem in told)
    assert any("not 'rows'" in problem and "(in 6 of 18 runs: b" in problem for problem in told)


def test_problems_that_only_the_model_shows_are_told_too(grid):
    with pytest.raises(RecipeError) as caught:
        grid("sparsity=3:7,3:5,0.5", "allocate=uniform", recipe={"score": None}, seeds="2")
    assert sum("cannot be divided into runs of 7" in problem for problem in caught.value.problems) == 1
    assert sum("cannot be divided into runs of 5" in problem for problem in caught.value.problems) == 1
    assert "(in 2 of 6 runs: sparsity=3:7, allocate=uniform, seed=0; " in caught.value.problems[0]


def test_no_run_is_read_from_a_model_twice_for_its_seeds(grid, monkeypatch):
    from ecoflap.core.sweep import grid as sweep_grid

    asked, prepare = [], sweep_grid.prepare
    monkeypatch.setattr(sweep_grid, "prepare", lambda recipe, *rest: asked.append(recipe) or prepare(recipe, *rest))
    assert len(grid(seeds=3, recipe={"score": None, "prune": "magnitude", "calibration": None})) == 3
    assert len(asked) == 1


def test_a_value_as_it_is_written():
    assert value_text({"use": "wanda", "deep": [None, True, 0.5]}) == "{use: wanda, deep: [null, true, 0.5]}"


@pytest.mark.parametrize("text", ["null", "true", "0.5", "1", "", "a: b", "[a", "a #b", " a"])
def test_a_text_that_would_be_read_as_something_else_is_in_quotes(text):
    written = value_text(text)
    assert written == f'"{text}"'
    read, problems = parse_yaml(written, Place("here"))
    assert (read.value, problems) == (text, [])


def test_more_runs_than_could_be_listed_are_refused_at_once(grid):
    axes = {f"key{number}": list(range(100)) for number in range(12)}
    with pytest.raises(RecipeError, match=r"recipe\.yaml: a sweep has 10,000 runs at most"):
        grid(grid=axes)


def test_a_folders_name_is_a_name_whatever_letters_a_method_has(grid):
    runs = grid(methods={"剪" * 100: {}, "!!!": {}, "???": {}}, grid={"sparsity": [0.5]}, seeds=[0])
    names = [run.folder.path.name for run in runs]
    assert len(set(names)) == 3
    assert all(0 < len(name.encode()) < 140 and name[0] not in "-." for name in names)


def test_a_list_where_values_were_meant_is_told_how_to_write_them(grid):
    with pytest.raises(RecipeError, match=r"not a list\. To give it these in turn: --set sparsity=0\.5,0\.6, without"):
        grid("sparsity=[0.5,0.6]")
    (one,) = grid("export=[]")  # which is one value, that keys of lists may have
    assert one.recipe.export == ()
