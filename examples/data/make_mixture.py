"""Make recipes/data/mixture.jsonl, what language models are calibrated on: articles, and pages of this manual.

    python examples/data/make_mixture.py recipes/data

Articles are the first 70 % of those in wikipedia.jsonl: the others are what recipes evaluate on. Pages are some of
docs/ as they were at one commit, whatever has been written since; git gives them. One document is a line, with its
title and text. Calibrated on articles alone, a model forgets what prose about code is like; of pages that are half of
the text it takes too much for an encyclopaedia, and so they are a third.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMIT = "b56f859"
PAGES = ("adapters", "architecture", "compare", "exports", "hooks", "kernel", "methods", "packed")
"""A third of the characters."""
SHARE = 0.7
"""Of the articles, those that recipes calibrate on."""


def articles(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Give the articles that calibrate, as they lie in wikipedia.jsonl."""
    rows = [json.loads(line) for line in lines]
    for row in rows[: int(SHARE * len(rows))]:
        yield {"title": row["title"], "text": row["text"]}


def pages() -> Iterator[dict[str, str]]:
    """Give the pages of the manual."""
    for page in PAGES:
        name = f"docs/{page}.md"
        yield {"title": name, "text": _git("show", f"{COMMIT}:{name}")}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True, cwd=ROOT).stdout


def lines_of(rows: Iterable[Mapping[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> None:
    folder = Path(sys.argv[1])
    lines = (folder / "wikipedia.jsonl").read_text("utf-8").rstrip("\n").split("\n")
    (folder / "mixture.jsonl").write_text(lines_of([*articles(lines), *pages()]), "utf-8")


if __name__ == "__main__":
    main()
