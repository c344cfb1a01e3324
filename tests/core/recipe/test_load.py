"""Recipes: what they become, what every mistake says, and that a resolved recipe loads as itself."""

import os
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from string import ascii_lowercase
from textwrap import dedent

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.errors import RecipeError
from ecoflap.core.recipe.differences import contradictions, differences
from ecoflap.core.recipe.load import find_recipe, load_recipe, parse_recipe
from ecoflap.core.recipe.schema import may_change
from ecoflap.core.registry.registry import load_registry_from

FULL = """\
version: 1
model: {source: ./model, dtype: bfloat16}
calibration: {use: text, path: corpus.txt, batch_size: 8}
sparsity: 0.7
towers: {vision: {prune: {use: wanda, compare: layer}}, qformer: keep}
score: {use: zeroth_order, eps: 1e-2, granularity: layer}
allocate: {use: ecoflap, max_sparsity: 0.8}
prune: wanda
evaluate: [{use: perplexity, data: {use: text, path: ../held-out.txt}}]
export: safetensors
"""
SMALL = "version: 1\nmodel: m\nsparsity: 0.5\nprune: magnitude\n"


def test_a_full_recipe(parse, folder):
    recipe = parse(FULL)
    assert recipe.model.source == str(folder / "sub" / "model")
    assert (recipe.model.dtype, recipe.model.device, recipe.seed) == ("bfloat16", "auto", 0)
    assert recipe.calibration.batch_size == 8
    assert recipe.calibration.data.parameters["path"] == folder / "sub" / "corpus.txt"
    assert (recipe.sparsity, recipe.sparsity_fraction, recipe.pattern) == (0.7, Fraction(7, 10), None)
    assert recipe.towers["qformer"] == "keep"
    assert recipe.towers["vision"].prune.parameters == {"compare": "layer", "alpha": 0.5}
    assert recipe.towers["vision"].sparsity_fraction is None
    assert (recipe.score.granularity, recipe.score.aggregate) == ("layer", "mean")
    assert recipe.score_calibration is recipe.calibration
    assert recipe.score.scorer.build().eps == 1e-2
    assert recipe.evaluate[0].build().data.path == folder / "held-out.txt"
    assert [part.use for part in recipe.export] == ["safetensors"]


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff"])
def test_data_whose_path_is_not_utf8_are_refused_with_it(name, registry, tmp_path):
    """Of another folder's encoding too: a report has them, and its file is UTF-8."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    with pytest.raises(RecipeError) as caught:
        parse_recipe(FULL, registry=registry, file=folder / "recipe.yaml")
    told = [problem for problem in caught.value.problems if "is not UTF-8, in which a run records its paths" in problem]
    assert len(told) >= 2
    assert all("Name it otherwise" in problem for problem in told)


def test_what_only_one_version_knows_of_a_part_contradicts_nothing(parse):
    plain = parse(FULL).plain()
    older = {**plain, "calibration": {key: value for key, value in plain["calibration"].items() if key != "samples"}}
    older["prune"] = {"use": "wanda"}
    assert older["calibration"] != plain["calibration"]
    assert contradictions(older, plain) == contradictions(plain, older) == []
    assert contradictions({**plain, "evaluate": None, "export": None}, plain) == []
    assert contradictions({**plain, "sparsity": 0.5}, plain) == ["sparsity: 0.5 vs 0.7"]
    assert contradictions({**plain, "score": None}, plain) == ["score: not set vs zeroth_order"]
    other = {**plain, "prune": {**plain["prune"], "compare": "layer"}}
    assert contradictions(other, plain) == ["prune.compare: layer vs row"]
    assert contradictions({**plain, "prune": {"use": "magnitude"}}, plain) == ["prune.use: magnitude vs wanda"]


def test_a_small_recipe_needs_no_data(parse):
    recipe = parse(SMALL)
    assert (recipe.calibration, recipe.score, recipe.allocate.use) == (None, None, "uniform")
    assert recipe.model.source == "m"
    assert parse(SMALL + "score: norm\n").allocate.use == "ecoflap"
    assert parse(SMALL + "score:\nexport:\n") == recipe


@dataclass(frozen=True)
class Pictures:
    """A dataset that draws."""

    seed: int = 0
    samples: int = 4

    def __call__(self, adapter, model, note): ...


PICTURES = f"{__name__}:Pictures"


def seeds(recipe):
    """What calibrates, what is scored on, and what evaluates."""
    drawn = (recipe.calibration.data, recipe.score_calibration.data, recipe.evaluate[0].parameters["data"])
    return [part.parameters["seed"] for part in drawn]


def test_what_calibrates_is_drawn_by_the_recipes_seed_and_what_evaluates_is_not(parse):
    recipe = SMALL + (
        f"score: {{use: norm, calibration: {{use: {PICTURES}, samples: 2}}}}\n"
        f"calibration: {PICTURES}\nevaluate: {{use: perplexity, data: {PICTURES}}}\n"
    )
    assert seeds(parse(recipe, allow_code=True)) == [0, 0, 0]
    assert seeds(parse(recipe + "seed: 3\n", allow_code=True)) == [3, 3, 0]
    own = recipe.replace(f"calibration: {PICTURES}\n", f"calibration: {{use: {PICTURES}, seed: 5}}\n")
    assert seeds(parse(own + "seed: 3\n", allow_code=True)) == [5, 3, 0]


def test_a_dataset_from_python_has_the_seed_it_was_given(registry):
    recipe = {"version": 1, "seed": 3, "model": "m", "sparsity": 0.5, "prune": "wanda", "calibration": Pictures()}
    assert parse_recipe(recipe, registry=registry).calibration.data.parameters["seed"] == 0


def test_site_defaults_fill_in_relative_to_their_own_file(parse, folder):
    data = parse(FULL).calibration.data.parameters
    assert data["samples"] == 16
    assert data["more"] == (folder / "site.txt",)


def test_the_resolved_recipe_loads_as_an_equal_one(parse, registry):
    recipe = parse(FULL)
    again = parse_recipe(recipe.dump(), registry=registry, file="/elsewhere/r.yaml")
    assert again == recipe
    assert again.dump() == recipe.dump()
    assert "aggregate: mean" in recipe.dump()
    assert "shard: 5" in recipe.dump()


def test_parts_inside_parts(parse):
    recipe = parse(SMALL, "prune={use: mixed, rest: [obs, {use: wanda, alpha: 1}]}", "calibration={use: text, path: a}")
    part = recipe.prune
    assert part.parameters["first"].parameters["compare"] == "layer"
    assert [inner.use for inner in part.parameters["rest"]] == ["sparsegpt", "wanda"]
    built = part.build()
    assert (built.rest[1].alpha, built.last, type(built.many)) == (1.0, None, list)
    assert parse(recipe.dump()) == recipe


def test_parameters_of_all_sorts(parse):
    given = "{use: odd, portion: [0.5, 1], words: {a: 1}, switch: true, anything: {x: [1, '2']}, text: 2:4}"
    recipe = parse(SMALL, f"prune={given}")
    built = recipe.prune.build()
    assert (built.portion, built.words, built.switch, built.text) == ((0.5, 1.0), {"a": 1}, True, "2:4")
    assert built.limit == float("inf")
    assert "opaque" not in recipe.prune.parameters
    assert parse(recipe.dump()) == recipe


@pytest.mark.parametrize(
    "given", ["switch: 1", "switch: 'true'", "portion: [1]", "words: {a: x}", "text: 3", "hidden: '1'", "hidden: 1.5"]
)
def test_nothing_is_converted(told, given):
    assert f"prune.{given.split(':')[0]}" in told(SMALL.replace("magnitude", f"{{use: odd, {given}}}"))


def test_part_objects_from_python(registry):
    parts = registry.find("pruner", "mixed"), registry.find("pruner", "wanda")
    prune = parts[0](rest=(parts[1](alpha=2.0),))
    source = {
        "version": 1,
        "model": "m",
        "sparsity": 0.5,
        "prune": prune,
        "calibration": {"use": "text", "path": Path("/a")},
    }
    recipe = parse_recipe(source, registry=registry)
    assert recipe.prune.build() == prune
    assert parse_recipe(recipe.dump(), registry=registry) == recipe
    with pytest.raises(RecipeError, match=r"^recipe: sparsity: should be a number"):
        parse_recipe({**source, "sparsity": 3}, registry=registry)


def test_a_model_in_memory_needs_no_key(parse, told):
    text = SMALL.replace("model: m\n", "")
    assert parse(text, in_memory=True).model.source == "memory"
    assert "model: required, and missing" in told(text)


def test_what_looks_like_a_path_is_one(parse, folder):
    (folder / "sub" / "here").mkdir(parents=True, exist_ok=True)
    sources = {
        "./x": folder / "sub" / "x",
        "x.gguf": folder / "sub" / "x.gguf",
        "here": folder / "sub" / "here",
        "/x": "/x",
    }
    for written, source in {**sources, "a/b": "a/b", "package:NAME": "package:NAME"}.items():
        assert parse(SMALL.replace("model: m", f"model: {written!r}")).model.source == str(source)


def test_reuse_is_relative_to_the_recipe(parse, folder):
    assert parse(SMALL + "reuse: a").reuse == (folder / "sub" / "a",)
    assert parse(SMALL + "reuse: [a, /b]").reuse == (folder / "sub" / "a", Path("/b"))


@pytest.mark.parametrize(
    "line",
    ["sparsity: 2:4", "sparsity: '2:4'", "pattern: 2:4", "sparsity: 0.5\npattern: 2:4", "sparsity: 2:4\npattern: 2:4"],
)
def test_ways_to_write_a_pattern(parse, line):
    recipe = parse(SMALL.replace("sparsity: 0.5", line))
    assert (recipe.sparsity, recipe.pattern, recipe.sparsity_fraction) == (None, Pattern(2, 4), Fraction(1, 2))
    assert parse(recipe.dump()) == recipe


@pytest.mark.parametrize(
    ("line", "place", "said"),
    [
        ("sparsity: 1.7", "3:11: sparsity", "not 1.7."),
        ("sparsity: -0.2", "3:11: sparsity", "not -0.2."),
        ("sparsity: 50", "3:11: sparsity", "Did you mean 0.5?"),
        ("sparsity: 50%", "3:11: sparsity", "Did you mean 0.5?"),
        ("sparsity: '0.5'", "3:11: sparsity", "Did you mean 0.5?"),
        ("sparsity: 1", "3:11: sparsity", "from 0 to below 1"),
        ("sparsity: true", "3:11: sparsity", "not True"),
        ("sparsity: .nan", "3:11: sparsity", "not nan"),
        ("sparsity: []", "3:11: sparsity", "not a list"),
        ("sparsity: 5:4", "3:11: sparsity", "5:4"),
        ("sparsity: a:b", "3:11: sparsity", "a:b"),
        ("pattern: 3", "3:10: pattern", "n:m"),
        ("sparsity: 0.6\npattern: 2:4", "4:10: pattern", "2:4 prunes 0.5, and sparsity is 0.6. Remove one."),
        ("sparsity: 2:4\npattern: 4:8", "4:10: pattern", "sparsity is 2:4 and this is 4:8. Remove one."),
        ("sparsity: 0.5\nsparsty:", "4:1: sparsty", "Did you mean 'sparsity'?"),
        ("seed: 0", "1:1: sparsity", "required, and missing"),
    ],
)  # fmt: skip
def test_sparsities_that_are_none(told, line, place, said):
    text = told(SMALL.replace("sparsity: 0.5", line))
    assert text.startswith(f"r.yaml:{place}: ")
    assert said in text
    assert "\n" not in text


def test_a_pattern_leaves_nothing_to_allocate(told, parse):
    text = told(SMALL.replace("0.5", "2:4") + "score: norm\nallocate: ecoflap\n")
    assert "r.yaml:5:8: score: the pattern 2:4 fixes each layer's budget" in text
    assert "r.yaml:6:11: allocate: the pattern 2:4 fixes each layer's budget" in text
    assert parse(SMALL.replace("0.5", "2:4") + "allocate: uniform\n").allocate.use == "uniform"


def test_a_tower_may_have_a_pattern_of_its_own(parse, told):
    tower = parse(SMALL + "towers: {vision: {sparsity: 2:4}}").towers["vision"]
    assert (tower.pattern, tower.sparsity, tower.sparsity_fraction) == (Pattern(2, 4), None, Fraction(1, 2))
    text = told(SMALL + "towers: {vision: {}, text: kep, encoder: {sparsity: 2, prun: wanda}}")
    assert "r.yaml:5:18: towers.vision: should be keep, or {sparsity: …, prune: …}, not nothing." in text
    assert "r.yaml:5:28: towers.text: should be keep" in text
    assert "r.yaml:5:53: towers.encoder.sparsity" in text
    assert "towers.encoder.prun: unknown key 'prun'. Did you mean 'prune'?" in text
    assert "towers.vision.tokens: should be " in told(SMALL + "towers: {vision: {tokens: bogus}}")


def test_data_is_wanted_only_where_it_is_looked_at(told, parse):
    data = "calibration: {use: text, path: a}"
    assert "calibration: missing, and the pruner wanda looks at data. Known datasets: text." in told(
        SMALL.replace("magnitude", "wanda")
    )
    assert "the scorer zeroth_order looks at data" in told(SMALL + "score: zeroth_order")
    assert "the pruner sparsegpt looks at data" in told(SMALL + "towers: {vision: {prune: obs}}")
    own = parse(SMALL + "score: {use: zeroth_order, " + data + "}")
    assert (own.calibration, own.score_calibration.data.use) == (None, "text")


def test_scores_are_wanted_where_they_are_looked_at(told):
    assert "r.yaml:5:11: allocate: ecoflap looks at scores; add score:. Scorers that fit: from_run" in told(
        SMALL + "allocate: ecoflap"
    )


def test_all_problems_at_once_each_with_its_place(told):
    text = told("""\
        version: 2
        seed: x
        sed: 3
        model: {source: x, dtyp: auto, dtype: float64, device: gpu}
        calibration: {use: text, pth: c.txt, batch_size: 0}
        sparsity: 0.5
        score: {use: zeroth_order, granularity: blok, eps: "1"}
        allocate: {use: ecoflp}
        prune: {use: sparsegpt, damping: -1.0}
        prune: wanda
        evaluate: [{use: perplexity, data: {use: txt}}, 7, {samples: 3}]
        export: {use: "no_such:Foo"}
        reuse: [3]
        """)
    expected = """\
        18 problems in r.yaml
        r.yaml:10:1: prune: written twice; first at r.yaml:9:1. Remove one.
        r.yaml:1:10: version: should be 1, not 2.
        r.yaml:2:7: seed: should be a valid integer, not 'x'.
        r.yaml:3:1: sed: unknown key 'sed'. Did you mean 'seed'?
        r.yaml:4:20: model.dtyp: unknown key 'dtyp'. Did you mean 'dtype'? Known: adapter, compute, config, device,
        r.yaml:4:39: model.dtype: should be 'auto', 'float32', 'bfloat16' or 'float16', not 'float64'.
        r.yaml:4:56: model.device: should be auto, cpu, cuda or cuda:N, not 'gpu'.
        r.yaml:5:14: calibration: text needs path:, which is missing.
        r.yaml:5:26: calibration.pth: text has no parameter 'pth'. Did you mean 'path'? Known: more, path, samples.
        r.yaml:5:50: calibration.batch_size: should be greater than or equal to 1, not 0.
        r.yaml:7:41: score.granularity: should be 'layer', 'block', 'tower' or 'model', not 'blok'.
        r.yaml:7:52: score.eps: should be a valid number, not '1'.
        r.yaml:8:17: allocate.use: no allocator named 'ecoflp'. Did you mean 'ecoflap'? Known: ecoflap, uniform.
        r.yaml:9:34: prune.damping: sparsegpt: damping should be above 0.
        r.yaml:11:42: evaluate.0.data.use: no dataset named 'txt'. Did you mean 'text'? Known: text.
        r.yaml:11:49: evaluate.1: should be an evaluator: a name, or {use: name, parameter: value}; this is 7.
        r.yaml:11:52: evaluate.2: should be an evaluator: a name, or {use: name, parameter: value}; this has no use:
        r.yaml:12:15: export.use: the exporter 'no_such:Foo' is an import path, and code runs here only where it is
        r.yaml:13:9: reuse.0: should be a run folder, not 3.
        """
    expected = dedent(expected).replace("18 problems", "19 problems").splitlines()
    assert len(text.splitlines()) == len(expected)
    for line, start in zip(text.splitlines(), expected, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize("text", ["", "- a", "word", "a: [", "version: 1\n  x: 2", "[" * 200])
def test_what_is_no_mapping(told, text):
    assert told(text).startswith("r.yaml:")


@pytest.mark.parametrize(
    ("key", "value"),
    [("towers", "[]"), ("model", "3"), ("prune", "3"), ("prune", "{}"), ("calibration", "[]"), ("score", "''")],
)
def test_keys_of_another_kind(told, key, value):
    lines = [line for line in SMALL.splitlines() if not line.startswith(key)]
    assert f": {key}: should " in told("\n".join([*lines, f"{key}: {value}"]))


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_a_number_that_no_report_can_hold_is_refused_where_it_is_written(told, value):
    assert "should be finite, not " in told(SMALL.replace("magnitude", f"{{use: odd, limit: {value}}}"))


@pytest.mark.parametrize("written", ["block: 9999999999999999999", "block: -9223372036854775808999"])
def test_a_whole_number_of_more_than_64_bits_is_refused_where_it_is_written(told, written):
    said = told(SMALL.replace("magnitude", f"{{use: sparsegpt, {written}}}"))
    assert f"prune.block: should be a whole number of at most 64 bits, not {written[7:]}." in said
    assert "docs/hooks.md" not in said


def test_the_largest_number_of_64_bits_is_read(parse):
    assert parse(SMALL.replace("magnitude", f"{{use: odd, words: {{a: {2**63 - 1}}}}}"))


def test_what_may_change_is_told_from_what_may_not(parse):
    assert {"calibration.keep", "score.calibration.keep", "model.config", "model.offload", "export"} <= set(
        may_change()
    )
    assert not {"calibration", "calibration.samples", "score"} & set(may_change())


def test_a_wrong_site_default_is_where_it_is_written(folder, registry):
    other = folder / "other.yaml"
    other.write_text("version: 1\nplugins: {toy: recipe_parts}\ndefaults: {pruner: {wanda: {compare: rows}}}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        sited = load_registry_from(other)
    with pytest.raises(RecipeError, match=r"other\.yaml:3:38: prune\.compare: should be 'row' or 'layer', not 'rows'"):
        parse_recipe(SMALL.replace("magnitude", "wanda"), registry=sited)


def test_differences_name_keys_with_both_values(parse):
    def changes(*assignments, **keywords):
        return differences(parse(FULL).plain(), parse(FULL, *assignments).plain(), **keywords)

    assert changes() == []
    assert changes("sparsity=0.6", "prune.compare=layer") == ["sparsity: 0.7 vs 0.6", "prune.compare: row vs layer"]
    assert changes("prune.use=obs", "score=null", "allocate=null") == [
        "score: zeroth_order vs not set",
        "allocate.use: ecoflap vs uniform",
        "prune.use: wanda vs sparsegpt",
    ]
    others = ("evaluate=null", "export=null", "reuse=a", "model.device=cpu")
    assert changes(*others) == ["model.device: auto vs cpu"]
    assert changes(*others, ignore=("evaluate", "export", "reuse", "model.device")) == []
    assert len(changes(*others, ignore=())) == 4


def test_a_parameter_that_an_earlier_version_lacked_is_no_difference_unless_it_is_set():
    before = {"allocate": {"use": "best_of", "of": ["uniform", "ecoflap"]}}
    now, tried = ({"allocate": {**before["allocate"], "tokens": tokens}} for tokens in ([], ["real", "text"]))
    assert differences(before, now) == []
    assert differences(now, before) == []
    assert differences(before, tried) == ["allocate.tokens: not set vs ['real', 'text']"]


def test_load_and_find(folder, registry):
    (folder / "r.yaml").write_text(SMALL)
    assert load_recipe(find_recipe(str(folder / "r.yaml")), set_=["seed=3"], registry=registry).seed == 3
    with pytest.raises(RecipeError, match=r"no\.yaml cannot be read"):
        load_recipe(folder / "no.yaml", registry=registry)
    (folder / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"cannot be read: it is no UTF-8, with 0xff at byte 0\. Save it as UTF-8"):
        load_recipe(folder / "bytes.yaml", registry=registry)
    (folder / "latin.yaml").write_bytes(f"{SMALL}# caf\xe9\n".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"no UTF-8, with 0xe9 at byte \d+\. Save it as UTF-8"):
        load_recipe(folder / "latin.yaml", registry=registry)


def test_shipped_recipes_are_found_by_name(tmp_path, monkeypatch):
    (tmp_path / "recipes" / "data").mkdir(parents=True)
    (tmp_path / "recipes" / "quickstart.yaml").write_text(SMALL)
    for name in ("best", "fast"):
        (tmp_path / "recipes" / "data" / f"{name}.yaml").write_text(SMALL)
    monkeypatch.setattr("ecoflap.core.recipe.load.files", lambda package: tmp_path)
    assert find_recipe("quickstart") == find_recipe("quickstart.yaml") == tmp_path / "recipes" / "quickstart.yaml"
    with pytest.raises(
        RecipeError, match=r"no shipped recipe named 'quikstart'\. Did you mean 'quickstart'\? Files are"
    ):
        find_recipe("quikstart")
    known, here = r"Known: data/\{best, fast\}, quickstart\.", re.escape(str(Path.cwd()))
    with pytest.raises(RecipeError, match=rf"named 'other'\. {known} Files are looked for in {here}\.$"):
        find_recipe("other")
    with pytest.raises(RecipeError, match=rf"named '/other'\. {known}$"):
        find_recipe("/other")


def test_a_folder_is_asked_for_the_recipe_in_it(folder):
    (folder / "run").mkdir()
    os.mkfifo(folder / "pipe")
    with pytest.raises(RecipeError, match=r"pipe is no file, as a pipe is none: save the recipe in one"):
        find_recipe(str(folder / "pipe"))
    with pytest.raises(RecipeError, match=r"run is no file, and there is no shipped recipe named"):
        find_recipe(str(folder / "run"))
    with pytest.raises(RecipeError, match=r"^an empty name is no file"):
        find_recipe("")
    (folder / "run" / "recipe.yaml").write_text(SMALL)
    with pytest.raises(RecipeError, match=r"run is a folder: name a recipe in it, such as .*recipe\.yaml\.$"):
        find_recipe(str(folder / "run"))


@pytest.mark.parametrize("version", ["'1'", "null", "3"])
def test_the_version_is_one(told, version):
    assert "version" in told(SMALL.replace("version: 1", f"version: {version}"))


shares = st.decimals(0, 1, allow_nan=False, places=6).filter(lambda share: share < 1)
names = st.text(ascii_lowercase, min_size=1, max_size=6)
pruners = st.one_of(
    st.just("wanda"),
    st.fixed_dictionaries(
        {"use": st.just("wanda")},
        optional={"alpha": st.floats(allow_nan=False, allow_infinity=False), "compare": st.just("row")},
    ),
    st.fixed_dictionaries(
        {"use": st.just("odd")}, optional={"text": st.none() | st.text(), "anything": st.lists(st.text())}
    ),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=shares, seed=st.integers(0, 2**63), prune=pruners, own=st.dictionaries(names, st.just("keep") | pruners))
def test_any_recipe_loads_again_as_itself(registry, share, seed, prune, own):
    towers = {name: "keep" if what == "keep" else {"prune": what} for name, what in own.items()}
    data = {"use": "text", "path": "a b.txt"}
    source = {"version": 1, "model": "m", "sparsity": float(share), "seed": seed, "calibration": data}
    recipe = parse_recipe({**source, "prune": prune, "towers": towers}, registry=registry)
    again = parse_recipe(recipe.dump(), registry=registry, file="/elsewhere/r.yaml")
    assert again == recipe
    assert again.sparsity_fraction == Fraction(share)


def test_a_revision_is_of_a_hub_id(parse, folder):
    recipe = parse(SMALL.replace("model: m", "model: {source: org/name, revision: v1.0}"))
    assert recipe.model.revised_source == "org/name@v1.0"
    assert recipe.plain()["model"]["revision"] == "v1.0"
    assert parse(recipe.dump()) == recipe
    assert parse(SMALL.replace("model: m", "model: org/name@v1.0")).model.revised_source == "org/name@v1.0"
    assert "revision" not in parse(SMALL).plain()["model"]


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("{source: package:m, revision: v1}", "model.revision: is of a hub id, org/name, and the source is package:m"),
        ("{source: org/name@v1, revision: v2}", "model.revision: stands in the source too: org/name@v1. Leave one"),
        ("{source: org/name, revision: 'v 1'}", "model.revision: should be a branch, a tag or a commit, not 'v 1'"),
    ],
)
def test_a_revision_that_cannot_be(model, problem, parse):
    with pytest.raises(RecipeError) as error:
        parse(SMALL.replace("model: m", f"model: {model}"))
    assert problem in str(error.value)
