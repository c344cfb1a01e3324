"""The library is compiled by a script of its own, and holds under sanitizers what it holds without."""

import ctypes
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1")
COMPILER = os.environ.get("CXX", "c++")
needs_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"there is no compiler here: {COMPILER}")


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("build_kernels", ROOT / "kernels" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_compiler_it_says_so(build, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "nothing"))
    with pytest.raises(build.NotBuilt, match=r"there is no compiler: .*nothing"):
        build.build(tmp_path)
    assert not list(tmp_path.iterdir())


@needs_compiler
def test_what_a_compiler_says_is_passed_on(build, tmp_path, monkeypatch):
    broken = tmp_path / "broken.cpp"
    broken.write_text("int broken( { return 1; }")
    monkeypatch.setattr(build, "SOURCES", [broken])
    with pytest.raises(build.NotBuilt, match=r"broken\.cpp.*\n.*expected"):
        build.build(tmp_path / "out")


@needs_compiler
def test_instructions_that_the_compiler_does_not_know_are_left_out(build, tmp_path, monkeypatch):
    """The path is then in the library, and says that it was not compiled."""
    monkeypatch.setattr(build, "SOURCES", [path for path in build.SOURCES if path.stem == "path_avx2"])
    monkeypatch.setitem(build.X86, "path_avx2", ("-mno-such-instructions",))
    assert build.build(tmp_path).is_file()


def test_for_windows_there_are_none(build, tmp_path, monkeypatch):
    monkeypatch.setattr(build.os, "name", "nt")
    with pytest.raises(build.NotBuilt, match="written for Linux and macOS"):
        build.build(tmp_path)


SEEN = 'extern "C" __attribute__((visibility("default"))) int '
"""Begins a function that a library shows; all others are hidden."""


@needs_compiler
def test_a_linker_that_cannot_put_all_into_the_library_makes_one_without(build, tmp_path, monkeypatch):
    """Apple's knows no -static-libgcc, and Fedora keeps libstdc++.a in a package of its own."""
    source = tmp_path / "trivial.cpp"
    source.write_text(SEEN + "two() { return 2; }")
    monkeypatch.setattr(build, "SOURCES", [source])
    monkeypatch.setattr(build, "WHOLE", ("-no-such-option-of-a-linker",))
    assert ctypes.CDLL(str(build.build(tmp_path / "out"))).two() == 2


THROWING = f"""
#include <stdexcept>
#include <string>
{SEEN} length(int n) {{
  try {{ throw std::runtime_error(std::to_string(n)); }}
  catch (const std::exception &error) {{ return int(std::string(error.what()).size()); }}
}}
"""


def has_static_library():
    """A compiler that has none gives its name back, and no path."""
    told = subprocess.run([COMPILER, "-print-file-name=libstdc++.a"], capture_output=True, text=True, check=False)
    return Path(told.stdout.strip()).is_absolute()


@needs_compiler
@pytest.mark.skipif(shutil.which("objdump") is None, reason="there is no objdump here to read a library with")
def test_a_library_needs_nothing_but_the_systems_own(build, tmp_path, monkeypatch):
    """No libstdc++: some Pythons bring an older one, which is loaded first. And no name of it goes out."""
    if not has_static_library():
        pytest.skip("the compiler has no libstdc++.a here")
    source = tmp_path / "strings.cpp"
    source.write_text(THROWING)
    monkeypatch.setattr(build, "SOURCES", [source])
    library = build.build(tmp_path / "out")
    assert ctypes.CDLL(str(library)).length(1234) == 4
    read = subprocess.run(["objdump", "-p", "-T", str(library)], capture_output=True, text=True, check=True).stdout
    needed = {line.split()[1].partition(".so")[0] for line in read.splitlines() if line.split()[:1] == ["NEEDED"]}
    assert "libc" in needed
    assert needed <= {"libc", "libm", "libpthread", "libdl", "ld-linux-x86-64", "ld-linux-aarch64"}
    given = [line.split()[-1] for line in read.splitlines() if " .text" in line]
    assert "length" in given
    assert not [name for name in given if name.startswith("__cxa")]


def run(library, folder, flags=SANITIZERS, source="sanitized"):
    """Compile a program that tests a library without Python, and give what it says."""
    include = [f"-I{ROOT / 'kernels' / name}" for name in ("include", "src")]
    command = [COMPILER, "-std=c++17", *flags, *include, str(HERE / f"{source}.cpp"), str(library)]
    program = folder / source
    subprocess.run([*command, f"-Wl,-rpath,{folder}", "-pthread", "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("0 failures\n")
    return done.stdout.splitlines()


@needs_compiler
@pytest.mark.slow
def test_nothing_is_read_or_written_beyond_its_memory(build, tmp_path):
    """With exact memory, damaged matrices and threads, on every path there is."""
    assert "portable: tested" in run(build.build(tmp_path, SANITIZERS), tmp_path)


@needs_compiler
@pytest.mark.slow
def test_tiles_are_used_rightly_where_there_are_none(build, tmp_path, monkeypatch):
    """The path for AMX, with tiles in plain C++ and exact memory; what else it does takes AVX-512 with BF16."""
    by_hand = sorted((HERE / "by_hand").glob("*.cpp"))
    others = [path for path in build.SOURCES if path.stem not in {one.stem for one in by_hand}]
    monkeypatch.setattr(build, "SOURCES", [*others, *by_hand])
    said = run(build.build(tmp_path, SANITIZERS), tmp_path)
    if "avx512_bf16: tested" not in said:
        pytest.skip("this CPU has no AVX-512 with BF16")
    assert "amx: tested" in said


@needs_compiler
@pytest.mark.slow
def test_the_operator_for_onnxruntime_keeps_to_its_memory(build, tmp_path, monkeypatch):
    """With a runtime that is none and tensors that end where their memory ends, by the fastest path and by portable."""
    library = build.build(tmp_path, SANITIZERS)
    for path in ("", "portable"):
        monkeypatch.setenv("ECOFLAP_KERNEL", path)
        assert run(library, tmp_path, source="operator") == ["0 failures"]
