"""Open the library of kernels that ``kernels/build.py`` compiles, by ctypes: it is the same for every Python and torch.

It stands beside this file where a compiler was found when ecoflap was installed.
"""

import ctypes
from ctypes import c_char_p, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from ecoflap.core.errors import KernelError
from ecoflap.core.kernel.library_file import LIBRARY_FILE, opened_at

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The types of weights, as the library numbers them."""
Values = Literal["exact", "int8", "int8a8"]
"""How kept weights are held: bit by bit as they are; in int8, and multiplied with x in int16; or with x in int8."""
VALUES: dict[Values, int] = {"exact": 0, "int8": 3, "int8a8": 6}
"""What the library adds to the number of a type for each."""

_MATRIX = (c_void_p, c_int64)
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ecoflap_message": (c_char_p, ()),
    "ecoflap_path_count": (c_int, ()),
    "ecoflap_path_name": (c_char_p, (c_int,)),
    "ecoflap_path_needs": (c_char_p, (c_int,)),
    "ecoflap_path_state": (c_int, (c_int,)),
    "ecoflap_path_batch": (c_int64, (c_int, c_int)),
    "ecoflap_packed_bytes": (c_int64, (c_int, c_int64, c_int64, c_int64)),
    "ecoflap_pack_rows": (c_int, (*_MATRIX, c_int, c_int64, c_int64, c_void_p, c_void_p, c_int64)),
    "ecoflap_pack_dense": (c_int, (*_MATRIX, c_int, c_int64, c_int64, c_void_p, c_int64)),
    "ecoflap_unpack": (
        c_int,
        (c_int, *_MATRIX, c_int, c_int64, c_int64, c_int64, c_int64, c_void_p, c_int),
    ),
    "ecoflap_check": (c_int, _MATRIX),
    "ecoflap_packed_linear": (
        c_int,
        (c_int, *_MATRIX, c_int, c_int64, c_int64, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int),
    ),
    "ecoflap_path_adds_grams": (c_int, (c_int,)),
    "ecoflap_add_gram": (c_int, (c_int, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int)),
    "ecoflap_run_on": (None, (c_void_p,)),
}


@dataclass(frozen=True)
class Way:
    """Describes one of the library's ways of computing.

    :param lacks: Why it cannot be taken here; empty where it can.
    """

    number: int
    name: str
    needs: str
    lacks: str


class Library:
    """Holds the opened library."""

    def __init__(self, opened: ctypes.CDLL) -> None:
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(opened, name)
            function.restype, function.argtypes = result, arguments
        self.functions = opened

    def call(self, name: str, *arguments: object) -> None:
        """Call a function that gives a code.

        :raises KernelError: Where it refuses, with what it says.
        """
        if getattr(self.functions, f"ecoflap_{name}")(*arguments):
            raise KernelError(self.message)

    @property
    def message(self) -> str:
        """Give what was wrong in this thread's last call that failed."""
        return str(self.functions.ecoflap_message().decode())

    def paths(self) -> list[Way]:
        """List all paths, the fastest first."""
        return [self._path(number) for number in range(self.functions.ecoflap_path_count())]

    def _path(self, number: int) -> Way:
        name, needs = (getattr(self.functions, f"ecoflap_path_{what}")(number).decode() for what in ("name", "needs"))
        state = self.functions.ecoflap_path_state(number)
        lacks = ("", f"this CPU lacks it: {needs}", "the library was compiled without it")[state]
        return Way(number, name, needs, lacks)


@cache
def opened() -> Library | str:
    """Open the library; give the reason in words where there is none."""
    found = opened_at(LIBRARY_FILE)
    if isinstance(found, str):
        return found
    library, run_on = Library(found), openmp()
    library.functions.ecoflap_run_on(None if run_on is None else ctypes.cast(run_on, c_void_p))
    return library


@cache
def openmp() -> Any:
    """Find the function by which torch's own OpenMP runs something on its threads; None where torch has none.

    Threads of another pool would have to fight with torch's, which spin for a while when they have nothing to do.
    """
    for file in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        try:
            return ctypes.CDLL(str(file)).GOMP_parallel
        except (OSError, AttributeError):
            continue
    return None
