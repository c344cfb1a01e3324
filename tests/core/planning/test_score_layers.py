"""Scoring: what is kept of a scorer's answers, and what is refused."""

from dataclasses import replace

import pytest
import torch
from spec import spec
from torch import nn

from ecoflap import Block, EcoflapError, Layer, Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.budget.curves import Curve
from ecoflap.core.contracts.events import Warned
from ecoflap.core.contracts.records import Estimate
from ecoflap.core.errors import ModelError
from ecoflap.core.planning.score_layers import score_layers
from ecoflap.core.ranks.ranks import Ranks


@pytest.fixture
def layers():
    """Two blocks, ``a`` and ``b``, of two layers each."""
    blocks = [Block(name, nn.Identity(), "language") for name in ("a", "b")]
    return [(block, Layer(f"{block.name}.{name}", nn.Linear(4, 4))) for block in blocks for name in ("x", "y")]


@pytest.fixture
def replay(pico_llama):
    """Of a model that these scorers do not look at."""
    return Replay(pico_llama(layers=1), LlamaAdapter(), [])


@pytest.fixture
def events():
    """What a run would hear."""
    return []


@pytest.fixture
def scored(layers, replay, events, tmp_path):
    """What comes of a scorer of this name, with these members, that yields these pairs; what it was asked for."""

    def scored(called, pairs, aggregate, **members):
        asked = []

        def score(self, replay, wanted):
            asked.extend(layer.name for layer in wanted)
            yield from pairs

        scorer = type(called, (), {**members, "aggregate": aggregate, "__call__": score})()
        path = tmp_path / "scores.jsonl"
        return score_layers(spec("scorer", scorer), aggregate, replay, layers, path, events.append), asked

    return scored


class Two(Ranks):
    """The first of two processes, of which the other has found so many times as much."""

    rank, size = 0, 2

    def __init__(self, times):
        self.times = times

    def gather(self, mine):
        return [mine, mine * self.times if isinstance(mine, float) else mine]


@pytest.mark.parametrize("times", [1.0, 1 + 1e-6])
def test_processes_that_find_the_same_take_the_first_ones_score(replay, scored, times):
    replay.ranks = Two(times)
    found, _ = scored("Mine", [(name, 0.5) for name in ("a.x", "a.y", "b.x", "b.y")], "sum")
    assert set(found.values.values()) == {0.5}


@pytest.mark.parametrize("value", [0.5, Curve((0.5, 0.6), (1.0, 2.0))])
def test_processes_that_find_other_scores_are_told(replay, scored, value):
    replay.ranks = Two(0.5)
    gives = {"gives": "curve"} if isinstance(value, Curve) else {}
    with pytest.raises(ModelError, match=r"Mine gave a\.x .* in one process and .* in another: .*replay\.gathered"):
        scored("Mine", [("a.x", value)], "sum", **gives)


@pytest.fixture
def score(scored):
    """``score(pairs, unit)``: the same of one that gives a number, or what else these are."""

    def score(pairs, unit="layer"):
        gives = "curve" if any(isinstance(given, Curve) for _, given in pairs) else "number"
        return scored("Scorer", pairs, "sum", unit=unit, gives=gives)

    return score


GOOD = [("a.x", 1.0), ("a.y", 2), ("b.x", Estimate([1.0, 3.0])), ("b.y", 0.0)]


def test_every_score_is_kept_as_it_is_found(score, tmp_path):
    scores, asked = score(GOOD)
    assert dict(scores.values) == dict(GOOD)
    assert asked == ["a.x", "a.y", "b.x", "b.y"]
    lines = (tmp_path / "scores.jsonl").read_text().splitlines()
    assert lines[0].startswith('{"version": 1, "unit": "layer", "aggregate": "sum", "seal": ')
    assert lines[3].startswith('{"name": "b.x", "score": 2.0, "terms": [1.0, 3.0], "seal": ')


def test_what_is_known_is_neither_asked_nor_written_again(score, tmp_path):
    with pytest.raises(ModelError, match=r"no score for 2 layer\(s\): b\.x, b\.y$"):
        score(GOOD[:2])
    scores, asked = score(GOOD)  # which gives those it gave before once more
    assert asked == ["b.x", "b.y"]
    assert dict(scores.values) == dict(GOOD)
    assert score([])[1] == []
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 1 + 4


def test_a_scorer_whose_scores_depend_on_each_other_is_asked_for_all_of_them(layers, replay, tmp_path):
    asked = []

    class Together:
        together = True

        def __call__(self, replay, wanted):
            asked.append([layer.name for layer in wanted])
            yield from GOOD[: 4 if len(asked) > 1 else 2]

    def score():
        return score_layers(spec("scorer", Together()), "sum", replay, layers, tmp_path / "s.jsonl", lambda event: None)

    with pytest.raises(ModelError, match="no score for 2"):
        score()
    assert dict(score().values) == dict(GOOD)
    assert asked == [["a.x", "a.y", "b.x", "b.y"]] * 2


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (
            float("nan"),
            "a.x, by the scorer Scorer: its score is nan; a score must be a finite number that is not negative",
        ),
        (float("inf"), "a.x: the scorer Scorer gave inf"),
        (-1.0, "a.x, by the scorer Scorer: its score is -1.0"),
        (Estimate([-1.0, -2.0]), "a.x, by the scorer Scorer: its score is -1.5"),
        ("high", "a.x: the scorer Scorer gave 'high' as its score; a score is a finite float, "),
        (None, "a.x: the scorer Scorer gave None"),
        (True, "a.x: the scorer Scorer gave True"),
    ],
)
def test_a_score_that_is_none_is_refused_by_name_and_not_kept(score, tmp_path, value, told):
    with pytest.raises(ModelError) as caught:
        score([("a.x", value)])
    assert str(caught.value).startswith(told)
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("curve", "told"),
    [
        (lambda: Curve((0.3, 0.5), (1.0, float("nan"))), "the rise at 0.5 is nan; a rise is finite"),
        (lambda: Curve((0.3, 0.5), (1.0,)), "a curve has 2 levels and 1 rises; each level has one"),
        (lambda: Curve((0.5, 0.3), (1.0, 2.0)), "levels are [0.5, 0.3]; a ladder is"),
    ],
)
def test_a_curve_that_is_none_is_refused_with_whose_it_is(scored, curve, told):
    def answers():
        yield "a.x", Curve((0.3, 0.5), (1.0, 2.0))
        yield "a.y", curve()

    with pytest.raises(ModelError) as caught:
        scored("Scorer", answers(), "sum", unit="layer", gives="curve")
    assert str(caught.value).startswith(f"the scorer Scorer, at its answer behind that for a.x: {told}")


def test_a_second_score_is_refused(score):
    """Who yields one for each batch has nobody sum them."""
    with pytest.raises(ModelError, match=r"Scorer gave a\.x a second score, 3\.0; it yields one for each layer"):
        score([*GOOD[:2], ("a.x", 3.0)])


def test_a_score_for_something_else_is_refused(score):
    with pytest.raises(ModelError, match=r"'a\.z', which is no layer to be pruned\. Did you mean 'a\.[xy]'\?"):
        score([("a.z", 1.0)])
    with pytest.raises(
        ModelError, match=r"'a\.x', which is no block to be pruned.*unit = 'block' yields the names of bl"
    ):
        score([("a.x", 1.0)], unit="block")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "Scorer: the score of every layer is 0, so nothing tells them apart. Does the loss depend on them"),
        (1.5, "Scorer: the score of every layer is 1.5, so nothing tells them apart."),
    ],
)
def test_scores_that_tell_nothing_apart_are_warned_of(score, events, value, said):
    score([(name, value) for name, _ in GOOD])
    (warned,) = [event.message for event in events if isinstance(event, Warned)]
    assert warned.startswith(said)


def test_scores_that_differ_are_not_warned_of(score, events):
    score(GOOD)
    assert not [event for event in events if isinstance(event, Warned)]


@pytest.mark.parametrize(("given", "gives", "said"), [
    (Curve((0.4, 0.8), (0.1, 0.3)), "number", "says that it gives numbers"),
    (0.5, "curve", "says that it gives curves"),
])  # fmt: skip
def test_a_scorer_gives_what_it_says_that_it_gives(scored, given, gives, said):
    with pytest.raises(ModelError, match=rf"a\.x: the scorer Scorer gave .*{said}, by which allocators are chosen"):
        scored("Scorer", [("a.x", given)], "sum", gives=gives)


CURVES = [(name, Curve((0.4, 0.8), (0.1, float(at)))) for at, (name, _) in enumerate(GOOD)]


def test_curves_are_kept_as_they_are_found(score, tmp_path):
    with pytest.raises(ModelError, match=r"no score for 3 layer\(s\)"):
        score(CURVES[:1])
    scores, asked = score(CURVES)
    assert (scores.kind, dict(scores.values), asked) == ("curve", dict(CURVES), ["a.y", "b.x", "b.y"])
    line = (tmp_path / "scores.jsonl").read_text().splitlines()[2]
    assert line.startswith('{"name": "a.y", "levels": [0.4, 0.8], "rises": [0.1, 1.0], "seal": ')


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (1.0, r"a\.y: the scorer Scorer gave 1\.0, and Curve.* before; all of its scores are of one kind"),
        (
            Curve((0.4, 0.7), (1.0, 2.0)),
            r"a\.y: the scorer Scorer gave a curve at \[0\.4, 0\.7\], and those before are at \[0\.4, 0\.8\]",
        ),
    ],
)
def test_scores_are_all_of_one_kind_and_one_ladder(score, second, told):
    with pytest.raises(ModelError, match=told):
        score([CURVES[0], ("a.y", second)])
    with pytest.raises(ModelError, match=r"a\.y: the scorer Scorer gave"):  # the first is read back
        score([("a.y", 1.0)])


@pytest.mark.parametrize(
    ("rises", "said"), [((0.0, 0.0), "the score of every layer is 0"), ((0.1, 0.3), "the curve of")]
)
def test_curves_that_tell_nothing_apart_are_warned_of(score, events, rises, said):
    score([(name, Curve((0.4, 0.8), rises)) for name, _ in GOOD])
    (warned,) = [event.message for event in events if isinstance(event, Warned)]
    assert warned.startswith(f"Scorer: {said}")


def test_what_a_curve_notes_is_told_once(score, events, tmp_path):
    with pytest.raises(ModelError, match=r"no score for 3 layer\(s\)"):
        score([(CURVES[0][0], replace(CURVES[0][1], notes=("few", "fewer")))])
    scores, _ = score(CURVES)  # goes on behind the first
    assert dict(scores.values) == dict(CURVES)
    assert [event.message for event in events if isinstance(event, Warned)] == ["Scorer: few", "Scorer: fewer"]


NUMBERS = [(name, torch.full((4, 4), float(at))) for at, (name, _) in enumerate(GOOD)]


@pytest.fixture
def score_weights(scored):
    """``score_weights(pairs)``: the same of one that gives numbers a weight."""
    return lambda pairs, gives="weights": scored("OfWeights", pairs, "mean", gives=gives)


def test_numbers_of_weights_are_put_into_files_as_they_are_found(score_weights, tmp_path):
    with pytest.raises(ModelError, match=r"no score for 3 layer\(s\)"):
        score_weights(NUMBERS[:1])
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["000.safetensors"]
    given = [NUMBERS[3], ("a.y", NUMBERS[1][1].to(torch.bfloat16)), ("b.x", NUMBERS[2][1].double().t())]
    scores, asked = score_weights(given)  # in another order, and of other types
    assert (scores.kind, asked) == ("weights", ["a.y", "b.x", "b.y"])
    for at, (name, numbers) in enumerate(NUMBERS):
        assert torch.equal(scores.values[name].numbers(), numbers)
        assert scores.values[name].file == tmp_path / "scores" / f"{at:03d}.safetensors"
    assert scores.of({"a.y": 16, "b.y": 16}) == (16 * 1 + 16 * 3) / 2
    line = (tmp_path / "scores.jsonl").read_text().splitlines()[2]
    assert line.startswith('{"name": "b.y", "file": "003.safetensors", "seal_of_file": "')
    assert '", "sum": 48.0, "seal": ' in line


def one_wrong(value):
    return torch.ones(4, 4).index_put_((torch.tensor([1, 2]), torch.tensor([2, 0])), torch.tensor(value))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (
            one_wrong(float("nan")),
            r"nan for the weight in row 1 and column 2, the first of 2 such; numbers of weights ",
        ),
        (one_wrong(float("inf")), r"inf for the weight in row 1 and column 2"),
        (one_wrong(-1.0), r"-1\.0 for the weight in row 1 and column 2.* are finite in float32, and not negative$"),
        (torch.full((4, 4), 1e300, dtype=torch.float64), r"inf for the weight in row 0 and column 0, the first of 16"),
        (
            torch.ones(4, 3),
            r"torch\.float32 of \(4, 3\); it has to give one floating-point number for each weight, \(4, 4\)",
        ),
        (torch.ones(16), r"torch\.float32 of \(16,\); it has to give"),
        (torch.ones(4, 4, dtype=torch.int64), r"torch\.int64 of \(4, 4\); it has to give"),
        (torch.ones(4, 4).to_sparse(), r"tensor\(.* it has to give one floating-point number for each weight, "),
        (1.0, r"1\.0; it has to give one floating-point number for each weight, \(4, 4\) here"),
    ],
)
def test_numbers_that_are_none_are_refused_by_the_layers_name_and_not_kept(score_weights, tmp_path, value, told):
    with pytest.raises(ModelError, match=rf"^a\.x: the scorer OfWeights gave {told}"):
        score_weights([("a.x", value)])
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "scores").exists()


def test_numbers_of_something_else_and_of_another_kind_are_refused(score_weights):
    with pytest.raises(ModelError, match=r"'a\.z', which is no layer to be pruned"):
        score_weights([("a.z", NUMBERS[0][1])])
    with pytest.raises(ModelError, match=r"^a\.x: the scorer OfWeights gave tensor.* a tensor where the scorer has gi"):
        score_weights(NUMBERS, gives="number")
    with pytest.raises(ModelError, match=r"^a\.y: the scorer OfWeights gave 1\.0, and WeightScores.* of one kind"):
        score_weights([NUMBERS[0], ("a.y", 1.0)])
    with pytest.raises(ModelError, match=r"^a\.y: the scorer OfWeights gave 1\.0, and WeightScores"):
        score_weights([("a.y", 1.0)], gives="number")  # the first is read back


def test_numbers_of_weights_that_are_all_zero_are_warned_of_and_equal_sums_are_not(score_weights, events, tmp_path):
    score_weights([(name, torch.ones(4, 4)) for name, _ in GOOD])
    assert not [event for event in events if isinstance(event, Warned)]
    (tmp_path / "scores.jsonl").unlink()
    score_weights([(name, torch.zeros(4, 4)) for name, _ in GOOD])
    (warned,) = [event.message for event in events if isinstance(event, Warned)]
    assert warned.startswith("OfWeights: the score of every layer is 0")


def test_a_scorer_that_raises_is_named_with_what_it_has_answered_for_last(layers, replay, tmp_path):
    class Breaks:
        def __call__(self, replay, wanted):
            yield "a.x", 1.0
            raise ZeroDivisionError("division by zero")

    said = (
        r"^the scorer Breaks, at its answer behind that for a\.x, raised ZeroDivisionError: division by zero\. It happ"
    )
    with pytest.raises(EcoflapError, match=said):
        score_layers(spec("scorer", Breaks()), "sum", replay, layers, tmp_path / "s.jsonl", lambda event: None)
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("answers", [3, ["a.x"], [("a.x",)], [None]])
def test_a_scorer_that_yields_no_pairs_is_named(layers, replay, tmp_path, answers):
    class Odd:
        def __call__(self, replay, wanted):
            return answers

    with pytest.raises(EcoflapError, match=r"^the scorer Odd "):
        score_layers(spec("scorer", Odd()), "sum", replay, layers, tmp_path / "s.jsonl", lambda event: None)
