"""Holds the errors that a user can mend, and the wording that their messages share."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class EcoflapError(Exception):
    """Tells a user what can be mended. Its text is the whole message: the command line prints it without a traceback.

    :param problems: Everything that is wrong, as far as it was found, each in a sentence or more.
    """

    def __init__(self, *problems: str) -> None:
        self.problems: tuple[str, ...] = tuple(map(_with_escapes, problems))
        super().__init__(self._text())

    def _text(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return "\n".join([f"{len(self.problems)} problems", *(f"  {p}" for p in self.problems)])


def _with_escapes(problem: str) -> str:
    """Write line breaks as escapes: what stands behind one in somebody's name would read as a message of ours."""
    return problem.replace("\r", r"\r").replace("\n", r"\n")


class WayOut(BaseException):
    """Leaves what is running, and is nobody's mistake. It is no Exception, which a model or a part may catch."""


class RecipeError(EcoflapError):
    """Says why a recipe cannot be run as it is written."""


class RegistryError(EcoflapError):
    """Says which plugin cannot be loaded, which part cannot be found, or what is wrong with a registry file."""


class ModelError(EcoflapError):
    """Says why a model is not there or not understood, or where it does not behave as its adapter says."""


class NotFiniteError(ModelError):
    """Says where a model computes NaN or infinite values. Every process of a run raises it, at the same place."""


class DataError(EcoflapError):
    """Says why data cannot be used to calibrate or to evaluate."""


class RunError(EcoflapError):
    """Says why a run folder cannot be written or read, or that it belongs to another run."""


class FormatError(EcoflapError):
    """Says that a file is cut off, was changed, or is of another format."""


class KernelError(EcoflapError):
    """Says why the kernels cannot compute something, or not in the way that is asked for."""


class RankError(EcoflapError):
    """Says which of the processes of one run has ended it, and why."""


class SaidElsewhereError(EcoflapError):
    """Stands for an error that another process of the run has said already."""


LONGEST = 200
"""The most characters of somebody's text that a message repeats."""
NAMED = 3
"""How many of many things a message names one by one, where it has no other number of its own."""


def cut(text: str) -> str:
    """Shorten a text that a message repeats, if it is longer than any that is meant."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def one_line(error: BaseException) -> str:
    """Write what somebody else's error says on one line; empty where it says nothing, or raises what it should say."""
    try:
        return " ".join(str(error).split())
    except Exception:
        return ""


def first_of(names: Sequence[str], most: int = NAMED) -> str:
    """Name the first of several, at most so many, and say how many others there are: ``a, b and 5 more``."""
    return f"{', '.join(names[:most])}{f' and {len(names) - most} more' if len(names) > most else ''}"


def refuse_below_one(name: str, value: int) -> None:
    """Refuse a parameter that is to be at least 1.

    :raises EcoflapError: A recipe's error then names the place where the value is written.
    """
    if value < 1:
        raise EcoflapError(f"{name} is {value}; at least 1 is needed")


def nearest(word: str, choices: Iterable[str]) -> str:
    """Ask `` Did you mean 'x'?``, with a leading space; give an empty text where no choice is near."""
    close = get_close_matches(cut(word), list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown(what: str, word: str, choices: Sequence[str]) -> str:
    """Say in a sentence that a name is not known, with the nearest that is and all that are.

    :param what: What it should name: ``pruner``, ``hook``.
    """
    known = ", ".join(sorted(choices)) or "none"
    return f"no {what} named {cut(word)!r}.{nearest(word, choices)} Known: {known}."
