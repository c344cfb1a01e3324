"""The official rules by hand, and by what the official scorer gave: VQAEval, as salesforce-lavis has it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecoflap.plugins.evaluators.shared.vqa_answers import accuracy, consensus, normalised, without_punctuation


@pytest.mark.parametrize(("matches", "share"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_consensus_of_ten_by_hand(matches: int, share: float):
    assert consensus([number < matches for number in range(10)]) == pytest.approx(share, abs=1e-12)


# What processPunctuation and processDigitArticle of VQAEval made of each
OFFICIAL = {
    "Yes.": "yes",
    "the Cat": "cat",
    "two dogs": "2 dogs",
    "None": "0",
    "1,000": "1000",
    "1,000-2": "10002",
    "red, white": "red white",
    "red,white": "red white",
    "t-shirt": "t shirt",
    "t -shirt": "t shirt",
    "blue/green": "blue green",
    "2.5": "2.5",
    "mr. smith": "mr smith",
    "u.s.a.": "usa",
    "3.": "3",
    "what?": "what",
    "(no)": "no",
    "its 7:45": "its 7:45",
    "dont": "don't",
    "Couldntve": "couldntve",
    "couldnt've": "couldn't've",
    "hes a man": "he's man",
    "100%": "100%",
    "x_b": "x b",
    "an\tapple\nthe": "apple",
    " . ": "",
    "y'alld've": "y'all'd've",
    "someone'dve": "someone'd've",
    "somebody'd": "somebodyd",
}


@pytest.mark.parametrize("text", OFFICIAL)
def test_wording_as_the_official_scorer_has_it(text: str):
    assert normalised(text) == OFFICIAL[text]


# From VQAEval.evaluate: what was said, the ten answers, and the accuracy
QUESTIONS = [
    ("yes", ["yes"] * 10, 1.0),
    ("Yes.", ["yes"] * 7 + ["no"] * 3, 1.0),
    ("no", ["yes"] * 8 + ["no"] * 2, 0.6),
    ("the couch", ["couch"] * 3 + ["sofa"] * 7, 0.9),
    ("two", ["2"] * 1 + ["3"] * 9, 0.3),
    ("two", ["two"] * 10, 0.0),  # not even spelling is changed where all are the same
    ("2", ["two"] * 9 + ["2"], 0.3),
    ("t shirt", ["t-shirt"] * 10, 0.0),
    ("t shirt", ["t-shirt"] * 9 + ["shirt"], 1.0),
    ("1000", ["1,000"] * 2 + ["1000"] * 2 + ["many"] * 6, 1.0),
    ("dont walk", ["don't walk"] * 4 + ["stop"] * 6, 1.0),
    ("", ["", "", "", "", "x", "x", "x", "x", "x", "x"], 0.0),  # the scorer: 1.0, for an empty text like four others
]


@pytest.mark.parametrize(("said", "answers", "share"), QUESTIONS)
def test_accuracy_as_the_official_scorer_has_it(said: str, answers: list[str], share: float):
    assert accuracy(said, answers) == pytest.approx(share, abs=1e-12)


def test_capitals_of_ten_answers_do_not_count():
    """Beyond the official scorer, whose answers are all small."""
    assert accuracy("Paris", ["Paris"] * 10) == 1.0


@pytest.mark.parametrize(
    ("said", "answers", "share"),
    [
        ("a red Bus.", ["red bus"], 1.0),
        ("bus", ["red bus"], 0.0),
        ("mat", ["on the mat", "Mat"], 1.0),
        ("two", ["2"] * 9, 1.0),
        ("2", ["the two"], 1.0),
        ("?", ["?"], 1.0),
        ("!", ["?"], 0.0),
        ("the", ["a"], 0.0),
        ("", [""], 0.0),
        ("  ", ["a", "?"], 0.0),
    ],
)
def test_fewer_than_ten_are_ways_to_say_one_answer(said: str, answers: list[str], share: float):
    assert accuracy(said, answers) == share


@given(st.text("aThe two,.-1?'\n\tdont ", max_size=30))
def test_wording_has_neither_capitals_nor_articles_nor_stray_blanks(text: str):
    words = normalised(text).split(" ")
    assert not {"a", "an", "the", "two"} & set(words)
    assert words == [""] or all(word and word == word.lower().strip() for word in words)


@given(st.lists(st.booleans(), min_size=10, max_size=12))
def test_consensus_does_not_fall_with_another_match(agrees: list[bool]):
    value = consensus(agrees)
    assert 0 <= value <= 1
    for number, one in enumerate(agrees):
        if not one:
            assert consensus([*agrees[:number], True, *agrees[number + 1 :]]) >= value


def test_no_more_than_32_periods_are_taken_out():
    """The scorer gives ``re.UNICODE``, which is 32, where a count is meant."""
    assert without_punctuation("." * 40) == "." * 8
