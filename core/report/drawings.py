"""Make the drawings of a page, or say why it has none: they need matplotlib, which may be missing or broken."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")

NO_MATPLOTLIB = "Drawings need matplotlib: pip install 'ecoflap[report]'."


@dataclass(frozen=True)
class Drawing:
    """Holds an SVG element, and what is written below it."""

    svg: str
    caption: str = ""


def obstacle() -> str | None:
    """Return why nothing can be drawn here, as a sentence; None where matplotlib can be imported."""
    try:
        import matplotlib
        import matplotlib.figure  # noqa: F401 (whether it can be imported is the question)
    except Exception as error:  # a broken installation raises anything
        if isinstance(error, ModuleNotFoundError) and error.name == "matplotlib":
            return NO_MATPLOTLIB
        return f"There are no drawings, because matplotlib cannot be imported: {type(error).__name__}: {error}"
    return None


def drawn_or_why_not(draw: Callable[[], Iterable[Item]]) -> tuple[list[Item], str | None]:
    """Return what is drawn and None; where that fails, an empty list and why, as a sentence for the page.

    Numbers are worth more than drawings: whatever a drawing raises, the page is written.
    """
    reason = obstacle()
    if reason is not None:
        return [], reason
    try:
        return list(draw()), None
    except Exception as error:
        return [], f"There are no drawings, because drawing failed: {type(error).__name__}: {error}"
