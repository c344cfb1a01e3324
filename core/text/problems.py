"""Collect everything that is wrong with a document, each with its place, and raise it at once."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from ecoflap.core.errors import EcoflapError, RecipeError, nearest
from ecoflap.core.text.strict_yaml import Document, KeyPath, described, dotted


class RecipeProblems(RecipeError):
    """Says what is wrong with a recipe; several problems stand under a line that counts them and names the file."""

    def __init__(self, source: str, *problems: str) -> None:
        self.source = source
        super().__init__(*problems)

    def _text(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return "\n".join([f"{len(self.problems)} problems in {self.source}", *self.problems])


_NEEDS_OBJECT = "needs_python_object"
"""What pydantic calls it where a type has no other check than isinstance."""
_OBJECT = (  # pydantic's own sentence is about its validators
    "this takes an object of Python's, and none can be written here. Let the part take what can: a number, a text, a "
    "list, a mapping or a Path, of which it makes the object."
)


class Problems:
    """Collects what is wrong with one document, in the order of its lines.

    :param document: Knows where each of its keys and values is written.
    :param found: Problems that were found when it was read; they come first.
    """

    def __init__(self, document: Document, found: Iterable[str] = ()) -> None:
        self.document = document
        self._found: list[tuple[tuple[int, int], str]] = [((0, 0), text) for text in found]

    def __len__(self) -> int:
        return len(self._found)

    def add(self, path: KeyPath, sentence: str, *, key: bool = False) -> None:
        """Add a problem of the value at a path, or of the key that leads to it."""
        place = self.document.where(path, key=key)
        where = f"{place}: {dotted(path)}" if path else str(place)
        entry = ((place.line, place.column), f"{where}: {sentence}")
        if entry not in self._found:  # a part that is checked twice has its problems twice
            self._found.append(entry)

    def add_unknown_keys(
        self,
        path: KeyPath,
        given: Iterable[object],
        known: Iterable[str],
        owner: str = "",
        hints: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Add each key that nothing reads.

        :param owner: The part whose parameters the keys are; empty for keys of the document itself.
        :param hints: By key, why it is none, as far as that is known; else the nearest of those that are.
        """
        choices = sorted(known)
        for key in given:
            if key not in choices:
                what = f"{owner} has no parameter {key!r}" if owner else f"unknown key {key!r}"
                listed = ", ".join(choices) or "none"
                why = hints.get(str(key)) or nearest(str(key), choices)
                self.add((*path, key), f"{what}.{why} Known: {listed}.", key=True)

    def add_invalid(self, path: KeyPath, error: ValidationError) -> None:
        """Add everything that pydantic found wrong with the value at a path."""
        details = [(self._written(path, one["loc"]), one) for one in error.errors(include_url=False)]
        told = {inside for inside, detail in details if detail["type"] != _NEEDS_OBJECT}
        for inside, detail in details:
            if detail["type"] == "missing":
                self.add((*path, *detail["loc"]), "required, and missing.")
            elif detail["type"] != _NEEDS_OBJECT:
                self.add(inside, f"{_sentence(detail['msg'])}, not {described(detail['input'])}.")
            elif inside not in told:  # of a union, what can be written tells more
                self.add(inside, _OBJECT)

    def _written(self, path: KeyPath, steps: KeyPath) -> KeyPath:
        """Give the path that pydantic's steps lead to. Some of them name a branch of a union, which is no key."""
        for step in steps:
            around = _at(self.document.value, path)
            if isinstance(step, int) or (isinstance(around, dict) and step in around):
                path = (*path, step)
        return path

    def raise_if_any(self, error: type[EcoflapError] | None = None) -> None:
        """Raise all problems at once, if there are any.

        :param error: The type that is raised; by default :class:`RecipeProblems`, a recipe's.
        """
        problems = [text for _, text in sorted(self._found, key=lambda entry: entry[0])]
        if problems:
            raise error(*problems) if error else RecipeProblems(self.document.start.source, *problems)


def _at(value: Any, path: KeyPath) -> Any:
    """Give what a document holds at a path; None where it holds nothing."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _sentence(message: str) -> str:
    """Give pydantic's message as part of a sentence whose subject is the key."""
    said = message.replace("Input should be", "should be").replace("a valid array", "a list")  # JSON's word
    return said.removeprefix("Value error, ").rstrip(".")
