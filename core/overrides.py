"""``--set key.path=value``: changes a recipe before it is checked, and remembers who wrote what."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from ecoflap.core.strict_yaml import Document, KeyPath, Place, named, parse_yaml

# Beside the parameters of these parts stand keys of the engine; they stay when the part is exchanged.
_ENGINE_KEYS: Mapping[Any, Sequence[str]] = {
    "calibration": ("batch_size",),
    "score": ("granularity", "aggregate", "calibration"),
}
_LISTS = ("evaluate", "export", "reuse")


def override(document: Document, assignments: Sequence[str]) -> tuple[Document, list[str]]:
    """The document with each ``key.path=value`` applied in order, and what is wrong with them."""
    changed = Document(_copied(document.value), document.start, dict(document.keys), dict(document.values))
    problems = [problem for text in assignments for problem in _apply(changed, text)]
    return changed, problems


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, (list, tuple)) else value


def _apply(document: Document, text: str) -> list[str]:
    name, equals, written = text.partition("=")
    place = Place(f"--set {text}")
    steps = name.strip().split(".")
    if not equals or not all(steps):
        return [f"{place}: should be KEY=VALUE, such as prune.use=sparsegpt."]
    value, problems = parse_yaml(written, place)
    if problems:
        return [f"{problem} Put the value in quotes if it is a text." for problem in problems]
    try:
        _put(document, steps, value.value, place)
    except _NoSuchPlace as error:
        return [f"{place}: {error}"]
    return []


class _NoSuchPlace(Exception):
    pass


def _put(document: Document, steps: Sequence[str], value: Any, place: Place) -> None:
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
    document.keys[(*path, key)] = document.values[(*path, key)] = place
    if isinstance(node, list) and key == len(node):
        node.append(value)
    else:
        node[key] = value


def _key(node: Any, step: str, path: KeyPath) -> str | int:
    """A step as the key of a mapping or the index of a list."""
    if not isinstance(node, list):
        return step
    if step.isdecimal() and int(step) <= len(node):
        return int(step)
    raise _NoSuchPlace(f"{'.'.join(map(str, path))} is a list of {len(node)}; {step!r} should be a number up to that.")


def _opened(document: Document, node: Any, key: Any, path: KeyPath, following: str, place: Place) -> Any:
    """What is at a key, as something that has keys: a bare name becomes ``{use: name}``, nothing an empty mapping."""
    inner = node.get(key) if isinstance(node, dict) else node[key] if key < len(node) else None
    as_list = path[0] in _LISTS and len(path) == 1 and following.isdecimal()
    if inner is None:
        opened: Any = [] if as_list else {}
        document.keys[path] = document.values[path] = place
    elif as_list and not isinstance(inner, list):
        opened = [inner]
        _move(document, path, (*path, 0))
    elif isinstance(inner, str) and path[0] != "sparsity":
        name = "source" if path == ("model",) else "use"
        opened = {name: inner}
        document.values[(*path, name)] = document.where(path)
    elif isinstance(inner, (dict, list)):
        return inner
    else:
        raise _NoSuchPlace(f"{'.'.join(map(str, path))} is {named(inner)}, which has no keys.")
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
