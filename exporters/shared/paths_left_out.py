"""Take the paths of a machine out of what is published, such as a recipe in a model card."""

from collections.abc import Mapping
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any


def without_places(value: Any) -> Any:
    """Give a recipe, or a value of one, with every path of the machine reduced to its last name."""
    if isinstance(value, Mapping):
        return {key: without_places(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(inner) for inner in value]
    if isinstance(value, PurePath):
        return value.name
    return _reduced(value) if isinstance(value, str) else value


def _reduced(text: str) -> str:
    plain = text.removeprefix("file://")
    if PurePosixPath(plain).is_absolute() or plain.startswith("~"):
        return PurePosixPath(plain).name
    return PureWindowsPath(plain).name if PureWindowsPath(plain).is_absolute() else text
