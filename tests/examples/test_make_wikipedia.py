import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script(module_of: Callable[[str], Any]) -> Any:
    return module_of("data/make_wikipedia.py")


FILLER = "This sentence makes its paragraph long enough to be taken for one of running text."


@pytest.mark.parametrize(
    ("wikitext", "shown"),
    [
        ("The '''aardvark''' is a [[mammal]] of [[Africa|the south]].", "The aardvark is a mammal of the south."),
        ("It ({{IPA|x}}; {{lang|af|erdvark}}) digs<ref name=a>Not shown</ref>.", "It (erdvark) digs."),
        ("It weighs {{convert|60|to|80|kg|lb}} &ndash; at most.", "It weighs 60 to 80 kg – at most."),
        ("[[File:A.jpg|thumb|A [[picture]]]]It is seen [http://a.org here].", "It is seen here."),
        ("It has {{nested|{{deep|x}}|y}}four toes.<!-- or five -->", "It has four toes."),
    ],
)
def test_prose(wikitext: str, shown: str, script: Any):
    assert script.prose(f"{FILLER} {wikitext}") == f"{FILLER} {shown}"


@pytest.mark.parametrize(
    "wikitext",
    [f"== {FILLER} ==", f"* {FILLER}", f"{{| \n|-\n| {FILLER}\n|}}", f"{FILLER} Hence <math>x</math> is.", "Short."],
)
def test_what_is_no_prose(wikitext: str, script: Any):
    assert script.prose(wikitext) == ""


def test_every_article_is_credited():
    folder = ROOT / "recipes" / "data"
    rows = [json.loads(line) for line in (folder / "wikipedia.jsonl").read_text(encoding="utf-8").split("\n") if line]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert rows
    assert all(f"- {row['title']}: [text]" in readme and f"oldid={row['revision']})" in readme for row in rows)
