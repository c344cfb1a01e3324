"""What tells torch that there is a GPU, compiled and loaded before torch is imported: it asks once."""

import ctypes
import subprocess
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".cpp")


def make_library(folder: Path) -> Path:
    """Compile it.

    :raises OSError: Where there is no compiler.
    :raises subprocess.CalledProcessError: With what it said.
    """
    (torch,) = map(Path, find_spec("torch").submodule_search_locations)
    library = folder / "libone_gpu.so"
    asked = ["c++", "-shared", "-fPIC", "-std=c++20", "-O0", str(SOURCE), "-o", str(library), f"-I{torch / 'include'}"]
    linked = [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch / 'lib'}"]
    subprocess.run([*asked, *linked], check=True, capture_output=True, text=True)
    return library


def tell_torch(library: Path) -> None:
    ctypes.CDLL(str(library))
