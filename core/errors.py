"""One exception base, and the wording every message shares: where, what, nearest match, choices, way out."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class EcoflapError(Exception):
    """Something a user can mend. Its text is the whole message: the command line prints it without a traceback.

    :param problems: One sentence or more for each thing that is wrong; all that were found, not the first.
    """

    def __init__(self, *problems: str) -> None:
        self.problems: tuple[str, ...] = problems
        super().__init__(self._text())

    def _text(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return "\n".join([f"{len(self.problems)} problems", *(f"  {p}" for p in self.problems)])


class RecipeError(EcoflapError):
    """A recipe that cannot be run as written."""


class RegistryError(EcoflapError):
    """A plugin that cannot be loaded or found."""


class ModelError(EcoflapError):
    """A model that is not there, not understood, or that does not behave as its adapter says."""


class DataError(EcoflapError):
    """Calibration or evaluation data that cannot be used."""


class RunError(EcoflapError):
    """A run folder that cannot be written, or that belongs to another run."""


class FormatError(EcoflapError):
    """A file that is truncated, tampered with, or of another format."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` with a leading space, or nothing where no choice is near."""
    close = get_close_matches(word, list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown(what: str, word: str, choices: Sequence[str]) -> str:
    """The sentence for a name nobody knows: what it is, the nearest match, all choices."""
    known = ", ".join(sorted(choices)) or "none"
    return f"no {what} named {word!r}.{nearest(word, choices)} Known: {known}."
