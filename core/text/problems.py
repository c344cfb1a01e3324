"""Collects everything that is wrong with a document, each with its place, before anything is said about it."""

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from ecoflap.core.errors import EcoflapError, RecipeError, nearest
from ecoflap.core.text.strict_yaml import Document, KeyPath, dotted, named


class SeveralProblems(RecipeError):
    """A recipe with its problems, under a first line that counts them and names the file."""

    def __init__(self, source: str, *problems: str) -> None:
        self.source = source
        super().__init__(*problems)

    def _text(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return "\n".join([f"{len(self.problems)} problems in {self.source}", *self.problems])


class Problems:
    """What is wrong with one document, in the order of its lines.

    :param document: Knows the places.
    :param found: Problems its reader already has.
    """

    def __init__(self, document: Document, found: Iterable[str] = ()) -> None:
        self.document = document
        self._found: list[tuple[tuple[int, int], str]] = [((0, 0), text) for text in found]

    def __len__(self) -> int:
        return len(self._found)

    def add(self, path: KeyPath, sentence: str, *, key: bool = False) -> None:
        """Note a problem of the value at a path, or of the key that leads to it."""
        place = self.document.where(path, key=key)
        where = f"{place}: {dotted(path)}" if path else str(place)
        entry = ((place.line, place.column), f"{where}: {sentence}")
        if entry not in self._found:  # an alias or a part checked twice says it once
            self._found.append(entry)

    def add_unknown_keys(self, path: KeyPath, given: Iterable[object], known: Iterable[str], owner: str = "") -> None:
        """Note each key that nothing reads."""
        choices = sorted(known)
        for key in given:
            if key not in choices:
                what = f"{owner} has no parameter {key!r}" if owner else f"unknown key {key!r}"
                listed = ", ".join(choices) or "none"
                self.add((*path, key), f"{what}.{nearest(str(key), choices)} Known: {listed}.", key=True)

    def add_invalid(self, path: KeyPath, error: ValidationError) -> None:
        """Note each thing pydantic found in the value at a path."""
        for detail in error.errors(include_url=False):
            if detail["type"] == "missing":
                self.add((*path, *detail["loc"]), "required, and missing.")
            else:
                inside = self._written(path, detail["loc"])
                self.add(inside, f"{_sentence(detail['msg'])}, not {named(detail['input'])}.")

    def _written(self, path: KeyPath, steps: KeyPath) -> KeyPath:
        """Where pydantic's steps lead. It also names the branches of a union, which are no keys."""
        for step in steps:
            around = _at(self.document.value, path)
            if isinstance(step, int) or (isinstance(around, dict) and step in around):
                path = (*path, step)
        return path

    def raise_if_any(self, error: type[EcoflapError] | None = None) -> None:
        """Raise all of them at once, by default as a recipe's."""
        problems = [text for _, text in sorted(self._found, key=lambda entry: entry[0])]
        if problems:
            raise error(*problems) if error else SeveralProblems(self.document.start.source, *problems)


def _at(value: Any, path: KeyPath) -> Any:
    """What a document holds at a path; None where it holds nothing."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _sentence(message: str) -> str:
    """pydantic's message in this toolkit's voice."""
    return message.replace("Input should be", "should be").removeprefix("Value error, ").rstrip(".")
