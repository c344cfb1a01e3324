"""What calibrates language models: articles that nothing is evaluated on, the manual, code, and old books."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecoflap.plugins.datasets.shared.portions import portion_bounds

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "data"


@pytest.fixture(scope="module")
def script(module_of: Callable[[str], Any]) -> Any:
    return module_of("data/make_mixture.py")


def lines(name: str) -> list[str]:
    return (FOLDER / name).read_text("utf-8").rstrip("\n").split("\n")


def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in lines("mixture.jsonl")]


def characters(titles: set[str]) -> int:
    return sum(len(row["text"]) for row in rows() if row["title"] in titles)


def test_pages_are_taken_from_one_commit_in_their_order(script: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(script, "PAGES", ("a", "b"))
    monkeypatch.setattr(script, "_git", lambda *words: f"text of {words[1]}")
    assert list(script.pages()) == [
        {"title": name, "text": f"text of {script.COMMIT}:{name}"} for name in ("docs/a.md", "docs/b.md")
    ]


def test_of_code_there_is_the_beginning(script: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(script, "CODE", ("a.py",))
    monkeypatch.setattr(script, "SIZE", 8)
    monkeypatch.setattr(script, "_git", lambda *words: "import a\n\n\ndef b(): ...\n")
    assert list(script.code()) == [{"title": "a.py", "text": "import a\n"}]


BOOK = (
    "Title\n*** START OF THIS BOOK ***\n\nOne.\n\nTwo,\nof two lines.\n\nThree.\n\n*** END OF THIS BOOK ***\nLicence.\n"
)


def test_a_piece_of_a_book_begins_and_ends_with_a_paragraph(script: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(script, "SIZE", 12)
    text = script.body(BOOK)
    assert "Licence" not in text
    assert "Title" not in text
    assert script.piece_at(text, 0.1) == "Two,\nof two lines.\n"
    assert script.piece_at(text, 0.6) == "Three.\n"
    assert script.piece_at("one\ntwo and more\nthree\n", 0.1, "\n") == "two and more\n"
    assert script.body("no book") == "no book"


def test_another_file_than_was_cut_is_refused(script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "book.txt").write_text(BOOK.replace("\n", "\r\n"), "utf-8", newline="")
    digest = sha256((tmp_path / "book.txt").read_bytes()).hexdigest()
    monkeypatch.setattr(script, "SOURCES", (script.Source("book.txt", digest[:16], "A book", (0.1,)),))
    assert list(script.excerpts(tmp_path)) == [{"title": "A book", "text": "Two,\nof two lines.\n\nThree.\n"}]
    (tmp_path / "book.txt").write_text(BOOK + "more")
    with pytest.raises(SystemExit, match=r"book\.txt is another file than the one that mixture\.jsonl was made of"):
        list(script.excerpts(tmp_path))


@given(st.lists(st.text("ab \n", max_size=40), min_size=1, max_size=40), st.sampled_from(["\n", "\n\n"]))
def test_pieces_are_all_of_a_document_and_end_with_paragraphs(script: Any, paragraphs: list[str], end: str):
    text = "".join(f"{one.strip() or 'a'}{end}" for one in paragraphs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "SIZE", 50)
        found = [row["text"] for row in script.pieces({"title": "T", "text": text})]
    assert "".join(found) == text
    assert all(one.endswith("\n") for one in found)
    assert len(found) <= max(1, round(len(text) / 50))
    assert all(len(one) <= 50 * 3 / 2 + 2 * 42 for one in found)


def test_each_line_is_about_one_size_so_that_each_kind_is_read_as_much_as_there_is_of_it():
    assert all(7_000 < len(row["text"]) < 14_500 for row in rows())


def test_shares_of_articles_of_manual_and_code_and_of_the_public_domain(script: Any):
    whole = sum(len(row["text"]) for row in rows())
    articles = {json.loads(line)["title"] for line in lines("wikipedia.jsonl")}
    technical = {f"docs/{page}.md" for page in script.PAGES} | set(script.CODE)
    public = {source.title for source in script.SOURCES}
    assert articles & {row["title"] for row in rows()}
    assert {row["title"] for row in rows()} <= articles | technical | public
    shares = [characters(titles) / whole for titles in (articles, technical, public)]
    assert shares == pytest.approx([0.43, 0.27, 0.30], abs=0.005)


def test_its_articles_are_those_that_recipes_calibrate_on(script: Any):
    wikipedia = lines("wikipedia.jsonl")
    articles = list(script.articles(wikipedia))
    first, last = portion_bounds((0.0, 0.7), len(wikipedia))
    assert [row["title"] for row in articles] == [json.loads(line)["title"] for line in wikipedia[first:last]]
    pieces = [piece for row in articles for piece in script.pieces(row)]
    assert rows()[: len(pieces)] == pieces
    assert script.lines_of(rows()).rstrip("\n").split("\n") == lines("mixture.jsonl")


def test_it_has_nothing_of_the_articles_that_recipes_evaluate_on():
    calibrating = "\n".join(row["text"] for row in rows())
    first, last = portion_bounds((0.7, 1.0), len(lines("wikipedia.jsonl")))
    held_out = [json.loads(line)["text"] for line in lines("wikipedia.jsonl")[first:last]]
    assert held_out
    assert not any(paragraph in calibrating for text in held_out for paragraph in text.split("\n") if paragraph)


def test_everything_that_is_no_article_is_named_beside_it(script: Any):
    readme = (FOLDER / "README.md").read_text("utf-8")
    assert all(f"`{title}`" in readme for title in (*(f"docs/{page}.md" for page in script.PAGES), *script.CODE))
    assert all(f"| *{source.title}*" in readme and f"`{source.file}`" in readme for source in script.SOURCES)
