"""Read YAML as whoever writes it means it: the scalars of YAML 1.2, no key twice, no tags; every value with its place.

Anchors may be merged by ``<<``, as in YAML 1.1.

PyYAML alone reads ``2:4`` as 124, ``on`` as True and ``1e-3`` as text, and lets the second of two equal keys win.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from ecoflap.core.errors import EcoflapError, RecipeError, one_line

KeyPath: TypeAlias = tuple[Any, ...]
"""Where a value is in a document: keys of mappings and indexes of lists, from the top."""

LARGEST = 500_000
"""The most bytes or characters of a text that is read: it is looked at before any of it is understood."""

MOST_NODES = 20_000
"""The most values that a document may hold: aliases of aliases would fill the memory from a few lines."""

MOST_DIGITS = 1_000
"""The most digits of a whole number. Python writes none of more than 4,300 in decimal, as messages have to."""

DEEPEST = 60
"""The deepest that values may lie within each other: an alias within itself has no end."""

_CORE_SCHEMA: tuple[tuple[str, str, Sequence[str]], ...] = (
    ("null", r"(?:~|null|Null|NULL|)$", ("~", "n", "N", "")),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("float", r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+."),
)
"""How the scalars of each type are written, and the letters that they may begin with."""

_PREFIX = "tag:yaml.org,2002:"

TOO_LARGE = f"it is larger than {LARGEST:,} bytes, and nothing that is written by hand is"


@dataclass(frozen=True)
class Place:
    """Says where something was written.

    :param source: A file, or a ``--set`` on the command line.
    :param line: Counted from 1; 0 where there are no lines to count.
    :param folder: What a relative path written here is relative to.
    """

    source: str
    line: int = 0
    column: int = 0
    folder: Path = field(default_factory=Path.cwd)

    @property
    def is_set(self) -> bool:
        """Say whether it is a ``--set``."""
        return self.source.startswith("--set ")

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True)
class Document:
    """Holds a value, and where everything in it was written.

    :param start: Where the whole of it was written.
    :param keys: The place of the key that leads to a path.
    :param values: The place of the value at a path.
    """

    value: Any
    start: Place
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    values: dict[KeyPath, Place] = field(default_factory=dict)

    def where(self, path: KeyPath, *, key: bool = False) -> Place:
        """Give the place of a value or of its key; where it was not written itself, that of the nearest around it."""
        if key and path in self.keys:
            return self.keys[path]
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path, self.start)


class _Loader(yaml.SafeLoader):
    """Composes nodes, and refuses tags and too much depth before anything is made of them."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own attribute)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        tag = None if isinstance(event, yaml.AliasEvent) else getattr(event, "tag", None)
        if tag is not None:
            raise yaml.MarkedYAMLError(
                problem=f"tags such as {tag!r} are not allowed; write the plain value", problem_mark=event.start_mark
            )
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=event.start_mark)
        self.nodes += 1
        if self.nodes > 2 * MOST_NODES:  # a key is a node too
            raise yaml.MarkedYAMLError(problem=f"more than {MOST_NODES} values", problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Writes what :func:`read_yaml` reads back: a text that YAML 1.1 or 1.2 would take for another type is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Unquoted or in single quotes these would read back as line breaks.
        style = '"' if set(data) & set("\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar(f"{_PREFIX}str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)

for _name, _pattern, _first in _CORE_SCHEMA:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_PREFIX + _name, re.compile(_pattern), list(_first))

_Dumper.add_implicit_resolver(f"{_PREFIX}merge", re.compile("^<<$"), ["<"])  # a text that says so is quoted


def read_yaml(text: str, file: str | Path, error: type[EcoflapError] = RecipeError) -> Document:
    """Read a text that holds a mapping.

    :param file: Where the text is from: messages name it, and paths in the text are relative to its folder.
    :param error: The type that is raised, with every problem that was found.
    """
    document, problems = parse_yaml(text, Place(str(file), 1, 1, Path(file).parent.absolute()))
    if not problems and not isinstance(document.value, dict):
        problems = [f"{document.start}: {_not_a_mapping(document.value)}"]
    if problems:
        raise error(*problems)
    return document


def read_yaml_file(file: str | Path) -> Document:
    """Read a recipe's file, which holds a mapping, as :func:`read_yaml` does, or say that it cannot be read."""
    try:
        text = read_small_text(file)
    except (OSError, ValueError) as problem:
        raise RecipeError(f"{file} cannot be read: {problem}.") from problem
    return read_yaml(text, file)


def read_small_text(file: str | Path) -> str:
    """Read the text of a YAML file, unless it is larger than any that is meant.

    :raises OSError: Where it is not there.
    :raises ValueError: Where it is too large, or is no UTF-8.
    """
    with Path(file).open("rb") as opened:
        raw = opened.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise ValueError(TOO_LARGE)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = f"0x{raw[error.start]:02x} at byte {error.start}"
        raise ValueError(f"it is no UTF-8, with {wrong}. Save it as UTF-8") from error


def _not_a_mapping(value: Any) -> str:
    if value is None:
        return "the file is empty; it should hold keys and values, beginning with 'version: 1'."
    return f"a mapping is wanted at the top, lines of 'key: value', and this is {described(value)}."


def described(value: Any) -> str:
    """Describe a value in a message: as a mapping, as a list, as nothing, or by itself, cut to 60 characters."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return "nothing" if value is None else text if len(text) <= 60 else text[:57] + "…"


def parse_yaml(text: str, start: Place) -> tuple[Document, list[str]]:
    """Read any YAML value, and give all that is wrong with it instead of raising. A syntax error leaves no value."""
    empty = Document(None, start)
    if len(text) > LARGEST:
        return empty, [f"{start}: {TOO_LARGE}."]
    try:
        node = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return empty, [f"{_place(start, mark) if mark else start}: {_sentence(error)}"]
    except yaml.YAMLError as error:
        return empty, [f"{start}: not YAML: {one_line(error)}"]
    if node is None:
        return empty, []
    walk = _Walk(start)
    try:
        value = walk.value(node, ())
    except _TooMuch as error:
        return empty, [f"{_place(start, error.mark)}: {error}"]
    return Document(value, start, walk.keys, walk.values), walk.problems


def _sentence(error: yaml.MarkedYAMLError) -> str:
    if error.context:  # an error of PyYAML's, which says what it was reading and what it found
        return f"not YAML: {', '.join(text for text in (error.context, error.problem) if text)}."
    return f"{error.problem}."


def _place(start: Place, mark: Any) -> Place:
    if not start.line:
        return start
    return Place(start.source, mark.line + 1, mark.column + 1, start.folder)


class _TooMuch(Exception):
    """Says why a document is not read any further, and at which node."""

    def __init__(self, why: str, node: yaml.Node) -> None:
        super().__init__(why)
        self.mark = node.start_mark


class _Walk:
    """Turns composed nodes into values, and keeps where each was. What an alias repeats is counted each time."""

    def __init__(self, start: Place) -> None:
        self.start = start
        self.keys: dict[KeyPath, Place] = {}
        self.values: dict[KeyPath, Place] = {}
        self.problems: list[str] = []
        self._merged = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        if len(path) > DEEPEST:
            raise _TooMuch("nested too deeply; does an alias contain itself?", node)
        if len(self.values) >= MOST_NODES:
            raise _TooMuch(f"more than {MOST_NODES} values; do aliases repeat each other?", node)
        self.values[path] = _place(self.start, node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[Any, Any]:
        read: dict[Any, Any] = {}
        for key_node, value_node, is_own in self._pairs(node):
            place = _place(self.start, key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(f"{place}: a key should be a word, not a mapping or a list.")
                continue
            key = self._scalar(key_node)
            if key in read and not is_own:
                continue
            if key in read:
                first = self.keys[(*path, key)]
                self.problems.append(f"{place}: {dotted((*path, key))}: written twice; first at {first}. Remove one.")
                continue
            self.keys[(*path, key)] = place
            read[key] = self.value(value_node, (*path, key))
        return read

    def _pairs(self, node: yaml.MappingNode, depth: int = 0) -> Iterator[tuple[yaml.Node, yaml.Node, bool]]:
        """Yield keys and values, and whether they are the mapping's own: those that ``<<`` merges come behind these."""
        if depth > DEEPEST:
            raise _TooMuch("nested too deeply; does an alias contain itself?", node)
        merged: list[tuple[yaml.Node, yaml.Node]] = []
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == "<<" and key.style is None:
                if merged and depth == 0:
                    place = _place(self.start, key.start_mark)
                    self.problems.append(f"{place}: << is written twice; merge a list: <<: [*first, *second].")
                several = value.value if isinstance(value, yaml.SequenceNode) else [value]
                merged += ((key, one) for one in several)
            else:
                yield key, value, depth == 0
        for key, one in merged:
            self._merged += 1
            if self._merged > MOST_NODES:
                raise _TooMuch(f"more than {MOST_NODES} values; do aliases repeat each other?", one)
            if isinstance(one, yaml.MappingNode):
                yield from self._pairs(one, depth + 1)
            else:
                self.problems.append(f"{_place(self.start, key.start_mark)}: << merges a mapping, or a list of some.")

    def _scalar(self, node: yaml.Node) -> Any:
        text = str(node.value)
        try:
            return _READ[node.tag.removeprefix(_PREFIX)](text)
        except ValueError:
            self.problems.append(
                f"{_place(self.start, node.start_mark)}: {text[:20]}… has more digits than can be read."
            )
            return 0


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(text)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _float(text: str) -> float:
    # Python spells these two without the dot.
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_READ: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _integer,
    "float": _float,
    "str": str,
}


def dotted(path: KeyPath) -> str:
    """Write a path as messages and ``--set`` have it: ``evaluate.0.samples``."""
    return ".".join(map(str, path))


def write_yaml(value: Any) -> str:
    """Write a value as a text that :func:`read_yaml` reads as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=sys.maxsize)
