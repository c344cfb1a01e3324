"""Compares two recipes key by key, also with one that an earlier version wrote."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ecoflap.core.recipe.keys import set_keys
from ecoflap.core.recipe.schema import calibration_keys, may_change


def differences(old: Mapping[str, Any], new: Mapping[str, Any], ignore: Sequence[str] = may_change()) -> list[str]:
    """Name each key in which two recipes differ, with both values: ``prune.compare: row vs layer``.

    :param old: As :meth:`Recipe.plain` writes it; so is ``new``.
    :param ignore: Keys, dotted or not, that do not count; by default those that may change within a run folder.
    """
    return [
        f"{path}: {before} vs {after}"
        for path, before, after in _differing(set_keys(old), set_keys(new), "")
        if not is_within(path, ignore)
    ]


def is_within(key: str, keys: Sequence[str]) -> bool:
    """Say whether a key is one of some, or lies inside of one; all are dotted."""
    return any(key == one or key.startswith(f"{one}.") for one in keys)


def changes(begun: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name each key in which a recipe differs from the one that a run folder was begun with, so that it cannot go on.

    That one was written with every parameter. One of calibration data that it lacks is of a later version, and whether
    its default gives the data of before is told by their fingerprint.
    """
    return differences(begun, now, (*may_change(), *_unknown_before(begun, now)))


def contradictions(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Name each key in which two recipes say different things of one run: either may be of a later version.

    What may change within a folder does not count, nor does a parameter of a part that only one of them knows.
    """
    known_to_one = tuple(_known_to_one(set_keys(one), set_keys(other), ""))
    return differences(one, other, (*may_change(), *known_to_one))


def _known_to_one(one: Any, other: Any, path: str) -> Iterator[str]:
    """Yield where only one of two mappings of the same part has a parameter, dotted."""
    if _are_parts(one) and _are_parts(other) and len(one) == len(other):
        for at, (first, second) in enumerate(zip(one, other, strict=True)):
            yield from _known_to_one(first, second, f"{path}.{at}")
    elif isinstance(one, dict) and isinstance(other, dict):
        is_a_part = "use" in one and one["use"] == other.get("use")
        for key in dict.fromkeys([*one, *other]):
            inside = f"{path}.{key}" if path else str(key)
            if key in one and key in other:
                yield from _known_to_one(one[key], other[key], inside)
            elif is_a_part:
                yield inside


def _unknown_before(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Name the parameters of calibration data, dotted, that the old recipe lacks."""
    pairs = ((place, _inside(old, place), _inside(new, place)) for place in calibration_keys())
    alike = ((place, before, now) for place, before, now in pairs if before.get("use") == now.get("use"))
    return [f"{place}.{name}" for place, before, now in alike for name in now if name not in before]


def _inside(recipe: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """Give the mapping at a dotted place; an empty one where there is none."""
    found: Any = recipe
    for key in place.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


_NOT_SET = object()


def _differing(old: Any, new: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Yield where two plain values differ; of a part that was exchanged only the names, not its parameters."""
    if _are_parts(old) and _are_parts(new) and len(old) == len(new):
        for at, (before, now) in enumerate(zip(old, new, strict=True)):
            yield from _differing(before, now, f"{path}.{at}")
    elif not isinstance(old, dict) or not isinstance(new, dict):
        # What an earlier version did not know stands for nothing where it is not set now.
        if old != new and not (_NOT_SET in (old, new) and _is_unset(old) and _is_unset(new)):
            yield path, _shown(old), _shown(new)
    elif old.get("use") != new.get("use"):
        yield f"{path}.use", _shown(old.get("use")), _shown(new.get("use"))
    else:
        for key in dict.fromkeys([*old, *new]):
            inside = f"{path}.{key}" if path else str(key)
            yield from _differing(old.get(key, _NOT_SET), new.get(key, _NOT_SET), inside)


def _are_parts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "use" in one for one in value)


def _is_unset(value: Any) -> bool:
    return value is _NOT_SET or value is None or value == []


def _shown(value: Any) -> str:
    if _is_unset(value):
        return "not set"
    if isinstance(value, dict) and "use" in value:
        return str(value["use"])
    if _are_parts(value):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value)
