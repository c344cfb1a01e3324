"""Look up what a model has under a dotted path: no base class declares which submodules and attributes there are."""

from typing import Any, TypeVar, overload

from torch import nn

from ecoflap.core.errors import ModelError, nearest

Kind = TypeVar("Kind")


@overload
def find(owner: object, path: str) -> Any: ...
@overload
def find(owner: object, path: str, kind: type[Kind]) -> Kind | None: ...
def find(owner: object, path: str, kind: type[Any] = object) -> Any:
    """Look for a submodule or attribute that a model may lack.

    :param path: Names with dots between them: ``vision_model.encoder.layers``.
    :param kind: What it has to be an instance of.
    :return: None where it is not there, is None itself, or is of another kind.
    """
    found: Any = owner
    for name in path.split("."):
        found = getattr(found, name, None)
    return found if isinstance(found, kind) else None


@overload
def member(owner: object, path: str) -> Any: ...
@overload
def member(owner: object, path: str, kind: type[Kind]) -> Kind: ...
def member(owner: object, path: str, kind: type[Any] = object) -> Any:
    """Give the submodule or attribute that a model of this family has.

    :param path: Names with dots between them: ``vision_model.encoder.layers``.
    :param kind: What it has to be an instance of.
    :raises ModelError: Where it is not there or of another kind; the message names what is there in its place.
    """
    found: Any = owner
    for name in path.split("."):
        inner = getattr(found, name, None)
        if inner is None:
            raise ModelError(f"this {type(owner).__name__} has no {path}: {_what_is_there(found, name)}")
        found = inner
    if not isinstance(found, kind):
        raise ModelError(
            f"{path} of this {type(owner).__name__} is a {type(found).__name__}, and its adapter expects a "
            f"{kind.__name__} there."
        )
    return found


def _what_is_there(owner: object, name: str) -> str:
    near = nearest(name, [one for one in dir(owner) if not one.startswith("_")])
    inside = [child for child, _ in owner.named_children()] if isinstance(owner, nn.Module) else []
    there = near or (f" It has {', '.join(inside)}." if inside else "")
    return f"a {type(owner).__name__} has no {name!r}.{there}"
