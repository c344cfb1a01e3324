"""Names of classes come from a file, from folders or from labels that are words, and with them the classes' numbers."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ecoflap.core.errors import DataError, first_of, nearest
from ecoflap.plugins.datasets.shared.image_tables import Row, Table
from ecoflap.plugins.datasets.shared.published_files import read_json
from ecoflap.plugins.datasets.shared.text_files import filled_lines, named_problems, read_text
from ecoflap.plugins.datasets.shared.unusable_rows import UnusableRow

WORDNET = re.compile(r"(n\d{8})[\t ]+(.+)")
"""A line of ImageNet's lists: the number of a synset in WordNet, and its names."""


@dataclass(frozen=True)
class Classes:
    """Holds the classes of a model, in the order of their numbers.

    :param names: What they are called.
    :param keys: What their folders or labels are called, such as WordNet's ``n01440764``; empty where that is the name.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...] = ()

    @property
    def numbers(self) -> dict[str, int]:
        """Give the classes' numbers by key, and by each name that only one class has."""
        once = Counter(self.names)
        named = {name: number for number, name in enumerate(self.names) if once[name] == 1}
        return {**named, **{key: number for number, key in enumerate(self.keys)}}


def numbered(table: Table, file: Path | None) -> Table:
    """Give the same rows with a class's number for a label, and the names of the classes where these are known.

    :param file: A file of names; None to take those that the rows come with.
    :raises DataError: Where the file's names and the rows do not go together.
    """
    with named_problems("names"):
        classes = read_classes(file) if file else None
    if table.classes is not None:
        return _of_classes(table, table.classes, classes, file)
    if classes is None:
        classes = _of_words(table.values("label"))
    numbers = classes.numbers if classes else {}
    size = len(classes.names) if classes else None

    def row(number: int) -> Row:
        return _relabelled(table.row(number), numbers, size)

    return replace(table, row=row, classes=classes.names if classes else None)


def _of_classes(table: Table, there: Sequence[str], classes: Classes | None, file: Path | None) -> Table:
    """Number rows anew whose labels are numbers of named classes, such as folders, by the classes of a file."""
    if classes is None:
        return table
    numbers = classes.numbers
    strange = [name for name in there if name not in numbers]
    if len(strange) == len(there) == len(classes.names):
        return replace(table, classes=classes.names)  # as many as the folders, and so in the folders' order
    if strange:
        raise DataError(
            f"{len(strange)} of {len(there)} classes of {table.where} are not among the {len(classes.names)} of "
            f"{file}: {first_of(strange, 5)}.{nearest(strange[0], numbers)} Each line of names should be one class, "
            "with its folder's name before it where that is another: n01440764 tench."
        )

    def row(number: int) -> Row:
        one = table.row(number)
        label = one.values["label"]
        known = isinstance(label, int) and 0 <= label < len(there)
        return one.having(label=numbers[there[label]] if known else label)

    return replace(table, row=row, classes=classes.names)


def _relabelled(row: Row, numbers: Mapping[str, int], size: int | None) -> Row:
    """Give a row the number of its label, where that is a word with a number.

    :param size: How many classes there are; None where that is not known.
    """
    label = row.values.get("label")
    word = label.strip() if isinstance(label, str) else ""
    if word in numbers:
        return row.having(label=numbers[word])
    if word and not word.isdecimal() and numbers:
        near = f"{nearest(word, numbers)} {size} are known"
        raise UnusableRow("malformed", f"{row.where} (its label {word!r:.40} is none of the classes.{near})")
    number = int(word) if word and word.isdecimal() else label
    if isinstance(number, int) and size is not None and number >= size:
        raise UnusableRow("malformed", f"{row.where} (its label is {number}, and there are {size} classes, from 0)")
    return row


def _of_words(labels: Iterable[Any]) -> Classes | None:
    """Make classes of labels, in their sorted order, where every label is a word and none a number."""
    words = set()
    for label in labels:
        if not isinstance(label, str) or not label.strip() or _is_number(label):
            return None
        words.add(label.strip())
    return Classes(tuple(sorted(words))) if words else None


def _is_number(text: str) -> bool:
    """Say whether a text is a number, as a table may write one: ``3``, ``3.0``, ``-1``."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_classes(file: Path) -> Classes:
    """Read a file of names.

    :raises DataError: Where it is none.
    """
    classes = _of_json(read_json(file), file) if file.suffix.lower() == ".json" else _of_lines(file)
    twice = [key for key, count in Counter(classes.keys).items() if count > 1]
    if not classes.names or twice:
        raise DataError(f"{file} {f'names {twice[0]!r} twice' if twice else 'names no class'}.")
    return classes


def _of_lines(file: Path) -> Classes:
    """Read a name a line; or a key and its name, after a tab or after a WordNet number."""
    lines = [line.strip() for _, line in filled_lines(read_text(file))]
    parts = [line.split("\t", 1) for line in lines]
    if not all(len(part) == 2 for part in parts):
        found = [WORDNET.fullmatch(line) for line in lines]
        parts = [[*match.groups()] for match in found if match]
    if not parts or len(parts) < len(lines):
        return Classes(tuple(lines))
    return Classes(tuple(name.strip() for _, name in parts), tuple(key.strip() for key, _ in parts))


def _of_json(document: Any, file: Path) -> Classes:
    """Read a list of names, an object of names by keys, or Keras' ``{"0": ["n01440764", "tench"]}`` of ImageNet."""
    if isinstance(document, list) and all(isinstance(name, str) for name in document):
        return Classes(tuple(document))
    if isinstance(document, dict) and document:
        items: list[tuple[Any, Any]] = list(document.items())
        if all(key.isdecimal() for key in document):
            items.sort(key=lambda item: int(item[0]))
            if [int(key) for key, _ in items] != list(range(len(items))):
                raise DataError(f"the numbers in {file} are not those from 0 to {len(items) - 1}.")
            items = [(None, name) if isinstance(name, str) else name for _, name in items]
        if all(_is_pair(item) for item in items):
            keys = tuple(key for key, _ in items if key is not None)
            return Classes(tuple(name for _, name in items), keys if len(keys) == len(items) else ())
    raise DataError(
        f'{file} is neither a list of names, nor an object of names by folder, nor of {{"0": ["n01440764", "tench"]}}.'
    )


def _is_pair(item: Any) -> bool:
    """Say whether something is a key, or None, and a name."""
    return (
        isinstance(item, list | tuple)
        and len(item) == 2
        and isinstance(item[0], str | None)
        and isinstance(item[1], str)
    )
