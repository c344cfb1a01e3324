"""Holds a part to its kind's contract: what it must have, how it is called, and what it may have besides."""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ecoflap.core.contracts.abilities import ABILITIES, offers
from ecoflap.core.contracts.answers import LARGEST, checking, declared_methods, has_member, shown
from ecoflap.core.contracts.blame import PartError
from ecoflap.core.contracts.kinds import KINDS
from ecoflap.core.contracts.options import PartOptions
from ecoflap.core.contracts.protocols import ComparingEvaluator, GradientStatistic, LossStatistic, Statistic
from ecoflap.core.errors import EcoflapError, RegistryError, nearest, unknown

Options = TypeVar("Options", bound=PartOptions)

_NEAR, _NEAR_PARAMETER = 0.8, 0.9
"""How alike two names are that are taken for one misspelt, by difflib's ratio; a parameter is named on purpose."""


def options_of(declared: type[Options], part: Any) -> Options:
    """Read a part's optional members, with the declared default for each that it lacks; answers are held to their type.

    :param declared: The class that declares them for the part's kind.
    :raises PartError: Where a member's own code raises what is no error of users.
    """
    options = declared()
    for name, value in _given(declared, part):
        setattr(options, name, value)
    return options


def _given(declared: type[PartOptions], part: Any) -> Iterator[tuple[str, Any]]:
    """Yield the optional members that a part has, by name.

    One that is a property and raises an error of users is passed over: the part's own ``problems`` says what is wrong.
    """
    for name in _members(declared):
        if has_member(part, name):
            try:
                yield name, checking(declared, name, part)
            except PartError:
                raise
            except EcoflapError:
                continue


def contract_problems(kind: str, part: Any, parameters: Collection[str]) -> Iterator[str]:
    """Say where a part breaks its kind's contract, a sentence for each breach.

    :param parameters: Names of the part's parameters, which may be called what they like.
    :raises RegistryError: Where there is no such kind.
    :raises PartError: As :func:`options_of` does.
    """
    if kind not in KINDS:
        raise RegistryError(unknown("kind of part", kind, tuple(KINDS)))
    if isinstance(part, type):
        yield f"{part.__name__} is a class, and a part is one of its instances: give {part.__name__}(…). {_page(kind)}"
        return
    yield from _missing(kind, part)
    yield from _called_otherwise(kind, part)
    yield from _near_misses(kind, part, parameters)
    yield from _wrong_values(kind, part)
    yield from _impossible_values(kind, part)
    yield from _wrong_statistics(kind, part)


def factory_problems(kind: str, factory: Callable[..., Any]) -> Iterator[str]:
    """Say why what an import path gives makes no part of a kind, as far as its definition tells: nothing is called.

    A class has to have the methods of the kind's contract. Of a function nothing is known but what it says that it
    returns, which has to be such a class or the kind's protocol.
    """
    made = factory if isinstance(factory, type) else _returned(factory)
    if made is None:
        name = KINDS[kind].protocol.__name__
        yield (
            f"it is no class, and does not say that it makes {with_article(kind)}. Name a class; or, if it is a "
            f"function that makes one, write -> {name} behind its parameters. {_page(kind)}"
        )
        return
    required = _required(_protocol(kind, made))
    missing = [name for name in required if _defined(made, name) is None]
    if "__call__" in missing:
        yield f"it is no {kind}: it cannot be called. {_called(kind)}"
    elif missing:
        yield f"it is no {kind}: it has no {', '.join(missing)}. {_page(kind)}"
    else:
        yield from _defined_otherwise(kind, made, required)


def _protocol(kind: str, part: Any) -> type[Any]:
    """Give the protocol that a part, or the class of one, is held to: an evaluator that remembers has its own."""
    compares = kind == "evaluator" and getattr(part, "remember", None) is not None
    return ComparingEvaluator if compares else KINDS[kind].protocol


def _required(protocol: type[Any]) -> dict[str, Callable[..., Any]]:
    """Give the methods that a part of a kind must have."""
    declared = vars(protocol)
    names = ["__call__", *_members(protocol)]
    return {name: declared[name] for name in names if inspect.isfunction(declared.get(name))}


def _defined(made: type[Any], name: str) -> Any:
    """Give what a class or one that it inherits from defines under a name; a class itself can always be called."""
    return next((vars(one)[name] for one in made.__mro__ if name in vars(one)), None)


def _returned(factory: Callable[..., Any]) -> type[Any] | None:
    """Give the class that a function says it returns; None where it says none."""
    try:
        said = get_type_hints(factory).get("return")
    except Exception:  # an annotation is code of whoever wrote it, and may raise anything
        return None
    return said if isinstance(said, type) else None


def _defined_otherwise(kind: str, made: type[Any], required: Mapping[str, Callable[..., Any]]) -> Iterator[str]:
    """Name methods of a class that cannot be called as they are going to be."""
    for name, taken, given in _misfits(made, required):
        yield _taken_otherwise(kind, name, taken, given)


def _misfits(
    made: type[Any], required: Mapping[str, Callable[..., Any]]
) -> Iterator[tuple[str, Sequence[str], Sequence[str]]]:
    """Yield the methods of a class that cannot be called as they are going to be, with what they take and are given."""
    for name, declared in required.items():
        bound = isinstance(_defined(made, name), (staticmethod, classmethod))
        try:
            taken = inspect.signature(getattr(made, name))
        except (TypeError, ValueError):  # one written in C, or a property, says nothing of its parameters
            continue
        given = list(inspect.signature(declared).parameters)[1:]
        if not _takes(taken, given if bound else ["self", *given]):
            yield name, list(taken.parameters)[0 if bound else 1 :], given


def _members(declared: type[Any]) -> list[str]:
    """Give the public names that a class and those it inherits from declare, in their order."""
    names = (name for one in reversed(declared.__mro__) for name in (*vars(one), *vars(one).get("__annotations__", {})))
    return [name for name in dict.fromkeys(names) if not name.startswith("_")]


def _methods(kind: str, part: Any) -> dict[str, Callable[..., Any]]:
    """Give each method of a part's contract as it is declared; of an adapter those of its abilities too."""
    protocol, options = _protocol(kind, part), KINDS[kind].options
    sources = [options, protocol]
    if kind == "adapter":
        sources += [ability for ability in ABILITIES if offers(part, ability)]
    declared = {"__call__": vars(protocol).get("__call__")}
    for one in sources:
        for name in _members(one):
            ways = declared_methods(one, name)
            # Of two ways to be called, the second is of an evaluator that is given what it has remembered.
            declared[name] = ways[-1 if protocol is ComparingEvaluator else 0] if ways else None
    return {name: method for name, method in declared.items() if inspect.isfunction(method)}


def _missing(kind: str, part: Any) -> Iterator[str]:
    protocol = KINDS[kind].protocol
    if "__call__" in vars(protocol) and not callable(part):
        yield f"it is no {kind}: it cannot be called. {_called(kind)}"
    missing = [name for name in _members(protocol) if not hasattr(part, name)]
    if missing:
        own = [name for name in dir(part) if not name.startswith("_") and name not in missing]
        meant = "".join(nearest(name, own) for name in missing) if len(missing) < len(_members(protocol)) else ""
        yield f"it is no {kind}: it has no {', '.join(missing)}.{meant} {_page(kind)}"


def _called_otherwise(kind: str, part: Any) -> Iterator[str]:
    """Name methods that cannot be called as they are going to be, as those of a plugin for another version."""
    for name, declared in _methods(kind, part).items():
        own = getattr(part, name, None)
        if own is not None and not callable(own):
            yield f"its member {name} should be a method, not {own!r:.100}. {_page(kind)}"
        if not callable(own):
            continue
        try:
            taken = inspect.signature(own)
        except (TypeError, ValueError):  # one written in C says nothing of its parameters
            continue
        given = list(inspect.signature(declared).parameters)[1:]
        if not _takes(taken, given) or (name == "problems" and len(taken.parameters) > 1):
            yield _taken_otherwise(kind, name, list(taken.parameters), given)


def _taken_otherwise(kind: str, name: str, taken: Sequence[str], given: Sequence[str]) -> str:
    return (
        f"its {name} takes ({', '.join(taken)}), and is called with ({', '.join(given)}): it may be written for "
        f"another version of ecoflap. {_page(kind)}"
    )


def _takes(signature: inspect.Signature, given: list[str]) -> bool:
    try:
        signature.bind(*given)
    except TypeError:
        return False
    return True


def _near_misses(kind: str, part: Any, parameters: Collection[str]) -> Iterator[str]:
    protocol, options = KINDS[kind].protocol, KINDS[kind].options
    known = {*_members(protocol), *_members(options)}
    if kind == "adapter":
        known |= {name for ability in ABILITIES for name in _members(ability)}
    for name in dir(part):
        if name.startswith("_") or name in known:
            continue
        close = get_close_matches(name, known, n=1, cutoff=_NEAR_PARAMETER if name in parameters else _NEAR)
        if close and not (name in parameters and _is_number_of(name, close[0])):
            yield (
                f"it has a member {name!r}, which nothing reads. Did you mean {close[0]!r}? If not, give it another "
                f"name or a leading underscore. {_page(kind)}"
            )


def _is_number_of(name: str, other: str) -> bool:
    """Say whether two names are one word in singular and plural, which a parameter may be in its own right."""
    return f"{name}s" == other or f"{other}s" == name


def _wrong_values(kind: str, part: Any) -> Iterator[str]:
    hints = get_type_hints(KINDS[kind].options)
    for name, value in _given(KINDS[kind].options, part):
        if name not in hints or declared_methods(KINDS[kind].options, name):
            continue
        try:
            _checker(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            message = detail["msg"].replace("Input should be", "should be")
            comma = f": ({value.__name__},)" if name == "needs" and isinstance(value, type) else ""
            yield f"its member {name} {message}{comma}, not {shown(value)}. {_page(kind)}"


def _impossible_values(kind: str, part: Any) -> Iterator[str]:
    """Say which values are of the right type, and yet of no use."""
    options = options_of(KINDS[kind].options, part)
    for name in ("samples", "loss_batch_size"):
        value = getattr(options, name, None)
        if isinstance(value, int) and not 0 <= value <= LARGEST:
            yield f"its member {name} should be how many there are, or None, not {shown(value)}. {_page(kind)}"
    if getattr(options, "gives", None) == "weights" and getattr(options, "unit", None) == "block":
        yield f"its member unit should be 'layer', of which numbers a weight are, not 'block'. {_page(kind)}"
    if getattr(options, "scope", None) == "model":
        inside = [name for name, value in (("each", "subblock"), ("inside", True)) if getattr(options, name) == value]
        if inside:
            yield (
                f"its {' and '.join(inside)} {'is' if len(inside) == 1 else 'are'} for blocks, and its scope is the "
                f"whole model. {_page(kind)}"
            )
    wants = getattr(options, "wants", None)
    if isinstance(wants, type) and not isinstance(getattr(wants, "does", None), str):
        yield (
            f"its member wants should be an ability of ecoflap.core.contracts.abilities, not {wants.__name__}. "
            f"{_page(kind)}"
        )


def _wrong_statistics(kind: str, part: Any) -> Iterator[str]:
    """Say which of a pruner's or metric's ``needs`` is no type of statistic, or misspells what one may have."""
    needs = getattr(part, "needs", ()) if kind in ("pruner", "metric") else ()
    for need in needs if isinstance(needs, tuple) and all(isinstance(one, type) for one in needs) else ():
        missing = [name for name in _members(Statistic) if not callable(getattr(need, name, None))]
        if missing:
            lacks = ", ".join(missing)
            yield f"its member needs has {need.__name__}, which is no statistic: it has no {lacks}. {_page(kind)}"
        called = {name: getattr(Statistic, name) for name in ("__init__", *_members(Statistic)) if name not in missing}
        for name, taken, given in _misfits(need, called):
            theirs, ours = ", ".join(taken), ", ".join(given)
            yield f"{name} of its statistic {need.__name__} takes ({theirs}), and is called with ({ours})."
        known = {*_members(GradientStatistic), *_members(LossStatistic)}
        for name in dir(need):
            close = [] if name.startswith("_") or name in known else get_close_matches(name, known, 1, _NEAR)
            if close and not hasattr(need, close[0]):
                yield f"its statistic {need.__name__} has {name!r}. Did you mean {close[0]!r}? {_page(kind)}"


@cache
def _checker(hint: Any) -> Any:
    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))


def _called(kind: str) -> str:
    given = list(inspect.signature(vars(KINDS[kind].protocol)["__call__"]).parameters)[1:]
    return f"A {kind} is called with ({', '.join(given)})."


def _page(kind: str) -> str:
    return f"docs/hooks.md says what {with_article(kind)} is."


def with_article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
