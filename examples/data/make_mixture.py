"""Make recipes/data/mixture.jsonl, what language models are calibrated on: articles, a manual, code, and old books.

    python examples/data/make_mixture.py recipes/data --sources FOLDER

One line is a piece of a document, of about ten thousand characters, with the document's title: where windows are drawn
from any line alike, each kind of text is read as much as there is of it. 43 % are the first 70 % of the articles in
wikipedia.jsonl; the others are what recipes evaluate on. 27 % are pages of docs/, and files of code, as they were at
one commit, whatever has been written since; git gives them. 30 % are pieces of what is in the public domain, which
SOURCES lists. FOLDER holds these files; one that is another than was cut here is refused.

Calibrated on articles alone, a model forgets what prose about code is like, and what verse is like without any.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMIT = "b56f859"
PAGES = ("adapters", "architecture", "compare", "exports", "hooks", "kernel", "methods", "packed")
CODE = ("core/forward/replay.py", "adapters/hubs/hugging_face.py", "core/contracts/options.py")
SHARE = 0.7
"""Of the articles, those that recipes calibrate on."""
SIZE = 10_000
"""Characters in a piece."""


@dataclass(frozen=True)
class Source:
    """Names a file in the public domain, and where its pieces begin.

    :param sha256: Its first 16 hexadecimal digits, as the file was cut here.
    :param places: Shares of the text behind which a piece begins; 0 is its beginning.
    :param paragraph: What its paragraphs end with.
    """

    file: str
    sha256: str
    title: str
    places: tuple[float, ...]
    encoding: str = "utf-8"
    paragraph: str = "\n\n"


SOURCES = (
    Source("1661.txt", "2a0ce5568625a304", "The Adventures of Sherlock Holmes", (0.15, 0.45, 0.75)),
    Source("16351.txt", "9e3efa8d54f408c3", "Critical and Historical Essays", (0.25, 0.65)),
    Source("3261.txt", "e5182ca7efdcfdb8", "News from Nowhere", (0.25, 0.65)),
    Source("1322.txt", "3670a70ed46264f6", "Leaves of Grass", (0.3, 0.7)),
    Source("21849.txt", "1576777b62ce5dc6", 'The "Mind the Paint" Girl', (0.3, 0.7)),
    Source("20866-8.txt", "dcf7e5d65274c7f9", "Infantry Drill Regulations", (0.3, 0.6), "latin-1"),
    Source("41568-t.tex", "f2c4c66a2b8c4986", "An Introduction to Mathematics", (0.3, 0.65), "latin-1"),
    Source("1962-Kennedy.txt", "452897c5593fc612", "State of the Union, 1962", (0,), paragraph="\n"),
    Source("1996-Clinton.txt", "03a2263869c8ab79", "State of the Union, 1996", (0,), paragraph="\n"),
    Source("1861-Lincoln.txt", "2c7b11f0d57dfbc8", "Inaugural address, 1861", (0,)),
    Source("1955-Eisenhower.txt", "7b43e41d5bbf0986", "State of the Union, 1955", (0,), paragraph="\n"),
)


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


def code() -> Iterator[dict[str, str]]:
    """Give the beginnings of some files of code."""
    for name in CODE:
        yield {"title": name, "text": piece_at(_git("show", f"{COMMIT}:{name}"), 0)}


def excerpts(folder: Path) -> Iterator[dict[str, str]]:
    """Give the pieces of what is in the public domain.

    :raises SystemExit: Where a file is not the one that was cut here.
    """
    for source in SOURCES:
        content = (folder / source.file).read_bytes()
        if not sha256(content).hexdigest().startswith(source.sha256):
            raise SystemExit(f"{folder / source.file} is another file than the one that mixture.jsonl was made of")
        text = body(content.decode(source.encoding).replace("\r\n", "\n"))
        for place in source.places:
            yield {"title": source.title, "text": piece_at(text, place, source.paragraph)}


def body(text: str) -> str:
    """Give a book of Project Gutenberg without what that writes before and behind it; any other text as it is."""
    begin, end = (re.search(rf"\*\*\* ?{word} OF.*?\*\*\*", text, re.DOTALL) for word in ("START", "END"))
    return text[begin.end() : end.start()] if begin and end else text


def piece_at(text: str, place: float, paragraph: str = "\n\n") -> str:
    """Give the piece that begins with the first paragraph behind a place, and ends with one."""
    begin = text.index(paragraph, int(place * len(text))) + len(paragraph) if place else 0
    end = text.find(paragraph, begin + SIZE)
    return text[begin : len(text) if end < 0 else end].strip("\n") + "\n"


def pieces(row: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Cut a document into pieces of about one size, each at the end of a paragraph."""
    text, count = row["text"], max(1, round(len(row["text"]) / SIZE))
    ends = [0, *(found.end() for found in re.finditer("\n\n" if "\n\n" in text else "\n", text)), len(text)]
    wanted = (len(text) * part / count for part in range(1, count))
    cuts = {min(ends, key=lambda end, at=at: abs(end - at)) for at in wanted}
    for begin, end in pairwise(sorted({0, *cuts, len(text)})):
        yield {"title": row["title"], "text": text[begin:end]}


def mixture(lines: Iterable[str], sources: Path) -> Iterator[dict[str, str]]:
    """Give all pieces in the order of the file."""
    for row in [*articles(lines), *pages()]:
        yield from pieces(row)
    yield from code()
    yield from excerpts(sources)


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True, cwd=ROOT).stdout


def lines_of(rows: Iterable[Mapping[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main(arguments: Sequence[str]) -> None:
    reader = argparse.ArgumentParser(description="Make recipes/data/mixture.jsonl.")
    reader.add_argument("folder", type=Path, help="where wikipedia.jsonl is, and mixture.jsonl will be")
    reader.add_argument("--sources", type=Path, required=True, help="the folder of the files in the public domain")
    asked = reader.parse_args(arguments)
    lines = (asked.folder / "wikipedia.jsonl").read_text("utf-8").rstrip("\n").split("\n")
    (asked.folder / "mixture.jsonl").write_text(lines_of(mixture(lines, asked.sources)), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
