"""What the pages are made of: HTML that needs nothing else, on wide and narrow, light and dark screens."""

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --line: #ddd; --bar: #3b82c4; --soft: #f4f5f7 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe2e6; --paper: #16181c; --line: #3a3f47; --soft: #20242b }
}
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 64rem; padding: 1rem; color: var(--ink);
  background: var(--paper) }
h1 { overflow-wrap: anywhere; font-size: 1.6rem } h2 { margin: 2rem 0 .5rem; font-size: 1.2rem }
p { max-width: 45rem; margin: .5rem 0 }
.wide { overflow-x: auto; max-width: 100% }
table { border-collapse: collapse; margin: .5rem 0 }
th, td { padding: .25rem .75rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
th, td { white-space: nowrap } td.long { white-space: normal; min-width: 12rem; overflow-wrap: anywhere }
.number { text-align: right; font-variant-numeric: tabular-nums }
td.bar { width: 16rem; min-width: 6rem } .bar span { display: block; height: .9rem; background: var(--bar) }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 2rem }
figure { margin: .5rem 0; flex: 1 1 20rem; max-width: 30rem; min-width: 0 } figcaption { font-size: .9rem }
svg { display: block; height: auto } svg * { stroke-linejoin: round; stroke-linecap: butt }
details { margin: .25rem 0 } summary { cursor: pointer }
pre { overflow-x: auto; background: var(--soft); padding: .75rem; font-size: .85rem; line-height: 1.35 }
"""


def document(title: str, sections: Iterable[tuple[str, str]]) -> str:
    """A whole page. A section without content is left out."""
    body = "".join(f"<h2>{escape(head)}</h2>{content}" for head, content in sections if content)
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{escape(title)}</h1>{body}</body></html>\n'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Empty without rows. A column whose name starts with ``>`` holds numbers; one with ``<``, long texts."""
    kinds = [{">": "number", "<": "long"}.get(column[:1], "") for column in columns]
    heads = "".join(_cell("th", column.lstrip("<>"), kind) for column, kind in zip(columns, kinds, strict=True))
    body = "".join(f"<tr>{''.join(map(_data, row, kinds))}</tr>" for row in rows)
    head = f"<tr>{heads}</tr>" if any(columns) else ""
    return f'<div class="wide"><table>{head}{body}</table></div>' if body else ""


def _data(text: str, kind: str) -> str:
    return _cell("td", text, kind)


def _cell(tag: str, text: str, kind: str) -> str:
    marked = f' class="{kind}"' if kind else ""
    return f"<{tag}{marked}>{escape(text)}</{tag}>"


def bars(rows: Iterable[tuple[str, str, float]]) -> str:
    """:param rows: A name, a text, and the share of the bar that is full."""
    return f'<div class="wide"><table>{"".join(_bar(*row) for row in rows)}</table></div>'


def _bar(name: str, text: str, share: float) -> str:
    bar = f'<td class="bar"><span style="width:{100 * share:.2f}%"></span></td>'
    return f'<tr><td>{escape(name)}</td><td class="number">{escape(text)}</td>{bar}</tr>'


def figures(drawings: Iterable[tuple[str, str]]) -> str:
    """:param drawings: Of each the SVG, and what is written below it."""
    inside = "".join(f"<figure>{svg}<figcaption>{escape(text)}</figcaption></figure>" for svg, text in drawings)
    return f'<div class="figures">{inside}</div>' if inside else ""


def folded(summary: str, text: str) -> str:
    """A text that is shown on a click."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def paragraphs(texts: Iterable[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)
