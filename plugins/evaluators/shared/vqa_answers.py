"""An answer is right by the rules of VQA's official scorer, https://visualqa.org/evaluation.html.

Where ten people were asked, an answer is right to the share min(1, matches/3), averaged over the ten ways to leave one
of them out: 0.3 where one of them says the same, then 0.6, 0.9 and 1. Antol et al., VQA, ICCV 2015.
"""

import re
from collections.abc import Sequence

ANNOTATORS = 10
"""So many people answer each question of VQAv2, OK-VQA and VizWiz. Fewer answers are other ways to say one."""
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
ARTICLES = ("a", "an", "the")
DIGITS_WITH_COMMA = re.compile(r"\d,\d")
LONE_PERIOD = re.compile(r"\.(?!\d)")
PERIODS = 32
"""No more are taken out of one answer, because the scorer gives ``re.UNICODE``, which is 32, where a count is meant."""

SINGLE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
"""Contractions that are known without their apostrophe. Others, such as I'm and she's, are not in the scorer's list."""
DOUBLE = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'd've you'd've y'all'll
"""
"""Contractions that are known without either their first or their last apostrophe."""
CONTRACTIONS = {
    **{word.replace("'", ""): word for word in SINGLE.split()},
    **{word.replace("'", "", 1): word for word in DOUBLE.split()},
    **{"".join(word.rsplit("'", 1)): word for word in DOUBLE.split()},
    **{"y'alld've": "y'all'd've", "somebody'd": "somebodyd"},
    **dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at"),
}


def accuracy(said: str, answers: Sequence[str]) -> float:
    """Tell how right a text is, from 0 to 1.

    With fewer than ten answers it is right if it is one of them. An empty text never is. Of ten answers' texts the
    scorer changes punctuation only, and not even that where all ten are the same. So they are to be written as VQAv2
    has them: numbers in digits, without articles.

    :param said: The model's text.
    :param answers: What people answered.
    """
    wording = normalised(said)
    if not said.strip():
        return 0.0
    if len(answers) < ANNOTATORS:
        return float(any(wording == normalised(answer) != "" or _same(said, answer) for answer in answers))
    truths = [answer.lower() for answer in answers]
    if len(set(answers)) > 1:
        truths = [without_punctuation(truth) for truth in truths]
    return consensus([wording == truth for truth in truths])


def consensus(agrees: Sequence[bool]) -> float:
    """Average min(1, matches/3) over all ways to leave one person out.

    :param agrees: Whether each of at least ten people gave this answer.
    """
    total = sum(agrees)
    return sum(min(1.0, (total - one) / 3) for one in agrees) / len(agrees)


def normalised(text: str) -> str:
    """Write a text in small letters, numbers as digits, without articles and punctuation, contractions in full."""
    words = without_punctuation(text.replace("\n", " ").replace("\t", " ").strip()).lower().split()
    digits = (NUMBERS.get(word, word) for word in words)
    return " ".join(CONTRACTIONS.get(word, word) for word in digits if word not in ARTICLES)


def without_punctuation(text: str) -> str:
    """Take punctuation out of a text.

    A mark at a blank goes, and so does every mark of a text with a number such as 1,000; others become a blank.
    """
    bare = text
    for mark in PUNCTUATION:
        goes = f"{mark} " in text or f" {mark}" in text or DIGITS_WITH_COMMA.search(text)
        bare = bare.replace(mark, "" if goes else " ")
    return LONE_PERIOD.sub("", bare, count=PERIODS)


def _same(one: str, other: str) -> bool:
    """Compare texts that may be nothing but punctuation."""
    return one.strip().lower() == other.strip().lower()
