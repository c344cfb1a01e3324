"""What a part's parameter holds at any depth: in lists, sets, mappings, and dataclasses, which are written as those."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

from pydantic import BaseModel, RootModel

ValuePath = tuple[Any, ...]
"""The keys and numbers that lead to what is inside of a value."""


class Unread(NamedTuple):
    """Names keys that were written for a value, and of which it has nothing.

    :param path: Where the value is.
    :param known: The keys that it has.
    """

    path: ValuePath
    keys: list[str]
    known: list[str]


def changed_inside(value: Any, change: Callable[[Any, ValuePath], Any], path: ValuePath = ()) -> Any:
    """Give a value with each thing in it changed; itself, where that leaves all as it is."""
    within = _within(value)
    if within is None:
        return change(value, path)
    now = {step: changed_inside(item, change, (*path, step)) for step, item in within.items()}
    if all(now[step] is item for step, item in within.items()):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        made = copy.copy(value)  # and not made anew: its own code has run, and may run once alone
        for name, item in now.items():
            object.__setattr__(made, name, item)
        return made
    if isinstance(value, MutableMapping):
        renewed = copy.copy(value)
        renewed.update(now)
        return renewed
    if isinstance(value, Mapping):
        return now
    return type(value)(*now.values()) if hasattr(value, "_fields") else type(value)(now.values())


def leaves(value: Any) -> Iterator[Any]:
    """Yield what a value holds at any depth; itself where it holds nothing."""
    within = _within(value)
    if within is None:
        yield value
    else:
        for item in within.values():
            yield from leaves(item)


def in_order(value: Any) -> Any:
    """Give a value as JSON has it, but for what is in it, with each set in an order that is always the same."""
    if isinstance(value, set | frozenset):
        ordered = list(map(in_order, value))
        return sorted(ordered) if _compare(ordered) else sorted(ordered, key=repr)
    within = _within(value)
    if within is None or not any(isinstance(one, set | frozenset) for one in _containers(value)):
        return value
    items = {step: in_order(item) for step, item in within.items()}
    return list(items.values()) if isinstance(value, list | tuple) else items


def unread(written: Any, read: Any, path: ValuePath = ()) -> Iterator[Unread]:
    """Yield the keys that a recipe writes at any depth and that have gone into no value.

    :param read: What was made of it.
    """
    if isinstance(written, list | tuple) and isinstance(read, list | tuple) and len(written) == len(read):
        for number, (one, made) in enumerate(zip(written, read, strict=True)):
            yield from unread(one, made, (*path, number))
    if not isinstance(written, Mapping) or (known := _keys_of(read, written)) is None:
        return
    if keys := [key for key in written if key not in known]:
        yield Unread(path, keys, known)
    for key in (key for key in written if key in known):
        made = read.get(key) if isinstance(read, Mapping) else getattr(read, key, None)
        yield from unread(written[key], made, (*path, key))


def _keys_of(read: Any, written: Mapping[Any, Any]) -> list[str] | None:
    """Give the keys that a value may be written with; None where its own type says which, or reads keys otherwise."""
    kind: Any = type(read)
    if isinstance(read, BaseModel):
        return None if isinstance(read, RootModel) else _names(kind.model_fields, kind.model_config)
    if hasattr(kind, "__pydantic_fields__"):  # a dataclass of pydantic's own
        return _names(kind.__pydantic_fields__, getattr(kind, "__pydantic_config__", {}))
    if dataclasses.is_dataclass(read):  # what it makes itself is written of it, too; a variable of its own is no field
        return list(vars(kind)["__dataclass_fields__"])
    if isinstance(read, Mapping) and all(isinstance(key, str) for key in read):
        # Of a typed one that has fewer keys: of others each has been read, as whatever it is.
        return list(read) if len(read) < len(written) or all(key in read for key in written) else None
    return None


def _names(fields: Mapping[str, Any], config: Mapping[str, Any]) -> list[str] | None:
    """Name pydantic's fields; None where it takes others too, or reads one by another name."""
    is_open = config.get("extra") == "allow" or config.get("alias_generator") is not None
    is_renamed = any(one.alias or one.validation_alias for one in fields.values())
    return None if is_open or is_renamed else list(fields)


def _compare(items: list[Any]) -> bool:
    """Say whether things of one kind can be put in an order of their own."""
    return len({type(item) for item in items}) == 1 and isinstance(items[0], str | int | float)


def _within(value: Any) -> dict[Any, Any] | None:
    """Give what a value holds, by what leads there; None of one that holds nothing."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple | set | frozenset):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    return None


def _containers(value: Any) -> Iterator[Any]:
    within = _within(value)
    if within is not None:
        yield value
        for item in within.values():
            yield from _containers(item)
