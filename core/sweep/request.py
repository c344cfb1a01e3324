"""Holds what a sweep is asked to do, by the command line or from Python."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from ecoflap.core.disk.paths import from_here


@dataclass(frozen=True)
class SweepRequest:
    """Says what a sweep is asked to do.

    :param what: A sweep's file; a recipe's file, or the name of one that ships.
    :param set_: Values that keys of the recipe take in turn, such as ``sparsity=0.5,0.6``; they take the place of the
        file's.
    :param seeds: ``3`` for 0, 1 and 2; ``4,7`` or ``[4, 7]`` for these two; None for the file's, or the recipe's own.
    :param folder: The sweep's folder; ``runs/sweeps/NAME`` by default. What is done there is not done again.
    :param fresh: Delete first what these runs have left there.
    :param keep_models: Leave each run's ``model/`` where it is; otherwise it goes when the run is finished.
    :param allow_code: Follow import paths in the sweep and its recipe, which are refused otherwise.
    :param accept_change: Go on with runs although their data, libraries or the code of parts changed meanwhile.
    :param processes: How many runs are done at once, each in a process of its own.
    :param registry: The registry file that these processes read; None for the shipped one alone.
    """

    what: Path | str
    _: KW_ONLY
    set_: Sequence[str] = ()
    seeds: str | int | Sequence[int] | None = None
    folder: Path | str | None = None
    fresh: bool = False
    keep_models: bool = False
    allow_code: bool = False
    accept_change: bool = False
    processes: int = 1
    registry: Path | None = None

    @property
    def target(self) -> Path:
        """Give the sweep's folder as an absolute path."""
        folder = Path("runs") / "sweeps" / Path(self.what).stem if self.folder is None else from_here(self.folder)
        return folder.absolute()
