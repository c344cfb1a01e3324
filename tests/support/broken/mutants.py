"""Break a document as people, editors and disks do: its values, its keys, its shape, and at last its bytes.

All follows from a seed, so that a failure is found again by its number.
"""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from math import isfinite
from random import Random
from typing import Any

from hostile import KEYS, VALUES

Steps = tuple[Any, ...]


def places(value: Any, path: Steps = ()) -> Iterator[Steps]:
    """Yield the path of every value below the top."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in inside:
        yield (*path, step)
        yield from places(item, (*path, step))


def at(document: Any, path: Steps) -> Any:
    for step in path:
        document = document[step]
    return document


def put(document: Any, path: Steps, value: Any) -> None:
    at(document, path[:-1])[path[-1]] = value


def _other_value(draw: Random, document: Any, path: Steps) -> None:
    put(document, path, deepcopy(draw.choice(VALUES)))


def _other_type(draw: Random, document: Any, path: Steps) -> None:
    """The same, in another type: a number as text, as a float, as a list of itself, or the other way round."""
    value = at(document, path)
    made: list[Callable[[], Any]] = [
        lambda: str(value),
        lambda: [value],
        lambda: {"use": value},
        lambda: [value, value],
        lambda: {str(value): value},
        lambda: [[value]],
    ]
    if isinstance(value, int | float):
        made += [lambda: float(value), lambda: -value, lambda: value * 10**6, lambda: value + 0.5, lambda: bool(value)]
    if isinstance(value, list) and value:
        made += [lambda: value[0], lambda: value * 50, lambda: value[::-1], lambda: value[:-1]]
    if isinstance(value, dict) and value:
        made += [lambda: list(value), lambda: next(iter(value.values())), lambda: next(iter(value.items()))]
    changed = draw.choice(made)()
    put(document, path, list(changed) if isinstance(changed, tuple) else changed)


def _dropped(draw: Random, document: Any, path: Steps) -> None:
    del at(document, path[:-1])[path[-1]]


def _misspelt(draw: Random, document: Any, path: Steps) -> None:
    """One letter of a key, or of a text in a list, is left out, doubled or another."""
    around, step = at(document, path[:-1]), path[-1]
    if isinstance(around, dict):
        around[_typo(draw, str(step))] = around.pop(step)
    elif isinstance(around[step], str):
        around[step] = _typo(draw, around[step])


def _typo(draw: Random, text: str) -> str:
    place = draw.randrange(max(1, len(text)))
    return text[:place] + draw.choice(["", text[place : place + 1] * 2, "_", "é", ".", " "]) + text[place + 1 :]


def _misspelt_value(draw: Random, document: Any, path: Steps) -> None:
    value = at(document, path)
    put(document, path, _typo(draw, value) if isinstance(value, str) else str(value))


def _added(draw: Random, document: Any, path: Steps) -> None:
    around = at(document, path[:-1])
    if isinstance(around, dict):
        around[draw.choice([*KEYS, *map(str, around), 1, 0.5, None, True])] = deepcopy(draw.choice(VALUES))
    else:
        around.insert(draw.randrange(len(around) + 1), deepcopy(draw.choice(VALUES)))


def _swapped(draw: Random, document: Any, path: Steps) -> None:
    """What stands at one place stands at another; neither is inside the other."""
    others = [one for one in places(document) if one[: len(path)] != path and path[: len(one)] != one]
    if others:
        other = draw.choice(others)
        here, there = at(document, path), at(document, other)
        put(document, path, there)
        put(document, other, here)


def _nested(draw: Random, document: Any, path: Steps) -> None:
    value = at(document, path)
    for _ in range(draw.choice([1, 3, 25, 55, 70, 100])):
        value = [value] if draw.random() < 0.5 else {"use": value}
    put(document, path, value)


CHANGES = (
    _other_value,
    _other_value,
    _other_value,
    _other_type,
    _other_type,
    _dropped,
    _misspelt,
    _misspelt_value,
    _added,
    _swapped,
    _nested,
)


def changed(document: Any, draw: Random, changes: int = 0) -> Any:
    """Give a copy with some values and keys broken, most often one."""
    copy = _apart(document)
    for _ in range(changes or draw.choice([1, 1, 1, 1, 2, 3])):
        if found := list(places(copy)):
            draw.choice(CHANGES)(draw, copy, draw.choice(found))
    return copy


def _apart(value: Any) -> Any:
    """Copy a value that two places of a document may share, so that it is one of its own at each.

    Exchanged for something in itself, a shared one would hold itself.
    """
    if isinstance(value, dict):
        return {key: _apart(item) for key, item in value.items()}
    return [_apart(item) for item in value] if isinstance(value, list) else deepcopy(value)


def broken_bytes(raw: bytes, draw: Random) -> bytes:
    """Break the text itself: cut, flipped, doubled, turned or of another encoding."""
    place, end = sorted(draw.randrange(len(raw) + 1) for _ in range(2))
    lines = raw.split(b"\n")
    line = draw.randrange(len(lines))
    junk = draw.choice(
        [
            b"\x00",
            b"\t",
            b"\xff\xfe",
            b"\xc3",
            b"\x1b[2J",
            b"\xe2\x80\xa8",
            b"{",
            b"]",
            b": ",
            b"- ",
            b"'",
            b'"',
            b"&a ",
            b"*a",
            b"!!int ",
            b"%",
            b"|\n",
            b"---\n",
            b"? ",
            b"<<: *a\n",
            b"0x",
            b"1e999",
            b"\\ud800",
        ]
    )
    breaks: list[Callable[[], bytes]] = [
        lambda: raw[:place],
        lambda: raw[:place] + raw[end:],
        lambda: raw[:place] + junk + raw[place:],
        lambda: raw[:place] + junk + raw[place:],
        lambda: raw[:place] + bytes([raw[place % len(raw)] ^ (1 << draw.randrange(8))]) + raw[place + 1 :],
        lambda: b"\n".join([*lines[: line + 1], *lines[line:]]),
        lambda: b"\n".join([*lines[:line], b" " + lines[line], *lines[line + 1 :]]),
        lambda: b"\n".join([*lines[:line], lines[line].lstrip(), *lines[line + 1 :]]),
        lambda: b"\xef\xbb\xbf" + raw,
        lambda: raw.decode("utf-8", "replace").encode("utf-16"),
        lambda: raw.replace(b"\n", b"\r"),
        lambda: raw + raw,
        lambda: raw[:place] + draw.choice([b"[", b"{a: ", b"- "]) * draw.choice([100, 5000]) + raw[place:],
        lambda: draw.randbytes(len(raw)),
        lambda: b"",
    ]
    return draw.choice(breaks)()


def written(document: Any, as_json: bool = False) -> bytes:
    """Write a document: as JSON, or as YAML with a line for each of the keys at its top."""
    if as_json:
        return json.dumps(document).encode()
    if isinstance(document, dict) and document:
        return "".join(f"{_flow(key)}: {_flow(value)}\n" for key, value in document.items()).encode("utf-8", "replace")
    return _flow(document).encode("utf-8", "replace")


def _flow(value: Any) -> str:
    """Write YAML of flow style, which may lie as deep as one likes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float) and not isfinite(value):
        return ".nan" if value != value else ".inf" if value > 0 else "-.inf"
    return value if isinstance(value, str) and value.isidentifier() else json.dumps(value, ensure_ascii=False)


def mutant(document: Any, seed: str, *, as_json: bool = False, bytes_too: float = 0.2) -> bytes:
    """Give the file of one broken document.

    :param seed: All follows from it.
    :param bytes_too: The share of files whose bytes are broken, in place of what they say.
    """
    draw = Random(seed)
    if draw.random() < bytes_too:
        return broken_bytes(written(document, as_json), draw)
    return written(changed(document, draw), as_json)
