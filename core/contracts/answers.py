"""Hold what a part's optional methods answer to the types that their contract declares; parts come from anywhere."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cache, wraps
from inspect import getattr_static, isfunction
from types import MemberDescriptorType, NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ecoflap.core.contracts.blame import PartError, blaming

LARGEST = 2**63 - 1
"""The largest whole number that a part may answer: that of 64 bits, which files and libraries can hold."""
_ABSENT = object()


def has_member(part: Any, name: str) -> bool:
    """Say whether a part has a member, also one whose code raises; a part may find members as it is asked for them."""
    found = getattr_static(part, name, _ABSENT)
    is_made_when_asked = found is _ABSENT or isinstance(found, MemberDescriptorType)  # a slot may be empty
    return hasattr(part, name) if is_made_when_asked else True


def checking(declared: Any, name: str, part: Any) -> Any:
    """Give a part's member; a method that answers something such that it is of the declared type.

    What may be iterated over once is read at once, so that it raises, if it does, where the part is asked.

    :param declared: The class of options that has the member.
    :raises PartError: Where it is a property whose code raises what is no error of users.
    """
    kind = declared.__name__.removesuffix("Options").lower()
    whose = part.__name__ if isinstance(part, type) else type(part).__name__
    asking = f"the {kind} {whose}, asked for its {name},"
    with blaming(asking):
        own = getattr(part, name)
    wanted = _answer_of(declared, name)
    if wanted is NoneType or not callable(own):
        return own

    # What one without a default raises, its caller tells with what it was about, such as a file's name.
    has_default = isfunction(getattr(declared, name, None))

    @wraps(own)
    def asked(*given: Any, **named: Any) -> Any:
        with blaming(asking) if has_default else nullcontext():
            answer = own(*given, **named)
            kinds = [get_origin(one) for one in (wanted, *get_args(wanted))]
            if Iterable in kinds and isinstance(answer, Iterable) and not isinstance(answer, str | bytes):
                answer = list(answer)
            if Sequence in kinds and isinstance(answer, Iterator):  # a method that yields what it should list
                answer = list(answer)
        if not is_of(answer, wanted):
            wants = f"and is to answer {_written(wanted)}. docs/hooks.md says what a part may have."
            raise PartError(f"{asking} answered {shown(answer)}, {wants}")
        return answer

    return asked


@cache
def _answer_of(declared: Any, name: str) -> Any:
    """Give the type that a declared method answers; None's of one that answers nothing, or a member that is none."""
    methods = declared_methods(declared, name)
    return get_type_hints(methods[0])["return"] if methods else NoneType


def declared_methods(declared: Any, name: str) -> tuple[Callable[..., Any], ...]:
    """Give a method as a class declares it; none of a member that is no method.

    One without a default is declared by its type, which is a protocol, or several for the ways in which it is called.
    """
    member = getattr(declared, name, None)
    if isfunction(member):
        return (member,)
    of_type = get_args(get_type_hints(declared).get(name))
    return tuple(vars(one)["__call__"] for one in of_type if _is_protocol(one))


def _is_protocol(hint: Any) -> bool:
    """Say whether a type is a protocol of what is called."""
    return getattr(hint, "_is_protocol", False) and isfunction(vars(hint).get("__call__"))


def is_text(value: Any) -> bool:
    """Say whether a value is a text that a file can hold: one without halves of characters."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def is_count(value: Any) -> bool:
    """Say whether a value is a whole number, not negative, that a file of ours can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def shown(answer: Any) -> str:
    """Show what a part answered in a message, as far as it lets itself be shown."""
    try:
        text = repr(answer)
    except Exception:  # such as of a number with more digits than Python writes
        text = f"{type(answer).__name__} that cannot be shown"
    return text if len(text) <= 100 else f"{text[:100]}…"


def is_of(value: Any, hint: Any) -> bool:
    """Say whether a value is of a type, also inside; True and False are no numbers, and a text is no list of texts."""
    origin, inside = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(is_of(value, one) for one in inside)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            is_of(key, inside[0]) and is_of(item, inside[1]) for key, item in value.items()
        )
    if origin in (Sequence, Iterable):
        return (
            isinstance(value, origin)
            and not isinstance(value, str | bytes)
            and all(is_of(item, inside[0]) for item in value)
        )
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST
    return is_text(value) if hint is str else isinstance(value, origin or hint)


_IN_WORDS = {NoneType: "None", int: "a whole number", str: "a text"}


def _written(hint: Any) -> str:
    """Write a type for a message, without the modules that it is from."""
    if hint in _IN_WORDS:
        return _IN_WORDS[hint]
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_written, get_args(hint)))
    inside = ", ".join(map(_written, get_args(hint)))
    name = getattr(get_origin(hint) or hint, "__name__", str(hint))
    return f"{name}[{inside}]" if inside else name
