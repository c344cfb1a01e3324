"""Against what Stanford's PTBTokenizer 3.4.1 made of each line, called and stripped of marks by pycocoevalcap 1.2."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecoflap.plugins.evaluators.shared.caption_words import words

STANFORD = {
    "A man riding a wave on top of a surfboard.": "a man riding a wave on top of a surfboard",
    "a dog's bowl, and two dogs' toys": "a dog 's bowl and two dogs toys",
    "It's a cat; he doesn't mind!": "it 's a cat he does n't mind",
    "cannot gonna wanna gotta lemme dunno": "can not gon na wan na got ta lem me dunno",
    "close-up of a t-shirt and a well-known bus-stop": "close-up of a t-shirt and a well-known bus-stop",
    "Mr. Smith and Dr. Jones at St. Mary's Ave.": "mr. smith and dr. jones at st. mary 's ave.",
    "The U.S. flag. It waves.": "the u.s. flag it waves",
    "the clock reads 3:45 p.m. at no. 5": "the clock reads 3:45 p.m. at no. 5",
    "No. no.": "no no",
    "$5 and 10% off #1 pick @home": "$ 5 and 10 % off # 1 pick @home",
    "and/or a 1/2 pint": "and/or a 1/2 pint",
    "\"quoted\" words and 'single' ones": "quoted words and single ones",
    "a sign saying ``STOP'' here": "a sign saying stop here",
    "(in brackets) [square] {curly}": "-lrb- in brackets -rrb- -lsb- square -rsb- -lcb- curly -rcb-",
    "wait... what?! no -- really - yes": "wait what ?! no really yes",
    "1,000 people and 2.5 liters": "1,000 people and 2.5 liters",
    "a & b * c + d = e": "a & b * c + d = e",
    "b&w photo": "b & w photo",
    "rock 'n' roll o'clock": "rock 'n' roll o'clock",
    "the year '90s and 1990's": "the year '90s and 1990 's",
    "I'd they're we've he'll she'd've": "i 'd they 're we 've he 'll she 'd 've",
    "y'all ain't": "y' all ai n't",
    "'tis 'twas": "'t is 't was",
    "email me@x.com http://x.com/a?b=c": "email me@x.com http://x.com/a?b=c",
    "a man,a woman and a child.a dog": "a man a woman and a child.a dog",
    "COLOUR naïve café": "colour naïve café",
    "100km 3pm 5x7 4-door 6'2": "100km 3pm 5x7 4-door 6 2",
    "plan b.": "plan b.",
    "hello!!! world???": "hello !!! world ???",
    "one;two:three": "one two three",
    "man’s hat “quoted” – dash — em": "man 's hat quoted dash em",
    "500$ and 20€ and £3": "500 $ and 20 $ and # 3",
    "non- and -pre": "non and pre",
    "a cup of joe's.": "a cup of joe 's",
    "etc., and so on": "etc. and so on",
    "keycap: *": "keycap *",
    "an <unk> thing": "an <unk> thing",
    " . ": "",
}


@pytest.mark.parametrize("text", STANFORD)
def test_words(text: str):
    assert words(text) == STANFORD[text]


@pytest.mark.parametrize(
    ("text", "stanford"), [(":-)", ":--rrb-"), ("men's/women's", "men 's / women 's"), ("at 3., then", "at 3. then")]
)
def test_where_it_differs(text: str, stanford: str):
    assert words(text) != stanford


@given(st.text())
def test_any_text_has_words(text: str):
    """They come apart at single blanks, which is all that the scorers split at."""
    found = words(text)
    assert found == " ".join(found.split())
    assert found == words(f"  {text}\n")
