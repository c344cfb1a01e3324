"""Code that comes with neither ecoflap nor Python is known by what is in its files."""

import subprocess
import sys
from hashlib import sha256
from importlib import import_module

import pytest

from ecoflap.core.machine.part_code import Source, sources
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


def test_a_module_is_its_file(written, tmp_path):
    digest = sha256(b"class Part: pass\n").hexdigest()
    assert sources([written("part_of_mine")]) == {"part_of_mine": Source(str(tmp_path / "part_of_mine.py"), digest)}


def test_a_package_is_all_of_its_modules(written, tmp_path):
    """What two parts share may lie in a module that neither is in."""
    written("parts_of_mine.__init__", "")
    part, _ = written("parts_of_mine.part"), written("parts_of_mine.shared", "FACTOR = 2\n")
    before = sources([part])
    assert before["parts_of_mine"].file == str(tmp_path / "parts_of_mine")
    (tmp_path / "parts_of_mine" / "data.txt").write_text("no code")
    assert sources([part]) == before
    (tmp_path / "parts_of_mine" / "shared.py").write_text("FACTOR = 3\n")
    assert sources([part]).keys() == before.keys()
    assert sources([part]) != before


def test_nothing_is_said_of_what_comes_with_ecoflap_or_python_or_from_no_file():
    assert sources([Wanda, Source, dict, sha256, type("Typed", (), {"__module__": "nowhere"})]) == {}


SCRIPT = """
from ecoflap.core.machine.part_code import sources
class Part:
    factor = {factor}
print({folder!r} and sources([Part])["Part"].sha256)
"""


def test_of_a_script_a_part_is_what_defines_it(tmp_path):
    """Which folder a script writes to is no part of its scorer."""
    digests = []
    for factor, folder in ((2, "one"), (2, "other"), (3, "one")):
        (tmp_path / "script.py").write_text(SCRIPT.format(factor=factor, folder=folder))
        digests.append(subprocess.check_output([sys.executable, str(tmp_path / "script.py")], text=True))
    assert digests[0] == digests[1] != digests[2]
