"""``--set key.path=value``: changes a recipe before it is checked, and remembers who wrote what."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ecoflap.core.errors import RecipeError
from ecoflap.core.recipe.keys import bare_keys, engine_keys, list_keys
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.text.strict_yaml import Document, KeyPath, Place, described, parse_yaml

# Beside the parameters of these parts stand keys of the engine; they stay when the part is exchanged.
_ENGINE_KEYS: Mapping[Any, Sequence[str]] = engine_keys(Recipe)
_LISTS = tuple(list_keys(Recipe))
_BARE_KEYS = bare_keys(Recipe)


@dataclass(frozen=True)
class Assignment:
    """One ``key.path=value`` that was read already.

    :param key: Dotted.
    :param value: With its places; the start is that of the key.
    """

    key: str
    value: Document


def as_assignments(set_: Sequence[str] | Mapping[str, Any] | str) -> tuple[str, ...]:
    """Write what Python may give for ``set_`` as texts like those of ``--set``: one text alone, or values by keys.

    :raises RecipeError: Where a value is of a type that no recipe writes.
    """
    if isinstance(set_, str):
        return (set_,)
    if not isinstance(set_, Mapping):
        return tuple(set_)
    return tuple(f"{key}={_as_text(key, value)}" for key, value in set_.items())


def _as_text(key: str, value: Any) -> str:
    text = str(value) if isinstance(value, (str, Path)) else None
    if text is not None and parse_yaml(text, Place(key))[0].value == text:
        return text
    try:
        return json.dumps(value if text is None else text)
    except TypeError as error:
        raise RecipeError(f"set_: {key}: {described(value)} is none of the values that a recipe writes.") from error


def override(document: Document, assignments: Sequence[str | Assignment]) -> tuple[Document, list[str]]:
    """Apply each ``key.path=value`` in order; return the changed document, and what is wrong with the assignments."""
    changed = Document(_copied(document.value), document.start, dict(document.keys), dict(document.values))
    problems = [problem for assignment in assignments for problem in _apply(changed, assignment)]
    return changed, problems


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, (list, tuple)) else value


def _apply(document: Document, assignment: str | Assignment) -> list[str]:
    if isinstance(assignment, str):
        assignment, problems = _read(assignment)
        if problems:
            return problems
    place = assignment.value.start
    try:
        _put(document, assignment.key.split("."), assignment.value)
    except _NoSuchPlace as error:
        return [f"{place}: {assignment.key}: {error}" if place.line else f"{place}: {error}"]
    return []


def read_assignment(text: str, below: str) -> Assignment:
    """Read a ``--set`` whose key is meant below another one; its place is what was typed.

    :param below: Dotted, with a dot at its end.
    :raises RecipeError: With what is wrong with it.
    """
    read, problems = _read(text)
    if problems:
        raise RecipeError(*problems)
    return Assignment(f"{below}{read.key}", read.value)


def _read(text: str) -> tuple[Assignment, list[str]]:
    """Read a ``--set`` of the command line; return it with what is wrong with it."""
    name, equals, written = text.partition("=")
    place, key = Place(f"--set {text}"), name.strip()
    if not equals or not all(key.split(".")):
        return Assignment(key, Document(None, place)), [f"{place}: should be KEY=VALUE, such as prune.use=sparsegpt."]
    value, problems = parse_yaml(written, place)
    return Assignment(key, value), [f"{problem} Put the value in quotes if it is a text." for problem in problems]


class _NoSuchPlace(Exception):
    pass


def _put(document: Document, steps: Sequence[str], written: Document) -> None:
    value, place = _copied(written.value), written.start
    node: Any = document.value
    path: KeyPath = ()
    for step, following in pairwise(steps):
        key = _key(node, step, path)
        path = (*path, key)
        node = _opened(document, node, key, path, following, place)
    key = _key(node, steps[-1], path)
    if key == "use" and isinstance(node, dict) and node.get("use") != value:
        kept = _ENGINE_KEYS.get(path[-1], ()) if path else ()
        for old in [old for old in node if old not in kept]:
            _forget(document, (*path, old))
            del node[old]
    _forget(document, (*path, key))
    document.keys[(*path, key)] = place
    document.keys.update({(*path, key, *inside): where for inside, where in written.keys.items()})
    document.values.update({(*path, key, *inside): where for inside, where in written.values.items()})
    document.values[(*path, key)] = written.where(())
    if isinstance(node, list) and key == len(node):
        node.append(value)
    else:
        node[key] = value


def _key(node: Any, step: str, path: KeyPath) -> str | int:
    """Read a step as the key of a mapping or the index of a list."""
    if not isinstance(node, list):
        return step
    if step.isdecimal() and int(step) <= len(node):
        return int(step)
    raise _NoSuchPlace(f"{'.'.join(map(str, path))} is a list of {len(node)}; {step!r} should be a number up to that.")


def _opened(document: Document, node: Any, key: Any, path: KeyPath, following: str, place: Place) -> Any:
    """Make what is at a key into something that has keys: a bare name becomes ``{use: name}``, nothing ``{}``."""
    inner = node.get(key) if isinstance(node, dict) else node[key] if key < len(node) else None
    as_list = path[0] in _LISTS and len(path) == 1 and following.isdecimal()
    is_kept = path[0] == "towers" and len(path) == 2 and inner == "keep"  # which is no name of a part
    if inner is None or is_kept:
        opened: Any = [] if as_list else {}
        document.keys[path] = document.values[path] = place
    elif as_list and not isinstance(inner, list):
        opened = [inner]
        _move(document, path, (*path, 0))
    elif isinstance(inner, str) and path[0] != "sparsity":
        name = _BARE_KEYS.get(path[0], "use") if len(path) == 1 else "use"
        opened = {name: inner}
        document.values[(*path, name)] = document.where(path)
    elif isinstance(inner, (dict, list)):
        return inner
    else:
        raise _NoSuchPlace(f"{'.'.join(map(str, path))} is {described(inner)}, which has no keys.")
    if isinstance(node, list) and key == len(node):
        node.append(opened)
    else:
        node[key] = opened
    return opened


def _forget(document: Document, path: KeyPath) -> None:
    for places in (document.keys, document.values):
        for inside in [known for known in places if known[: len(path)] == path]:
            del places[inside]


def _move(document: Document, path: KeyPath, new: KeyPath) -> None:
    """Note that what was at a path is now further in."""
    moved = {known: place for known, place in document.values.items() if known[: len(path)] == path}
    document.values.update({(*new, *known[len(path) :]): place for known, place in moved.items()})
