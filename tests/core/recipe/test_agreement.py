"""What a scorer gives and an allocator takes have to agree; nothing is loaded to see it."""

from dataclasses import dataclass

import pytest
from sealed_by_hand import write_lines

from ecoflap import Curve
from ecoflap.core.errors import RecipeError
from ecoflap.core.planning.scores import header_line, score_line
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry
from ecoflap.core.sealing.sealed_text import write_sealed_text
from ecoflap.plugins.scorers.outlier_share import OutlierShare

REGISTRY = load_registry(installed=False)
RECIPE = """\
version: 1
model: m
sparsity: 0.5
prune: magnitude
calibration: {use: text, path: a}
score: SCORE
"""


def read(score, allocate=None):
    text = RECIPE.replace("SCORE", score) + (f"allocate: {allocate}\n" if allocate else "")
    return parse_recipe(text, registry=REGISTRY, file="r.yaml")


@pytest.mark.parametrize(
    ("score", "allocate", "said"),
    [
        (
            "hill",
            "marginal",
            "marginal looks at scores that are curves, and hill gives numbers. Scorers that give curves: from_run, "
            "sensitivity. Allocators that take numbers: alpha, best_of, ecoflap, owl.",
        ),
        (
            "sensitivity",
            "owl",
            "owl looks at scores that are numbers, and sensitivity gives curves. Scorers that give numbers: "
            "first_order, from_run, hill, local_metric, magnitude, outlier_share, token_diversity, "
            "zeroth_order. "
            "Allocators that take curves: best_of, marginal.",
        ),
        (
            "{use: weight_metric, metric: wanda}",
            "ecoflap",
            "ecoflap looks at scores that are numbers, and weight_metric gives numbers a weight. Scorers that give "
            "numbers: first_order, from_run, hill, local_metric, magnitude, outlier_share, "
            "token_diversity, zeroth_order. Allocators that take numbers a weight: best_of, threshold.",
        ),
        (
            "hill",
            "threshold",
            "threshold looks at scores that are numbers a weight, and hill gives numbers. Scorers that give numbers a "
            "weight: from_run, weight_metric. Allocators that take numbers: alpha, best_of, ecoflap, owl.",
        ),
    ],
)
def test_numbers_and_curves_are_not_taken_for_each_other(score, allocate, said):
    with pytest.raises(RecipeError) as caught:
        read(score, allocate)
    assert caught.value.problems == (f"r.yaml:7:11: allocate: {said}",)


def said_of(allocator, wanted, given):
    return (
        f"r.yaml:7:11: allocate: {allocator} reads the scores of {wanted}, and those of {given} are others. Write "
        f"score: {wanted}, or allocate by what reads any numbers: ecoflap.",
    )


@pytest.mark.parametrize("score", ["zeroth_order", "magnitude", "outlier_share", "hill"])
@pytest.mark.parametrize(("allocator", "wanted"), [("alpha", "hill"), ("owl", "outlier_share")])
def test_what_reads_the_scores_of_one_method_takes_no_others(score, allocator, wanted):
    among_others = "{use: best_of, of: [uniform, ALLOCATOR]}".replace("ALLOCATOR", allocator)
    for use, allocate in ((allocator, allocator), ("best_of", among_others)):
        if score == wanted:
            assert read(score, allocate).takes_scores
            continue
        with pytest.raises(RecipeError) as caught:
            read(score, allocate)
        assert caught.value.problems == said_of(use, wanted, score)


def test_two_that_read_the_scores_of_different_methods_are_no_candidates_of_one_recipe():
    with pytest.raises(
        RecipeError, match="candidates that read the scores of hill and of outlier_share; a recipe has one"
    ):
        read("hill", "{use: best_of, of: [owl, alpha]}")


class LikeHill:
    """A scorer of one's own, by the same formula."""

    data, like = False, "hill"

    def __call__(self, replay, layers):
        yield from ()


def test_a_scorer_of_ones_own_says_whose_scores_its_are_like():
    document = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude", "allocate": "alpha"}
    assert parse_recipe({**document, "score": {"use": LikeHill}}, registry=REGISTRY).takes_scores
    with pytest.raises(RecipeError, match="owl reads the scores of outlier_share, and those of hill are others"):
        parse_recipe({**document, "score": {"use": LikeHill}, "allocate": "owl"}, registry=REGISTRY)


@dataclass(frozen=True)
class ReadsNone:
    """An allocator that names a scorer which nothing has."""

    scorers = ("hil",)

    def __call__(self, groups, keep): ...


def test_a_scorer_that_an_allocator_misspells_is_told():
    document = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude", "score": "hill"}
    with pytest.raises(
        RecipeError, match=r"ReadsNone, in its member scorers: no scorer named 'hil'\. Did you mean 'hill'"
    ):
        parse_recipe({**document, "allocate": ReadsNone}, registry=REGISTRY)


def test_a_scorer_is_known_by_what_makes_it_and_not_by_how_it_is_named():
    document = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude", "allocate": "owl"}
    calibration = {"calibration": {"use": "text", "path": "a"}, "score": {"use": OutlierShare}}
    assert parse_recipe({**document, **calibration}, registry=REGISTRY).takes_scores


def test_scores_of_a_run_are_those_of_its_scorer(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, score in ((first, {"use": "hill"}), (second, {"use": "from_run", "run": str(first)})):
        folder.mkdir()
        write_lines(folder / "scores.jsonl", [header_line("layer", "mean"), score_line("a", 1.0)])
        scores = f"{{use: from_run, run: {folder}}}"
        assert all(read(scores, one).takes_scores for one in ("alpha", "owl"))  # nothing tells whose they are
        recipe = parse_recipe(
            {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude", "score": score}, registry=REGISTRY
        )
        write_sealed_text(folder / "recipe.yaml", recipe.dump())
        assert read(scores, "alpha").takes_scores
        with pytest.raises(RecipeError) as caught:
            read(scores, "owl")
        assert caught.value.problems == said_of("owl", "outlier_share", "hill")
    (first / "recipe.yaml").write_text("# by hand\n")
    assert read(f"{{use: from_run, run: {first}}}", "owl").takes_scores  # again nothing tells


@pytest.mark.parametrize("allocate", ["uniform", "{use: atp, beta: 0.01}"])
def test_an_allocator_that_takes_none_goes_with_all(allocate):
    assert not read("sensitivity", allocate).takes_scores


@pytest.mark.parametrize(
    ("score", "allocate", "granularity"),
    [
        ("sensitivity", "marginal", "block"),
        ("hill", "ecoflap", "block"),
        ("{use: weight_metric, metric: magnitude}", "threshold", "layer"),
        ("{use: weight_metric, metric: magnitude, granularity: tower}", "threshold", "tower"),
    ],
)
def test_what_divides_a_budget_among_what_follows_from_the_scorer_where_nothing_is_said(score, allocate, granularity):
    recipe = read(score)
    assert (recipe.allocate.use, recipe.score.granularity) == (allocate, granularity)


def test_what_is_taken_over_gives_what_it_is(tmp_path):
    write_lines(
        tmp_path / "scores.jsonl", [header_line("block", "sum"), score_line("a", Curve((0.4, 0.6), (1.0, 2.0)))]
    )
    taken = f"{{use: from_run, run: {tmp_path}}}"
    assert read(taken).allocate.use == "marginal"
    with pytest.raises(RecipeError, match="ecoflap looks at scores that are numbers, and from_run gives curves"):
        read(taken, "ecoflap")
    # Where it cannot be read, the scorer itself says why before a run, and nothing is guessed here.
    nowhere = f"{{use: from_run, run: {tmp_path / 'nowhere'}}}"
    assert read(nowhere, "marginal").allocate.use == "marginal"
