"""A sweep as it is written: what it says, and all that is wrong with it at once."""

from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecoflap.core.errors import RecipeError
from ecoflap.core.sweep.file import read_seeds, read_sweep
from ecoflap.core.text.strict_yaml import write_yaml


@pytest.fixture
def place(tmp_path):
    (tmp_path / "recipe.yaml").write_text("version: 1\nmodel: m\nsparsity: 0.5\nprune: wanda\n")
    return tmp_path


@pytest.fixture
def read(place):
    def read(text, *set_, seeds=None):
        (place / "sweep.yaml").write_text(dedent(text))
        return read_sweep(place / "sweep.yaml", set_, seeds)

    return read


def plain(axes):
    return {key: [item.value.value for item in values] for key, values in axes.items()}


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("0.5,0.6", [0.5, 0.6]),
        ("0.5", [0.5]),
        ("wanda, sparsegpt", ["wanda", "sparsegpt"]),
        ("0.5,2:4", [0.5, "2:4"]),
        ("{use: wanda, compare: layer},sparsegpt", [{"use": "wanda", "compare": "layer"}, "sparsegpt"]),
        ("[a, b],[c]", [["a", "b"], ["c"]]),
        ("[]", [[]]),
        ("'a,b',\"c,d\"", ["a,b", "c,d"]),
        ("null,0", [None, 0]),
        ("", [None]),
    ],
)
def test_commas_divide_values_but_not_what_is_inside_of_one(place, written, values):
    assert plain(read_sweep(place / "recipe.yaml", [f"key={written}"]).axes) == {"key": values}


TEXT = st.text("ab, '\"[]{}:#é", max_size=6)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=2),
    max_leaves=6,
)


@given(st.lists(VALUE, min_size=1, max_size=4))
def test_any_values_written_as_yaml_come_back_whole(values):
    import yaml

    flow = yaml.safe_dump(values, default_flow_style=True, width=10**6, allow_unicode=True).strip()
    sweep = read_sweep("quickstart", [f"key={flow[1:-1]}"])
    assert plain(sweep.axes) == {"key": values}


def test_a_file_says_all_of_it_and_the_command_line_has_the_last_word(read, place):
    text = """
        version: 1
        recipe: recipe.yaml
        seeds: [4, 7]
        grid: {sparsity: [0.5, 0.6], prune.compare: [row, layer]}
        methods:
          magnitude: {prune: magnitude, score: null}
          as it is:
    """
    sweep = read(text)
    assert sweep.recipe == place / "recipe.yaml"
    assert sweep.seeds == (4, 7)
    assert plain(sweep.axes) == {"sparsity": [0.5, 0.6], "prune.compare": ["row", "layer"]}
    assert {name: [(a.key, a.value.value) for a in own] for name, own in sweep.methods.items()} == {
        "magnitude": [("prune", "magnitude"), ("score", None)],
        "as it is": [],
    }
    sweep = read(text, "sparsity=0.9", "seed_of=1", seeds="2")
    assert plain(sweep.axes) == {"sparsity": [0.9], "prune.compare": ["row", "layer"], "seed_of": [1]}
    assert sweep.seeds == (0, 1)


def test_a_recipe_alone_is_a_sweep_of_one(place):
    sweep = read_sweep(place / "recipe.yaml")
    assert (sweep.recipe, sweep.seeds, sweep.axes, sweep.methods) == (place / "recipe.yaml", None, {}, {"": ()})


def test_everything_that_is_wrong_is_told_at_once_with_its_place(read, place):
    with pytest.raises(RecipeError) as caught:
        read(
            """\
            version: 2
            recipe: recipe.yml
            seeds: three
            gird: {}
            grid:
              sparsity: 0.5
              seed: [1, 2]
              a..b: [1]
            methods:
              wanda: prune
              7: {}
            """,
            "nothing",
            "seed=1,2",
            "sparsity=[0.5",
            seeds="0",
        )
    file = place / "sweep.yaml"
    told = caught.value.problems
    for where, what in (
        ("1:10", "version: should be 1, not 2."),
        ("2:9", "recipe: recipe.yml is no file, and there is no shipped recipe named 'recipe.yml'"),
        ("3:8", "seeds: should be how many seeds, counted from 0 and 1,000 at most, or a list of them, not 'three'."),
        ("4:1", "gird: unknown key 'gird'. Did you mean 'grid'?"),
        ("6:13", "grid.sparsity: should be a list of the values it takes in turn, not 0.5."),
        ("7:3", "grid.seed: seeds are written seeds: 3, or seeds: [4, 7]."),
        ("8:3", "grid.a..b: should be a key of the recipe, such as prune.use."),
        ("10:10", "methods.wanda: should map keys of the recipe to values, not 'prune'."),
        ("11:3", "methods.7: a method's name should be a text, not 7."),
    ):
        assert any(problem.startswith(f"{file}:{where}: {what}") for problem in told), (what, told)
    assert "--set nothing: should be KEY=VALUE,VALUE, such as prune.use=wanda,sparsegpt." in told
    assert "--set seed=1,2: seeds are written --seeds 3, or --seeds 4,7." in told
    assert any(problem.startswith("--set sparsity=[0.5: ") for problem in told)
    assert any(problem.startswith("--seeds 0: should be how many seeds") for problem in told)
    assert len(told) == 13


def test_a_file_that_is_not_yaml_is_told(read, place):
    with pytest.raises(RecipeError, match=r"sweep\.yaml:2:1: recipe: written twice"):
        read("recipe: a\nrecipe: b\n")


def test_a_name_that_is_neither_file_nor_recipe_is_told():
    with pytest.raises(RecipeError, match="Did you mean 'quickstart'"):
        read_sweep("quickstrat")


@pytest.mark.parametrize(
    ("written", "seeds"),
    [(3, (0, 1, 2)), (1, (0,)), ([4, 7], (4, 7)), ([7, 7], (7,)), (0, None), (-1, None), ([], None), (True, None),
     ([1, "a"], None), ("3", None), ([True], None), (1.5, None)],
)  # fmt: skip
def test_seeds(written, seeds):
    assert read_seeds(written) == seeds


def test_a_file_keeps_what_was_written_by_the_strict_writer(read):
    text = write_yaml({"version": 1, "recipe": "recipe.yaml", "grid": {"pattern": ["2:4", "4:8"]}})
    assert plain(read(text).axes) == {"pattern": ["2:4", "4:8"]}


@pytest.mark.parametrize("seeds", [10**12, list(range(2_000))])
def test_more_seeds_than_anybody_takes_are_refused_at_once(read, place, seeds):
    told = r"seeds.*: should be how many seeds, counted from 0 and 1,000 at most, or a list of them"
    with pytest.raises(RecipeError, match=told):
        read(f"version: 1\nrecipe: recipe.yaml\nseeds: {seeds}\n")
    with pytest.raises(RecipeError, match=told):
        read_sweep(place / "recipe.yaml", (), seeds)
