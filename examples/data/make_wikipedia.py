"""Make recipes/data/wikipedia.jsonl, the text that ships: whole articles of English Wikipedia as plain prose.

    pip download --no-deps --dest . gensim==4.4.0
    python examples/data/make_wikipedia.py gensim-4.4.0-*.whl recipes/data

The wheel of gensim holds a piece of the English Wikipedia's dump of May 2016 among its test data. From it this takes
every article of middling length, strips the wikitext down to its paragraphs and writes one article a line, with the
revision it is, so that its authors can be found. The same wheel gives the same bytes. Needs the standard library only.
"""

import bz2
import html
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree

DUMP = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
SHORTEST, LONGEST = 7_500, 24_000  # characters of prose: long enough for a window of 1024 tokens, none dominates
TOTAL = 400_000  # characters

SKIP_TITLES = re.compile(r"\(disambiguation\)|^List of|^Lists of")
BACK_MATTER = re.compile(
    r"\n=+ *(see also|references?|notes?|footnotes|citations|sources|external links|further reading|bibliography|"
    r"works cited|publications|gallery|notes and references|references and notes) *=+ *\n",
    re.IGNORECASE,
)
DROPPED_TAGS = (
    "ref",
    "gallery",
    "table",
    "timeline",
    "score",
    "syntaxhighlight",
    "source",
    "pre",
    "code",
)
SHOWN_TEMPLATES = {"lang": 2, "nowrap": 1, "nobr": 1, "transl": -1, "unicode": 1, "iast": 1, "smallcaps": 1, "abbr": 1}
DASHES = {"ndash": "–", "spnd": " – ", "snd": " – ", "mdash": "—", "'": "'", "'s": "'s", "nbsp": " ", "e": "×10^"}
FORMULA = r"\\"  # no sentence survives the loss of its formula, so is_sentence refuses the mark left in its place
DATED = re.compile(r"^(as of)$", re.IGNORECASE)


class Article(NamedTuple):
    """One article of the dump: ``source`` is its wikitext."""

    title: str
    revision: str
    source: str


def articles(dump: Path) -> Iterator[Article]:
    """The dump's articles in its own order, without redirects, lists and disambiguations."""
    with zipfile.ZipFile(dump) as wheel, wheel.open(DUMP) as packed, bz2.open(packed) as xml:
        for _, page in ElementTree.iterparse(xml):
            if not page.tag.endswith("}page"):
                continue
            space = page.tag.removesuffix("page")
            title = page.findtext(f"{space}title") or ""
            source = page.findtext(f"{space}revision/{space}text") or ""
            redirect = page.find(f"{space}redirect") is not None or "{{disambig" in source.lower()
            if not redirect and not SKIP_TITLES.search(title):
                yield Article(title, page.findtext(f"{space}revision/{space}id") or "", source)
            page.clear()


def prose(wikitext: str) -> str:
    """The paragraphs of an article as a reader sees them, one to a line, without headings, lists, tables and notes."""
    text = html.unescape(re.sub(r"<!--.*?-->", "", wikitext, flags=re.DOTALL))
    text = BACK_MATTER.split(text, maxsplit=1)[0]
    text = re.sub(r"<(math|chem)\b[^>]*>.*?</\1\s*>", FORMULA, text, flags=re.IGNORECASE | re.DOTALL)
    for tag in DROPPED_TAGS:
        text = re.sub(rf"<{tag}\b[^<>]*/>", "", text, flags=re.IGNORECASE)
        text = re.sub(rf"<{tag}\b[^>]*>.*?</{tag}\s*>", "", text, flags=re.IGNORECASE | re.DOTALL)
    text = innermost_first(text, r"\{\{((?:(?!\{\{|\}\}).)*)\}\}", template)
    text = innermost_first(text, r"\{\|((?:(?!\{\||\|\}).)*)\|\}", lambda _: "")
    text = innermost_first(text, r"\[\[((?:(?!\[\[|\]\]).)*)\]\]", link)
    text = re.sub(r"\[(?:https?:|//)\S+ ?([^\]]*)\]", r"\1", text)
    text = re.sub(r"'{2,}", "", re.sub(r"</?[a-zA-Z][^<>]*>", "", text)).replace("\xa0", " ")
    paragraphs = (tidy(line) for line in text.split("\n") if line[:1] not in tuple("=*#:;|!{}<[ "))
    return "\n".join(line for line in paragraphs if is_sentence(line))


def innermost_first(text: str, pattern: str, replace: Callable[[str], str]) -> str:
    """Replace nested brackets from the inside out until none is left."""
    brackets, count = re.compile(pattern, re.DOTALL), 1
    while count:
        text, count = brackets.subn(lambda match: replace(match[1]), text)
    return text


def template(inside: str) -> str:
    """What a template shows, for the few that stand in the middle of a sentence."""
    name, *arguments = (part.strip() for part in inside.split("|"))
    plain = [argument for argument in arguments if not re.match(r"[a-z]+ *=", argument)]
    if name.lower() in DASHES:
        return DASHES[name.lower()]
    if name.lower() in ("convert", "cvt") and len(plain) >= 2:
        return converted(plain)
    if DATED.match(name) and plain:
        return f"{name} {plain[0]}"
    if name.lower().startswith("lang-") and plain:
        return plain[0]
    if name.lower() in ("math", "mvar", "val", "chem", "sfrac", "frac"):
        return FORMULA
    position = SHOWN_TEMPLATES.get(name.lower())
    return plain[position - 1 if position > 0 else position] if position and len(plain) >= position else ""


def converted(arguments: list[str]) -> str:
    """``{{convert|3|to|5|km}}`` as ``3 to 5 km``."""
    if arguments[1] in ("to", "and", "by", "x", "-", "–", "or") and len(arguments) >= 4:
        return f"{arguments[0]} {arguments[1]} {arguments[2]} {arguments[3]}"
    return f"{arguments[0]} {arguments[1]}"


def link(inside: str) -> str:
    """The words a link shows; nothing for an image, a category or another language's article."""
    target, _, label = inside.partition("|")
    if re.match(r" *(file|image|category|media|[a-z]{2,3}(-[a-z]+)*) *:", target, re.IGNORECASE):
        return ""
    return label.rpartition("|")[2] or target.lstrip(":")


def tidy(line: str) -> str:
    """Mend what removed templates leave behind: empty brackets, doubled spaces, spaces before commas."""
    before = ""
    while before != line:
        before = line
        line = re.sub(r"\(\s*[;,:/–\s]*\s*\)", "", line)
        line = re.sub(r"\(\s*(?:[;,:]|or\b)\s*", "(", line)
        line = re.sub(r"\s*[;,]\s*\)", ")", line)
        line = re.sub(r"(,\s*){2,}", ", ", line)
    return re.sub(r"\s+([,.;:)])", r"\1", re.sub(r"\s+", " ", line)).strip()


def is_sentence(line: str) -> bool:
    """Whether a line is prose, and not a caption, a formula's leftovers or the introduction to a dropped list."""
    return (
        len(line) >= 80
        and line[-1] in ".?!\")'”"
        and not re.search(r"[|{}\[\]<>\\_=]|\( *[^\w\"'“‘]* *\)|\bis,|\bof,", line)
    )


def record(article: Article, text: str) -> dict[str, str]:
    return {"title": article.title, "revision": article.revision, "text": text}


def credit(row: dict[str, str]) -> str:
    """A line of the README: the article at the revision used, and its history with its authors."""
    base = f"https://en.wikipedia.org/w/index.php?title={quote(row['title'].replace(' ', '_'))}"
    return f"- {row['title']}: [text]({base}&oldid={row['revision']}), [authors]({base}&action=history)"


def main(wheel: Path, folder: Path) -> None:
    """Write ``wikipedia.jsonl``, and the list of articles into ``README.md`` below its line ``## Articles``."""
    rows: list[dict[str, str]] = []
    for article in articles(wheel):
        text = prose(article.source)
        if SHORTEST <= len(text) <= LONGEST and sum(len(row["text"]) for row in rows) + len(text) <= TOTAL:
            rows.append(record(article, text))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "wikipedia.jsonl").write_bytes(lines.encode())
    readme = folder / "README.md"
    head = readme.read_text(encoding="utf-8").partition("## Articles\n")[0]
    readme.write_bytes((head + "## Articles\n\n" + "\n".join(map(credit, rows)) + "\n").encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
