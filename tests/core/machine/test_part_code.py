"""Code that comes with neither ecoflap nor Python is known by what is in its files."""

import linecache
import os
import subprocess
import sys
from hashlib import sha256
from importlib import import_module, reload
from zipfile import ZipFile

import pytest

from ecoflap.core.machine import part_code
from ecoflap.core.machine.part_code import PartCode, code_of_parts
from ecoflap.plugins.pruners.wanda import Wanda


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a module, imports it, and gives its class; what is imported is forgotten at the end."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def write(name, text="class Part: pass\n"):
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        made.append(name)
        return getattr(import_module(name), "Part", None)

    yield write
    for name in made:
        for one in [name, name.partition(".")[0]]:
            sys.modules.pop(one, None)


@pytest.fixture
def forgotten(monkeypatch):
    """Has another process look: what was read before is forgotten."""

    def forgotten(used):
        monkeypatch.setattr(part_code, "_read", {})
        return used

    return forgotten


def test_a_module_is_its_file(written, tmp_path):
    digest = sha256(b"class Part: pass\n").hexdigest()
    assert code_of_parts([written("part_of_mine")]) == {
        "part_of_mine": PartCode(str(tmp_path / "part_of_mine.py"), digest)
    }


def test_a_package_is_all_of_its_modules(written, tmp_path, forgotten):
    """What two parts share may lie in a module that neither is in. What editors and environments put there is none."""
    written("parts_of_mine.__init__", "")
    part, _ = written("parts_of_mine.part"), written("parts_of_mine.shared", "FACTOR = 2\n")
    folder, before = tmp_path / "parts_of_mine", code_of_parts([part])
    assert before["parts_of_mine"].file == str(folder)
    for name in (".ipynb_checkpoints/part.py", "__pycache__/part.py", "env/lib/part.py", "data.txt", "part.py~"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("no code of theirs")
    (folder / "env" / "pyvenv.cfg").write_text("")
    (folder / ".#part.py").symlink_to(tmp_path / "nowhere")
    (folder / "folder.py").mkdir()
    assert code_of_parts(forgotten([part])) == before
    (folder / "shared.py").write_text("FACTOR = 3\n")
    assert code_of_parts(forgotten([part])).keys() == before.keys()
    assert code_of_parts(forgotten([part])) != before


def test_what_is_imported_counts_and_not_what_was_written_since(written, tmp_path):
    part = written("part_in_work")
    before = code_of_parts([part])
    (tmp_path / "part_in_work.py").write_text("class Part: factor = 2\n")
    assert code_of_parts([part]) == before
    assert code_of_parts([reload(sys.modules["part_in_work"]).Part]) != before


def test_a_package_in_an_archive_has_no_source(tmp_path, monkeypatch):
    with ZipFile(tmp_path / "parts.zip", "w") as archive:
        archive.writestr("zipped_parts/__init__.py", "class Part: pass\n")
    monkeypatch.syspath_prepend(tmp_path / "parts.zip")
    assert code_of_parts([import_module("zipped_parts").Part]) == {}
    sys.modules.pop("zipped_parts")


def test_nothing_is_said_of_what_comes_with_ecoflap_or_python_or_from_no_file():
    assert code_of_parts([Wanda, PartCode, dict, sha256, type("Typed", (), {"__module__": "nowhere"})]) == {}


SCRIPT = """
from ecoflap.core.machine.part_code import code_of_parts
class Part:
    factor = {factor}
print({folder!r} and code_of_parts([Part])["Part"].sha256)
"""


def test_of_a_script_a_part_is_what_defines_it(tmp_path):
    """Which folder a script writes to is no part of its scorer."""
    digests = []
    for factor, folder in ((2, "one"), (2, "other"), (3, "one")):
        (tmp_path / "script.py").write_text(SCRIPT.format(factor=factor, folder=folder))
        digests.append(subprocess.check_output([sys.executable, str(tmp_path / "script.py")], text=True))
    assert digests[0] == digests[1] != digests[2]


def test_of_a_notebook_a_class_is_its_functions(monkeypatch):
    """Python finds no file of such a class; its functions are of a cell, which the notebook remembers."""
    digests = []
    for factor in (2, 2, 3):
        name, text = f"<cell {len(digests)}>", f"class Part:\n    def __call__(self):\n        return {factor}\n"
        linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
        cell = {"__name__": "__main__"}
        exec(compile(text, name, "exec"), cell)
        (found,) = code_of_parts([cell["Part"]]).values()
        digests.append(found.sha256)
    assert digests[0] == digests[1] != digests[2]


MAKES = """
import functools

def kept(function):
    @functools.wraps(function)
    def run(*given):
        return function(*given)
    return run

class Decorated:
    @kept
    def __call__(self, name):
        return name in {"alpha", "beta", "gamma"}

def make(factor, shared=None, other=object()):
    class Part:
        ratio = factor
        @kept
        def __call__(self, name=other):
            return name in {"alpha", "beta", "gamma"}, helper(), shared
    def helper():
        return shared
    return Part
"""


def digest_of(*made):
    return code_of_parts(made)["makes_parts:make.<locals>.Part"].sha256


def test_what_a_function_has_made_is_told_from_others_of_its_name(written):
    written("makes_parts", MAKES)
    make = sys.modules["makes_parts"].make
    values = [2, 3, (1, 2), (3, 4), [1], [5], {"a": 1}, {"a": 2}, frozenset("ab"), 0.5, "2", None]
    assert len({digest_of(make(1, value)) for value in values}) == len(values)
    assert digest_of(make(2)) != digest_of(make(1)), "an attribute of the class"
    assert digest_of(make(1, [1])) == digest_of(make(1, [1]))
    assert digest_of(make(1, object())) == digest_of(make(1, object())), "which has no lasting text"
    assert digest_of(make(1), make(2)) != digest_of(make(3), make(2)), "a run may have several"
    circle = []
    circle.append(circle)
    assert digest_of(make(1, circle))
    assert code_of_parts([make(1)])["makes_parts"] == code_of_parts([make(2)])["makes_parts"]


def test_of_a_class_of_a_module_its_file_says_all(written):
    """Also of one with a decorated function, which has a function around it."""
    written("makes_parts", MAKES)
    assert code_of_parts([sys.modules["makes_parts"].Decorated]).keys() == {"makes_parts"}


TOLD = """
import sys
sys.path.insert(0, {folder!r})
from makes_parts import make
from ecoflap.core.machine.part_code import code_of_parts
print(code_of_parts([make(2, ("a", 1.5))]))
"""


def test_every_process_tells_the_same_of_one_code(written, tmp_path):
    """Of a set Python has another order in each, and of an object another address."""
    written("makes_parts", MAKES)
    told = {
        subprocess.check_output(
            [sys.executable, "-c", TOLD.format(folder=str(tmp_path))], env={**os.environ, "PYTHONHASHSEED": seed}
        )
        for seed in ("0", "1", "2")
    }
    assert len(told) == 1


DECORATED = """
import functools
from ecoflap.core.machine.part_code import code_of_parts
def kept(function):
    return functools.wraps(function)(lambda *given: function(*given))
class Part:
    @kept
    def __call__(self): return 1
    def other(self): return {value}
print(code_of_parts([Part])["Part"].sha256)
"""


def test_of_a_script_a_decorated_class_is_all_of_its_text(tmp_path):
    digests = set()
    for value in (1, 2):
        (tmp_path / "script.py").write_text(DECORATED.format(value=value))
        digests.add(subprocess.check_output([sys.executable, str(tmp_path / "script.py")]))
    assert len(digests) == 2


TYPED = """
from ecoflap.core.machine.part_code import code_of_parts
class Part:
    def __call__(self): return [one * {factor} for one in (1, 2)]
print({folder!r} and code_of_parts([Part])["Part"].sha256)
"""


def test_of_what_is_typed_a_part_is_what_python_runs():
    """Of a script on the standard input, or of a prompt, no file is there to be read."""
    digests = []
    for factor, folder in ((2, "one"), (2, "other"), (3, "one")):
        typed = TYPED.format(factor=factor, folder=folder)
        digests.append(subprocess.run([sys.executable, "-"], input=typed, capture_output=True, text=True).stdout)
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0].strip()) == 64


def test_a_module_is_what_it_imports_from_its_folder_too(written, tmp_path, forgotten):
    (tmp_path / "help_of_mine.py").write_text("import json\nfrom deeper_of_mine.part import F\n")
    (tmp_path / "deeper_of_mine").mkdir()
    (tmp_path / "deeper_of_mine" / "__init__.py").touch()
    (tmp_path / "deeper_of_mine" / "part.py").write_text("F = 1\n")
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "data.py").write_text("of no package")
    (tmp_path / "beside_of_mine.py").write_text("G = 1\n")
    part = written("helped_of_mine", "from help_of_mine import F\nclass Part: pass\n")
    (before,) = code_of_parts(forgotten([part])).values()
    assert before.file == str(tmp_path / "helped_of_mine.py")
    (tmp_path / "beside_of_mine.py").write_text("G = 2\n")  # which nothing imports
    (tmp_path / "json" / "data.py").write_text("of no package either")
    assert list(code_of_parts(forgotten([part])).values()) == [before]
    found = {before.sha256}
    for file, text in (
        ("deeper_of_mine/part.py", "F = 2\n"),
        ("help_of_mine.py", "F = 2\n"),
        ("help_of_mine.py", "F =\n"),
    ):
        (tmp_path / file).write_text(text)
        (now,) = code_of_parts(forgotten([part])).values()
        found.add(now.sha256)
    assert len(found) == 4
    for name in ("help_of_mine", "deeper_of_mine", "deeper_of_mine.part"):
        sys.modules.pop(name, None)


def test_beside_what_is_installed_lie_libraries(written, tmp_path, monkeypatch, forgotten):
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "library_of_others.py").write_text("F = 1\n")
    (installed / "installed_of_mine.py").write_text("from library_of_others import F\nclass Part: pass\n")
    monkeypatch.syspath_prepend(installed)
    part = import_module("installed_of_mine").Part
    before = code_of_parts(forgotten([part]))
    (installed / "library_of_others.py").write_text("F = 2\n")
    assert code_of_parts(forgotten([part])) == before
    for name in ("installed_of_mine", "library_of_others"):
        sys.modules.pop(name, None)
