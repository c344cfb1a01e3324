"""Names the part whose code raised, so that a plugin's mistake reads as one and not as a traceback of ours."""

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TypeVar

from ecoflap.core.errors import EcoflapError, WayOut, one_line

Item = TypeVar("Item")
_CORE = Path(__file__).resolve().parents[1]
_PYTHON = Path(traceback.__file__).resolve().parent
_DECORATORS = ("torch", "jaxtyping", "beartype")
"""Libraries whose decorators, such as ``torch.no_grad()``, stand around a part's own function."""


class PartError(EcoflapError):
    """Code of a part raised something that is no error of a user's."""


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Run a part's code; whatever it raises that is no :class:`EcoflapError` becomes a :class:`PartError`.

    What ends all pass as they are: a :class:`WayOut`, Ctrl-C, and what closes a generator.

    :param what: The part, and the layer or stage it is at: ``the pruner my:Pruner at model.layers.0.mlp.up_proj``.
    """
    try:
        yield
    except (EcoflapError, WayOut, KeyboardInterrupt, GeneratorExit):  # the last is of one that nobody asks on
        raise
    except BaseException as error:  # a part may come from anywhere, raise anything, and end no run of others
        raise PartError(f"{what} raised {sentence_of(error)}{place_of(error)}") from error


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Put a part's name before what its own code refuses for a user, where that does not say it."""
    try:
        yield
    except EcoflapError as error:
        said = [problem if what in problem else f"{what}: {problem}" for problem in error.problems]
        if said == list(error.problems):
            raise
        raise PartError(*said) from error


def blaming_each(
    what: str, items: Iterable[Item], behind: Callable[[int, Item], str] = lambda number, item: ""
) -> Iterator[Item]:
    """Yield what a part yields, under :func:`blaming`.

    :param behind: Says where the part is once it has given so many items, of which it is told the last: ``", behind its
        score of lm_head,"``. It is called when the next one is asked for, so that a caller has looked at the last.
    """
    with blaming(what):
        iterator = iter(items)
    where = what
    for number in count(1):
        with blaming(where):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item
        where = f"{what}{behind(number, item)}"


def sentence_of(error: BaseException) -> str:
    """Write an error of somebody else's code as one sentence, such as ``KeyError: 'weight'.``

    One that is made for users says it itself.
    """
    text = one_line(error)
    if isinstance(error, MemoryError):
        text = text or "there was not memory enough"
    if not isinstance(error, EcoflapError):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return text if text.endswith((".", "?", "!")) else f"{text}."


def sentence_and_place_of(error: BaseException) -> str:
    """Write an error of code that is imported as one sentence, and behind it where it happened.

    One that is made for users says by itself where that is.
    """
    return f"{sentence_of(error)}{'' if isinstance(error, EcoflapError) else place_of(error)}"


def place_of(error: BaseException) -> str:
    """Give the innermost line of the part's own file that what raised was called from, or else the line that raised.

    A part's file is that of the first code that is not the engine's: what raised may be a library or the engine itself.
    Behind the frame of :func:`blaming` is that which asked the part, and which may be another part's.
    """
    frames = traceback.extract_tb(error.__traceback__)
    theirs = _of_a_part(frames[2:])
    if not theirs and error.__cause__ is not None:  # Python itself raises where a generator let a StopIteration out
        theirs = _of_a_part(traceback.extract_tb(error.__cause__.__traceback__))
    if not theirs:
        theirs = [frame for frame in frames[-1:] if not _is_nobodys(frame.filename)]
    return "".join(f" It happened in {Path(at.filename).name}:{at.lineno}, {at.name}." for at in theirs[-1:])


def _is_nobodys(file: str) -> bool:
    """Say whether code is the engine's, or what Python imports by, of which a line says nothing."""
    return file.startswith("<frozen ") or Path(file).resolve().is_relative_to(_CORE)


def _of_a_part(frames: Sequence[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """Give those of the first file that is a part's; none where there is no such."""
    theirs = next((frame.filename for frame in frames if _may_be_a_parts(frame.filename)), None)
    return [frame for frame in frames if frame.filename == theirs]


def _may_be_a_parts(file: str) -> bool:
    """Say whether code lies neither in ``core`` nor in Python's own library, nor stands around a part's function."""
    path = Path(file).resolve()
    _, _, installed = path.as_posix().partition("/site-packages/")
    is_pythons = path.is_relative_to(_PYTHON) and not installed
    is_around = file.startswith("<") or installed.partition("/")[0] in _DECORATORS
    return not (path.is_relative_to(_CORE) or is_pythons or is_around)
