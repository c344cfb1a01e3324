"""What is found out about the machine, and where nothing can be."""

import subprocess
import sys

from ecoflap.core.machine import environment
from ecoflap.core.machine.environment import changed_versions, peak_memory, versions

WITHOUT_UNIX = """
import sys
sys.modules["fcntl"] = sys.modules["resource"] = None  # as where Windows is: importing them fails
import ecoflap.core.record.open_run
from ecoflap.core.machine.environment import peak_memory
assert peak_memory() >= 0
"""


def test_nothing_of_unix_is_needed_to_import_the_record():
    done = subprocess.run([sys.executable, "-c", WITHOUT_UNIX], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_a_list_of_processes_the_system_is_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "Path", lambda path: tmp_path / "nowhere")
    assert peak_memory() > 1e6


def test_a_peak_that_cannot_be_found_out_is_0(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "Path", lambda path: tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory() == 0


class Point:
    """An entry point of an installed distribution."""

    def __init__(self, name, module):
        self.dist, self.module = type("Distribution", (), {"name": name}), module


class Unnamed:
    """A class that some plugin's part is made of."""


def test_of_plugins_those_count_whose_code_is_used(monkeypatch):
    points = [Point("ours", __name__.partition(".")[0]), Point("theirs", "theirs.plugin")]
    monkeypatch.setattr(environment, "entry_points", lambda group: points)
    monkeypatch.setattr(environment, "version", lambda name: "1.0")
    assert versions([Unnamed]).keys() - versions().keys() == {"ours"}
    assert not {"ours", "theirs"} & versions([dict]).keys()


def test_a_plugin_that_came_or_is_not_used_any_more_is_no_change():
    before = {"python": "3.11", "torch": "2.6", "gguf": "1", "scores": "1.0", "exports": "1.0"}
    assert changed_versions(before, {**before, "others": "1.0"}) == ""
    assert changed_versions(before, {name: one for name, one in before.items() if name != "exports"}) == ""
    now = {"python": "3.12", "torch": "2.6", "timm": "1.0", "scores": "2.0"}
    said = "python 3.11 (now 3.12), gguf 1 (now absent), scores 1.0 (now 2.0), timm absent (now 1.0)"
    assert changed_versions(before, now) == said
