"""Captions are cut into words as COCO's scorer has them: by the Penn Treebank's rules, in small letters, unpunctuated.

The scorer calls Stanford's PTBTokenizer, which needs Java. The rules that captions meet are written down here; where
they are not its own, captions and references are still cut alike. It knows faces such as ``:-)``, and abbreviations
that are not below, whose point it keeps; and it cuts ``men's/women's`` at the stroke.
"""

import re

ABBREVIATIONS = (
    "mr mrs ms dr prof rev gen sen rep gov capt col sgt lt st ave blvd rd jr sr inc co corp ltd bros vs etc "
    "approx dept jan feb mar apr jun jul aug sep sept oct nov dec mt ft"
)
PATTERN = re.compile(
    rf"""
    https?://\S+ | [\w.+-]+@\w+(?:\.\w+)+ | </?\w+>
    | (?:[^\W\d_]\.)+(?![^\W_])                          # u.s.a., p.m., and an initial
    | (?:{"|".join(ABBREVIATIONS.split())})\.(?![^\W_])
    | no\.(?=\s*\d)
    | 'n' | '\d\ds?(?!\w)                                # rock 'n' roll, the '90s
    | '(?=t(?:is|was)\b)t
    | [#@][^\W\d]\w*
    | \d+(?:[.,:/-]\d+)*(?:[^\W_]|[-/](?=\w))*(?:'s\b)?  # 1,000, 3:45, 4-door
    | [^\W\d_]\w*(?:(?:[-/.]|'(?!n'))(?=[^\W_])\w+)*     # close-up, and/or, o'clock, dog's
    | [?!]+ | \.{{2,}} | --+
    | \S
    """,
    re.VERBOSE,
)
CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|d|m|re|ve|ll))$")
PARTS = {
    "cannot": ("can", "not"), "gonna": ("gon", "na"), "wanna": ("wan", "na"), "gotta": ("got", "ta"),
    "lemme": ("lem", "me"), "gimme": ("gim", "me"), "y'all": ("y'", "all"),
}  # fmt: skip
WRITTEN = str.maketrans({
    "’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "€": "$", "£": "#",
})  # fmt: skip
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
PUNCTUATION = re.compile(r"""''?|``?|"|[.?!,:;-]|--+|\.{2,}""")


def words(text: str) -> str:
    """Give a text's words with a blank between any two.

    Brackets stay, under the Treebank's names, because the scorer leaves them too.
    """
    tokens = (part for token in PATTERN.findall(text.translate(WRITTEN).lower()) for part in _parts(token))
    return " ".join(BRACKETS.get(token, token) for token in tokens if not PUNCTUATION.fullmatch(token))


def _parts(token: str) -> list[str]:
    """Cut a word from what is short for another after it: does n't, she 'd 've."""
    after: list[str] = []
    while found := CLITIC.search(token):
        after.insert(0, found[1])
        token = token[: found.start()]
    return [*PARTS.get(token, (token,)), *after]
