"""``--set`` on the command line: what it changes, and what cannot be set."""

from pathlib import Path

import pytest

from ecoflap.core.errors import RecipeError
from ecoflap.core.recipe.overrides import as_assignments
from ecoflap.core.text.strict_yaml import Place, parse_yaml

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


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        (["sparsity=0.6"], {"sparsity": 0.6}),
        (["sparsity=2:4"], {"sparsity": "2:4"}),
        (["prune=sparsegpt"], {"prune": {"use": "sparsegpt", "block": 128, "damping": 0.01}}),
        (["prune.use=sparsegpt"], {"prune": {"use": "sparsegpt", "block": 128, "damping": 0.01}}),
        (["prune.compare=layer"], {"prune": {"use": "wanda", "compare": "layer", "alpha": 0.5}}),
        (["prune.alpha=1e-3", "prune.use=wanda"], {"prune": {"use": "wanda", "compare": "row", "alpha": 0.001}}),
        (["prune.alpha=3", "prune.use=obs"], {"prune": {"use": "sparsegpt", "block": 128, "damping": 0.01}}),
        (["export=[safetensors]", "export.0.shard=2"], {"export": [{"use": "safetensors", "shard": 2}]}),
        (["export.0.shard=2"], {"export": [{"use": "safetensors", "shard": 2}]}),
        (["export.1=safetensors"], {"export": [{"use": "safetensors", "shard": 5}] * 2}),
        (["export=null"], {"export": []}),
        (["towers.vision=keep"], {"towers": {"vision": "keep"}}),
        (["towers.vision.prune.use=magnitude"], {"towers": {"vision": {"prune": {"use": "magnitude"}}}}),
        (["model.dtype=float32"], {"model": {"source": "m", "dtype": "float32", "compute": "auto", "device": "auto"}}),
    ],
)
def test_set(parse, assignments, expected):
    text = (
        SMALL.replace("magnitude", "wanda") + "export: safetensors\ncalibration: {use: text, path: a, batch_size: 4}\n"
    )
    plain = parse(text, *assignments).plain()
    assert {key: plain[key] for key in expected} == expected


def test_set_keeps_the_engines_keys_when_it_exchanges_a_part(parse):
    recipe = parse(FULL, "score.use=norm", "calibration.path=other.txt")
    assert (recipe.score.granularity, recipe.score.scorer.use) == ("layer", "norm")
    assert recipe.calibration.batch_size == 8
    assert recipe.calibration.data.parameters["path"] == Path("other.txt").absolute()


def test_set_inside_of_a_tower_that_was_kept_prunes_it(parse):
    tower = parse(FULL, "towers.qformer.sparsity=0.3").towers["qformer"]
    assert (tower.sparsity, tower.prune) == (0.3, None)


def test_set_with_null_removes(parse):
    assert parse(FULL, "score=null", "allocate=null").allocate.use == "uniform"


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("sparsity", "--set sparsity: should be KEY=VALUE"),
        ("a..b=1", "--set a..b=1: should be KEY=VALUE"),
        ("=1", "should be KEY=VALUE"),
        ("sparsty=0.5", "--set sparsty=0.5: sparsty: unknown key 'sparsty'. Did you mean 'sparsity'?"),
        (
            "prune.compar=row",
            "--set prune.compar=row: prune.compar: wanda has no parameter 'compar'. Did you mean 'compare'?",
        ),
        ("seed=x", "--set seed=x: seed: should be a valid integer, not 'x'."),
        ("sparsity.x=1", "--set sparsity.x=1: sparsity is 0.7, which has no keys."),
        ("evaluate.4.samples=1", "evaluate is a list of 1; '4' should be a number up to that."),
        ("evaluate.x=1", "'x' should be a number"),
        ("score=[", "Put the value in quotes if it is a text."),
        ("score.eps.x=1", "score.eps is 0.01, which has no keys."),
        ("calibration.path=3", "--set calibration.path=3: calibration.path: should be a valid"),
    ],
)
def test_set_that_cannot_be_applied(told, assignment, said):
    assert said in told(FULL, assignment)


def test_python_may_give_a_mapping_or_one_text():
    assert as_assignments("sparsity=0.6") == ("sparsity=0.6",)
    assert as_assignments(["a=1", "b=2"]) == ("a=1", "b=2")
    given = {"sparsity": 0.6, "prune.use": "wanda", "model": Path("m"), "export": [], "score": None, "name": "0.5"}
    texts = as_assignments(given)
    assert texts[:3] == ("sparsity=0.6", "prune.use=wanda", "model=m")
    for text, value in zip(texts, given.values(), strict=True):
        read = parse_yaml(text.partition("=")[2], Place("here"))[0].value
        assert read == (str(value) if isinstance(value, Path) else value)
        assert type(read) is type(value) or isinstance(value, Path)
    with pytest.raises(RecipeError, match=r"set_: prune: <object .* is none of the values that a recipe writes"):
        as_assignments({"prune": object()})
