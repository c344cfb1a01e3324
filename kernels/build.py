"""Compile the kernels into one shared library: python kernels/build.py FOLDER [-fsanitize=address …]

Each file is compiled with the instructions of its CPU, and no other file is. One whose instructions the compiler does
not know is compiled without them: the library then says of that path that it was not compiled. The compiler is
``$CXX``, or else ``c++``. setup.py builds by this, where there is a compiler; for Windows there are no kernels yet.
"""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
SOURCES = sorted(path for folder in ("src", "onnxruntime") for path in (HERE / folder).glob("*.cpp"))
LIBRARY = "libecoflap_kernels.so"
# The compiler's own library goes into ours, and no name of it out: Pythons that bring an older libstdc++, as conda's,
# load that one first. Apple's linker knows none of these, and some Linuxes keep libstdc++.a in a package of its own.
WHOLE = ("-static-libgcc", "-static-libstdc++", "-Wl,--exclude-libs,ALL")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra", "-pthread")
_512 = (
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mavx512vbmi",
    "-mavx512vbmi2",
    "-mavx512vnni",
    "-mfma",
    "-mpopcnt",
)
_AMX = (*_512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mamx-int8")
X86 = {
    "path_avx2": ("-mavx2", "-mfma", "-mf16c", "-mpopcnt"),
    "path_avx512": _512,
    "path_avx512_bf16": (*_512, "-mavx512bf16"),
    "path_avx512_wide": (*_512, "-mavx512bf16"),
    "gram_avx512_bf16": (*_512, "-mavx512bf16"),
    "path_amx": _AMX,
    "gram_amx": _AMX,
}


class NotBuilt(Exception):
    """Says why there is no library: no compiler, or what it said."""


def build(folder: Path, flags: Sequence[str] = ()) -> Path:
    """Compile all sources, two at a time, and link them.

    :param flags: More of the compiler's own, such as ``-fsanitize=address``.
    :return: The library.
    :raises NotBuilt: Where that cannot be done.
    """
    if os.name == "nt":
        raise NotBuilt("the kernels are written for Linux and macOS: their threads are those of POSIX")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as objects, ThreadPoolExecutor(2) as threads:
        done = list(threads.map(lambda source: _compiled(source, Path(objects), flags), SOURCES))
        return _linked(done, folder / LIBRARY, flags)


def _linked(objects: Sequence[Path], target: Path, flags: Sequence[str]) -> Path:
    """Link with nothing from outside but the system's own libraries, or where that cannot be, as the linker does."""
    command = ("-shared", *flags, *map(str, objects), "-o", str(target), "-pthread")
    try:
        _run(*command, *(() if flags else WHOLE))  # sanitizers have to find the library that they watch
    except NotBuilt:
        _run(*command)
    return target


def _compiled(source: Path, folder: Path, flags: Sequence[str]) -> Path:
    target = folder / f"{source.stem}.o"
    own = X86.get(source.stem, ()) if platform.machine().lower() in ("x86_64", "amd64") else ()
    common = (*FLAGS, *flags, "-c", str(source), "-o", str(target))
    _run(*(own if _knows(own) else ()), *common)
    return target


def _knows(flags: Sequence[str]) -> bool:
    """Say whether the compiler has these instructions."""
    try:
        _run(*flags, "-x", "c++", "-E", os.devnull, "-o", os.devnull)
    except NotBuilt:
        return False
    return True


def _run(*arguments: str) -> None:
    command = [*shlex.split(os.environ.get("CXX", "c++")), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotBuilt(f"there is no compiler: {error}") from error
    if done.returncode:
        raise NotBuilt(f"{shlex.join(command)}\n{done.stderr}")
    if done.stderr:
        print(done.stderr, file=sys.stderr)


if __name__ == "__main__":
    try:
        print(build(Path(sys.argv[1]), sys.argv[2:]))
    except NotBuilt as error:
        sys.exit(str(error))
