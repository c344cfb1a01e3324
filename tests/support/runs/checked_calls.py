"""Types of all that is called, as jaxtyping's hook has them checked, in less time than its own check takes."""

from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from functools import update_wrapper, wraps
from inspect import isclass, isgeneratorfunction
from types import CellType, CodeType, FunctionType
from typing import Any, NamedTuple, get_args, get_type_hints

import jaxtyping

JAXTYPED = jaxtyping.jaxtyped
AXES = JAXTYPED("context")
"""In which the axes that are named in a function's annotations have one size each."""
Typechecker = Callable[..., Any]


def checked(given: Any, *, typechecker: Typechecker) -> Any:
    """Check types as jaxtyping's hook has it, and the sizes of axes against one another only where axes are named.

    The hook wraps each function of the package so that a call first binds its arguments twice, and checks them twice,
    which takes longer than most of the functions do. Without a named axis there is nothing that a context of its own
    adds to the check of the types, and with one nothing that binding adds to the context. What yields is checked as the
    hook has it: its arguments would be looked at when it begins, in the context of whoever asks it to.
    """
    if isclass(given):
        if is_dataclass(given) and "__init__" in vars(given):
            given.__init__ = checked(given.__init__, typechecker=typechecker)
        return given
    known = KNOWN.get(given.__code__)
    if known is None or known.annotations != given.__annotations__:
        return _first(given, typechecker)
    return _in_context(known.around(given)) if known.shaped else known.around(given)


class Check(NamedTuple):
    """Holds the check of a function that is defined anew in each call of another, to be put around the next.

    :param made: What a typechecker made of a function that has nothing but the signature.
    :param bare: That function, which what was made calls once all fits. Both are one where anything fits.
    :param shaped: Whether an annotation holds the shape of a tensor.
    """

    made: FunctionType
    bare: FunctionType
    annotations: dict[str, Any]
    shaped: bool

    def around(self, given: FunctionType) -> Any:
        if self.made is self.bare:
            return given
        made = FunctionType(self.made.__code__, self.made.__globals__, given.__name__, self.made.__defaults__)
        made.__kwdefaults__ = {name: given if value is self.bare else value for name, value in _named(self.made)}
        return update_wrapper(made, given)


KNOWN: dict[CodeType, Check] = {}
"""Checks of functions within functions: a typechecker would write each anew, and have it compiled, at each call."""


def _first(given: FunctionType, typechecker: Typechecker) -> Any:
    try:
        shaped = any(map(has_shapes, get_type_hints(given).values()))
    except NameError:  # of what is imported for type checkers alone, which jaxtyping passes over
        return JAXTYPED(given, typechecker=typechecker)
    if shaped and isgeneratorfunction(given):
        return JAXTYPED(given, typechecker=typechecker)
    bare = _bare(given)
    if bare is not None:
        made = typechecker(bare)
        if made is bare or (made.__closure__ is None and any(value is bare for _, value in _named(made))):
            KNOWN[given.__code__] = known = Check(made, bare, bare.__annotations__, shaped)
            return _in_context(known.around(given)) if shaped else known.around(given)
    return _in_context(typechecker(given)) if shaped else typechecker(given)


def _bare(given: FunctionType) -> FunctionType | None:
    """Give a function within a function without what it has seen: a model in it would stay; None of any other."""
    defaults = [*(given.__defaults__ or ()), *(given.__kwdefaults__ or {}).values()]
    seen = [*defaults, *(hint for hint in given.__annotations__.values() if isinstance(hint, str))]
    if "<locals>" not in given.__qualname__ or any(value is not None for value in seen):
        return None
    cells = tuple(CellType() for _ in given.__closure__ or ())
    bare = FunctionType(given.__code__, given.__globals__, given.__name__, given.__defaults__, cells)
    bare.__kwdefaults__, bare.__qualname__ = given.__kwdefaults__, given.__qualname__
    bare.__annotations__ = dict(given.__annotations__)
    return bare


def _named(made: FunctionType) -> Iterable[tuple[str, Any]]:
    return (made.__kwdefaults__ or {}).items()


def _in_context(typed: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(typed)
    def call(*arguments: Any, **named: Any) -> Any:
        with AXES:
            return typed(*arguments, **named)

    return call


def has_shapes(hint: Any) -> bool:
    """Say whether an annotation holds the shape of a tensor, at any depth."""
    if isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(has_shapes, hint if isinstance(hint, list) else get_args(hint)))
