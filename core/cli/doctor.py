"""Say which kernels this machine has, which one runs, and why."""

from textwrap import wrap

import torch

from ecoflap.core.cli.tables import Section
from ecoflap.core.kernel.library import Library, opened, openmp
from ecoflap.core.kernel.library_file import LIBRARY_FILE
from ecoflap.core.kernel.route import route
from ecoflap.core.machine.arithmetic import slow_types
from ecoflap.core.text.columns import left

_WIDE = 64
"""Columns of a sentence: with the column before it a terminal's usual 80."""


def doctor_tables() -> list[Section]:
    """Give a table of what runs, and one of all paths of the library where there is one.

    :raises KernelError: Where ``ECOFLAP_KERNEL`` names a path that cannot be taken here, with those that can.
    """
    taken, library = route(), opened()
    slow = " and ".join(slow_types())
    lacking = (
        f"multiplies {slow} several times as slowly as float32: this CPU lacks it, and runs compute in float32"
        if slow
        else ""
    )
    rows = [
        ["runs", taken.name],
        *_sentence("because", taken.why),
        ["zeros save", taken.saved],
        ["library", str(LIBRARY_FILE) if isinstance(library, Library) else "none"],
        ["Gram sums", "the library's, in bfloat16" if taken.adds_grams else "torch's"],
        *_sentence("torch", lacking),
        ["threads", f"{torch.get_num_threads()}, {_whose()}"],
    ]
    section = Section("Products with packed weights", left("what", "here"), rows)
    return [section, *([_paths(library)] if isinstance(library, Library) else [])]


def _sentence(what: str, here: str) -> list[list[str]]:
    """Make as many rows as a sentence takes; none for an empty one. Where it is no terminal, nothing else breaks it."""
    lines = wrap(here, _WIDE, break_long_words=False, break_on_hyphens=False)
    return [["" if number else what, line] for number, line in enumerate(lines)]


def _paths(library: Library) -> Section:
    rows = [[path.name, path.needs, path.lacks.partition(":")[0] or "usable"] for path in library.paths()]
    return Section("Paths, the fastest first", left("path", "needs", "here"), rows)


def _whose() -> str:
    return "its own: torch has no OpenMP here" if openmp() is None else "torch's own"
