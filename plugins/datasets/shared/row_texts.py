"""Texts of a row are found in whatever a data set keeps them in: one text, a list, or objects that hold one."""

from collections.abc import Mapping, Sequence
from typing import Any

from ecoflap.plugins.datasets.shared.image_tables import Row
from ecoflap.plugins.datasets.shared.unusable_rows import UnusableRow

KEYS = ("answer", "raw", "caption")
"""Where an object in a list of texts has its text: VQAv2's answers, Karpathy's sentences, COCO's annotations."""


def texts_of(row: Row, what: str, keep_blank: bool = False) -> list[str]:
    """Give the texts in a column that holds one or a list of them, or of objects such as ``{"answer": text}``.

    :param what: What the column is read as, such as ``answers``.
    :param keep_blank: Whether an object's blank text is kept, because it is one of ten answers. Blank texts alone are
        no texts.
    :raises UnusableRow: Where the column holds something else.
    """
    found = []
    for item in _items(row.values.get(what)):
        text = item.strip() if isinstance(item, str) else _text(item, row, what)
        if text or (keep_blank and isinstance(item, Mapping)):
            found.append(text)
    return found if any(found) else []


def name_in(row: Row, what: str) -> str | int | None:
    """Give a data set's own name of something, such as of an image; None where the row has none.

    :raises UnusableRow: Where it is neither a text nor a whole number.
    """
    name = row.values.get(what)
    if name is not None and not _is_text_or_number(name):
        raise UnusableRow("malformed", f"{row.where} (its {what} is {name!r:.40})")
    return name


def _text(item: Any, row: Row, what: str) -> str:
    """Give the text of what is no text: an object's own, a number's digits, and a blank for nothing."""
    text = item.get(_text_key(item), item) if isinstance(item, Mapping) else item
    if text is not None and not _is_text_or_number(text):
        raise UnusableRow("malformed", f"{row.where} (its {what} is {item!r:.40})")
    return "" if text is None else str(text).strip()


def _is_text_or_number(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _items(value: Any) -> Sequence[Any]:
    """List what a column holds; also of an object of lists, as the ``datasets`` library keeps a list of objects."""
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, Mapping) and isinstance(value.get(_text_key(value)), list | tuple):
        return [{"answer": text} for text in value[_text_key(value)]]
    return [value]


def _text_key(item: Mapping[str, Any]) -> str:
    return next((key for key in KEYS if key in item), "")
