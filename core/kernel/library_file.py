"""Say where the compiled library of kernels lies, and open it if it can be here; nothing here imports torch."""

import ctypes
import os
import platform
from pathlib import Path
from struct import unpack_from

LIBRARY_FILE = Path(__file__).with_name("libecoflap_kernels.so")
"""The file that the library is in where ecoflap was built with a compiler."""

ABI = 6
"""The version of the library that goes with these sources, as ``ECOFLAP_ABI`` in ``ecoflap_kernels.h``."""

_ELF = b"\x7fELF\x02\x01"
"""How a library for Linux begins, of 64 bits with the lowest byte first; what begins otherwise is not looked at."""
_HEADER = 64
_CPUS = {62: "x86_64", 183: "aarch64"}
"""By the number that the header gives them, as ``platform.machine`` calls them."""


def why_library_absent() -> str:
    """Say why there is no library; empty where there is one."""
    return _absent(LIBRARY_FILE)


def _absent(file: Path) -> str:
    if file.is_file():
        return ""
    if os.name == "nt":
        return "there are no kernels for Windows"
    return f"{file} is not there: ecoflap was built without a compiler. Install one, and ecoflap again from its sources"


def unfit(file: Path) -> str:
    """Say why a library that is there cannot be opened here, as far as its header tells; empty where nothing speaks so.

    Of one for another CPU the system says that there is no such file, and one that was cut off ends the process.
    """
    try:
        with file.open("rb") as library:
            header = library.read(_HEADER)
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}"
    if not header.startswith(_ELF):
        return ""
    if len(header) < _HEADER or file.stat().st_size < _end(header):
        return f"{file} is cut off. Install ecoflap again"
    (number,) = unpack_from("<H", header, 18)
    made_for, here = _CPUS.get(number, f"a CPU of number {number}"), platform.machine()
    if here in _CPUS.values() and made_for != here:
        return f"{file} was compiled for {made_for}, and this is {here}. Install ecoflap again"
    return ""


def opened_at(file: Path) -> ctypes.CDLL | str:
    """Open a library of the version that goes with these sources; give the reason in words where there is none."""
    if reason := _absent(file) or unfit(file):
        return reason
    try:
        library = ctypes.CDLL(str(file))
        version = library.ecoflap_abi()
    except (OSError, AttributeError) as error:
        return f"{file} cannot be used here: {error}. Install ecoflap again"
    return library if version == ABI else f"{file} is of version {version}, and {ABI} is needed. Install ecoflap again"


def _end(header: bytes) -> int:
    """Give the end of the table of sections, which linkers put last."""
    (start,), (size, count) = unpack_from("<Q", header, 40), unpack_from("<2H", header, 58)
    return int(start + size * count)
