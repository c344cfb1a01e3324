"""What calibrates language models: articles that nothing is evaluated on, and pages of the manual."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ecoflap.plugins.datasets.shared.portions import portion_bounds

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "data"


@pytest.fixture
def script(module_of: Callable[[str], Any]) -> Any:
    return module_of("data/make_mixture.py")


def lines(name: str) -> list[str]:
    return (FOLDER / name).read_text("utf-8").rstrip("\n").split("\n")


def test_pages_are_taken_from_one_commit_in_their_order(script: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(script, "PAGES", ("a", "b"))
    monkeypatch.setattr(script, "_git", lambda *words: f"text of {words[1]}")
    assert list(script.pages()) == [
        {"title": name, "text": f"text of {script.COMMIT}:{name}"} for name in ("docs/a.md", "docs/b.md")
    ]


def test_a_third_of_it_is_pages():
    rows = [json.loads(line) for line in lines("mixture.jsonl")]
    pages = sum(len(row["text"]) for row in rows if row["title"].endswith(".md"))
    assert 0.3 < pages / sum(len(row["text"]) for row in rows) < 0.36


def test_its_articles_are_those_that_recipes_calibrate_on(script: Any):
    rows, wikipedia = [json.loads(line) for line in lines("mixture.jsonl")], lines("wikipedia.jsonl")
    articles = list(script.articles(wikipedia))
    first, last = portion_bounds((0.0, 0.7), len(wikipedia))
    assert [row["title"] for row in articles] == [json.loads(line)["title"] for line in wikipedia[first:last]]
    assert rows[: len(articles)] == articles
    assert script.lines_of(rows).rstrip("\n").split("\n") == lines("mixture.jsonl")


def test_it_has_nothing_of_the_articles_that_recipes_evaluate_on():
    calibrating = "\n".join(json.loads(line)["text"] for line in lines("mixture.jsonl"))
    first, last = portion_bounds((0.7, 1.0), len(lines("wikipedia.jsonl")))
    held_out = [json.loads(line)["text"] for line in lines("wikipedia.jsonl")[first:last]]
    assert held_out
    assert not any(paragraph in calibrating for text in held_out for paragraph in text.split("\n") if paragraph)


def test_every_page_is_named_beside_it():
    readme = (FOLDER / "README.md").read_text("utf-8")
    pages = [json.loads(line)["title"] for line in lines("mixture.jsonl")]
    assert all(f"`{title}`" in readme for title in pages if title.endswith(".md"))
