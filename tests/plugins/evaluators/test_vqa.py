import math
from dataclasses import replace
from statistics import stdev
from typing import Any

import pytest
from PIL import Image
from speaking import Given, Parrot
from torch import nn

import ecoflap
from ecoflap.adapters.clip import ClipAdapter
from ecoflap.core.contracts.abilities import Generates, Generation
from ecoflap.core.contracts.protocols import Evaluator, ignore
from ecoflap.core.contracts.records import Measure, Sample
from ecoflap.core.errors import DataError, EcoflapError, ModelError
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.plugins.evaluators.vqa import Vqa

MODEL = nn.Identity()


def ask(question: str, *answers: str, **keys: Any) -> Sample:
    return Sample(question=question, answers=answers, **keys)


def found(samples: list[Sample], lines: dict[str, str], **keys: Any) -> dict[str, Measure]:
    keys = {"prompt": "{}", **keys}
    return dict(Vqa(Given(samples), **keys)(MODEL, Parrot(lines), ignore))


def test_is_an_evaluator_that_wants_texts():
    assert isinstance(Vqa(Given([])), Evaluator)
    assert Vqa.wants is Generates


def test_by_hand():
    """Right by 1, 0.6, 0.3 and 0; two of four texts are ended."""
    samples = [
        ask("q0", *["cat"] * 10),
        ask("q1", *["two"] * 2, *["2"] * 2, *["3"] * 6),
        ask("q2", *["red"], *["blue"] * 9),
        ask("q3", *["red"] * 10),
    ]
    lines = {"q0": "The cat.", "q1": "3 3…", "q2": "red", "q3": "blue…"}
    lines["q1"] = "two"
    measures = found(samples, lines)
    assert measures["vqa"].value == pytest.approx((1 + 0.6 + 0.3 + 0) / 4)
    assert measures["vqa"].standard_error == pytest.approx(stdev([1, 0.6, 0.3, 0]) / 2)
    assert measures["vqa ended"].value == 0.75
    assert {name: (m.n, m.unit, m.larger_is_better) for name, m in measures.items()} == {
        "vqa": (4, "questions", True),
        "vqa ended": (4, "questions", True),
    }


def test_one_answer_is_met_exactly_but_for_wording():
    samples = [ask("q0", "hot dog"), ask("q1", "2"), ask("q2", "hot dog"), ask("q3", "on the mat", "mat")]
    lines = {"q0": "A hot-dog", "q1": "two", "q2": "hot dogs", "q3": "Mat."}
    assert found(samples, lines)["vqa"].value == 0.75


def test_questions_on_one_image_count_together_in_the_error():
    """Three images with 2, 2 and 1 questions, by name, by picture and without one."""
    named = [ask("q0", "w1", image_id=7), ask("q1", "w1", image_id=7)]
    drawn = [ask(q, "w1", image=Image.new("RGB", (2, 2), (9, 9, 9))) for q in ("q2", "q3")]
    lines = {"q0": "w1", "q1": "w1", "q2": "w1", "q3": "w2", "q4": "w2"}
    measure = found([*named, *drawn, ask("q4", "w1")], lines)["vqa"]
    mean = 3 / 5
    sums = [2 - 2 * mean, 1 - 2 * mean, 0 - mean]
    assert measure.value == pytest.approx(mean)
    assert measure.standard_error == pytest.approx(math.sqrt(3 / 2 * sum(one**2 for one in sums)) / 5)


def test_with_one_image_the_error_is_unknown():
    assert found([ask("q0", "w1", image_id=1)] * 2, {"q0": "w1"})["vqa"].standard_error == math.inf


def test_the_question_takes_its_place_in_the_prompt():
    parrot = Parrot({"Question: is {this} it? Short answer:": "yes", "Question: q Short answer:": "no"})
    data = Given([ask("is {this} it?", "yes"), ask("q", "yes")])
    assert Vqa(data)(MODEL, parrot, ignore)["vqa"].value == 0.5
    assert parrot.generation == Generation(10, 0, 5, -1.0)  # the paper's, by LAVIS' settings


def test_samples_go_in_batches():
    questions = [f"q{number}" for number in range(5)]
    parrot = Parrot(dict.fromkeys(questions, "w1"))
    Vqa(Given([ask(question, "w1") for question in questions]), "{}", batch_size=2)(MODEL, parrot, ignore)
    assert parrot.asked == [["q0", "q1"], ["q2", "q3"], ["q4"]]


def test_tokens_are_right_if_they_begin_with_those_of_an_answer():
    """One that lost the token that ends a text goes on; and nothing is put in other words."""
    samples = [ask(f"q{number}", "w1 w2") for number in range(5)] + [ask("q5", *["w1"] * 2, *["w2"] * 8)]
    lines = {"q0": "w1 w2", "q1": "w1 w2 w9 w9…", "q2": "w1", "q3": "w2 w1", "q4": "the w1 w2", "q5": "w1 w2…"}
    by_tokens, by_text = (found(samples, lines, score=score)["vqa"] for score in ("tokens", "text"))
    assert by_tokens.value == pytest.approx((1 + 1 + 0.6) / 6)
    assert by_text.value == pytest.approx((1 + 1) / 6)  # q0 and, without its article, q4
    assert found(samples, lines)["vqa ended"].value == pytest.approx(4 / 6)


def test_an_empty_answer_is_wrong_and_is_noted():
    samples = [ask("q0", "?"), ask("q1", "w1"), ask("q2", "w1")]
    notes: list[str] = []
    evaluator = Vqa(Given(samples), "{}")
    silent = Parrot({"q0": "", "q1": " ", "q2": "w1"})
    assert evaluator(MODEL, silent, notes.append)["vqa"].value == pytest.approx(1 / 3)
    assert notes == ["2 of 3 answers are empty, and count as wrong."]
    notes.clear()
    evaluator(MODEL, Parrot({"q0": "w1", "q1": "w1", "q2": "w1"}), notes.append)
    assert notes == []


def test_measures_by_kind():
    samples = [ask("q0", "yes", kind="yes/no"), ask("q1", "3", kind="number"), ask("q2", "4", kind="number")]
    lines = {"q0": "yes", "q1": "3", "q2": "3"}
    measures = found(samples, lines, by="kind")
    assert {name: (m.value, m.n) for name, m in measures.items()} == {
        "vqa": (pytest.approx(2 / 3), 3),
        "vqa ended": (1, 3),
        "vqa number": (0.5, 2),
        "vqa yes/no": (1, 1),
    }
    assert list(found(samples, lines)) == ["vqa", "vqa ended"]
    with pytest.raises(DataError, match=r"1 of 3 samples of its data have no kind, and by asks .*: number 1"):
        found([samples[0], replace(samples[1], kind=None), samples[2]], lines, by="kind")


def test_a_kind_that_the_data_call_as_another_measure_is_called_is_told_apart_from_it():
    kinds = ("ended", "kind ended", "kind of animal")
    samples = [ask(f"q{number}", "yes", kind=kind) for number, kind in enumerate(kinds)]
    lines = {"q0": "yes", "q1": "no", "q2": "yes…"}
    assert {name: m.value for name, m in found(samples, lines, by="kind").items()} == {
        "vqa": pytest.approx(2 / 3),
        "vqa ended": pytest.approx(2 / 3),
        "vqa kind ended": 1,
        "vqa kind kind ended": 0,
        "vqa kind of animal": 1,
    }


def test_what_samples_lack_is_told_before_the_first_text():
    samples = [ask("q", "w1"), ask("q"), Sample(answers=("w1",)), *[ask("q", " ")] * 6]
    data, parrot = Given(samples), Parrot({"q": "w1"})
    with pytest.raises(EcoflapError) as error:
        Vqa(data, "{}", batch_size=2)(MODEL, parrot, ignore)
    assert error.value.problems == (
        "vqa: 7 of 9 samples of its data have no answer: number 1, 3, 4, 5, 6 and 2 more.",
        "vqa: 1 of 9 samples of its data have no question: number 2.",
    )
    assert parrot.asked == []


def test_no_more_than_a_batch_is_read_ahead():
    """Images take memory."""
    data = Given([ask("q", "w1")] * 9)
    ahead: list[int] = []

    class Watching(Parrot):
        def generate(self, *arguments: Any) -> Any:
            ahead.append(len(data.read))
            return super().generate(*arguments)

    Vqa(data, "{}", batch_size=3)(MODEL, Watching({"q": "w1"}), ignore)
    assert ahead == [3, 6, 9]


def test_no_data_and_no_texts():
    with pytest.raises(DataError, match="vqa: its data holds no sample"):
        Vqa(Given([]))(MODEL, Parrot({}), ignore)
    with pytest.raises(ModelError, match="vqa needs a model that can make texts"):
        Vqa(Given([ask("q", "w1")]))(MODEL, ClipAdapter(), ignore)


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ({"prompt": "Question:"}, r"prompt is 'Question:'; it is to hold \{\} once"),
        ({"prompt": "{} and {}"}, r"it is to hold \{\} once"),
        ({"num_beams": 0}, "num_beams is 0; at least 1 is needed"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"min_new_tokens": 11}, "min_new_tokens is 11; from 0 to max_new_tokens, 10, is possible"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1"),
        ({"score": "token"}, "should be 'text' or 'tokens'"),
        ({"by": "image"}, "should be 'kind'"),
    ],
)
def test_wrong_parameters_are_told_with_the_recipe(written: dict[str, Any], problem: str):
    use = {"use": "vqa", "data": {"use": "image_question_answer", "path": "x"}}
    recipe = {"version": 1, "model": "./m", "sparsity": 0.5, "prune": "magnitude", "evaluate": {**use, **written}}
    with pytest.raises(EcoflapError, match=problem):
        parse_recipe(recipe, registry=ecoflap.load_registry())
