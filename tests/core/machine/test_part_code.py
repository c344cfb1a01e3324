"""Code that comes with neither ecoflap nor Python is known by what is in its files."""

import linecache
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
