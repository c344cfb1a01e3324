"""Names the part whose code raised, so that a plugin's mistake reads as one and not as a traceback of ours."""

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ecoflap.core.errors import EcoflapError, one_line

Item = TypeVar("Item")


class PartError(EcoflapError):
    """Code of a part raised something that is no error of a user's."""


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Run a part's code; whatever it raises that is no :class:`EcoflapError` becomes a :class:`PartError`.

    :param what: The part, and the layer or stage it is at: ``the pruner my:Pruner at model.layers.0.mlp.up_proj``.
    """
    try:
        yield
    except EcoflapError:
        raise
    except (Exception, SystemExit) as error:  # a part may come from anywhere, raise anything, and end no run of others
        raise PartError(f"{what} raised {sentence_of(error)}{_place_of(error)}") from error


def blaming_each(what: str, items: Iterable[Item]) -> Iterator[Item]:
    """Yield what a part yields, under :func:`blaming`."""
    with blaming(what):
        iterator = iter(items)
    while True:
        with blaming(what):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def sentence_of(error: BaseException) -> str:
    """Write an error of somebody else's code as one sentence, such as ``KeyError: 'weight'.``

    One that is made for users says it itself.
    """
    text = one_line(error)
    if not isinstance(error, EcoflapError):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _place_of(error: BaseException) -> str:
    """Give the innermost line of code that raised, for the author of the part."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" It happened in {Path(frames[-1].filename).name}:{frames[-1].lineno}, {frames[-1].name}." if frames else ""
