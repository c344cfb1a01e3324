"""Say which kernels this machine has, which one runs, and why."""

import torch

from ecoflap.core.cli.tables import Section
from ecoflap.core.kernel.library import Library, opened, openmp
from ecoflap.core.kernel.place import FILE
from ecoflap.core.kernel.route import route
from ecoflap.core.model.arithmetic import slow_types
from ecoflap.core.text.columns import left


def doctor_tables() -> list[Section]:
    """Give a table of what runs, and one of all paths of the library where there is one.

    :raises KernelError: Where ``ECOFLAP_KERNEL`` names a path that cannot be taken here, with those that can.
    """
    taken, library = route(), opened()
    slow = " and ".join(slow_types())
    lacking = [["torch", f"multiplies {slow} several times as slowly as float32: this CPU lacks it"]] if slow else []
    rows = [
        ["runs", taken.name],
        ["because", taken.why],
        ["zeros save", taken.saved],
        ["library", str(FILE) if isinstance(library, Library) else "none"],
        *lacking,
        ["threads", f"{torch.get_num_threads()}, {_whose()}"],
    ]
    section = Section("Products with packed weights", left("what", "here"), rows)
    return [section, *([_paths(library)] if isinstance(library, Library) else [])]


def _paths(library: Library) -> Section:
    rows = [[path.name, path.needs, path.lacks.partition(":")[0] or "usable"] for path in library.paths()]
    return Section("Paths, the fastest first", left("path", "needs", "here"), rows)


def _whose() -> str:
    return "its own: torch has no OpenMP here" if openmp() is None else "torch's own"
