"""What is found out about the machine, and where nothing can be."""

import subprocess
import sys

from ecoflap.core.record import environment
from ecoflap.core.record.environment import peak_memory

WITHOUT_UNIX = """
import sys
sys.modules["fcntl"] = sys.modules["resource"] = None  # as where Windows is: importing them fails
import ecoflap.core.record.folder
from ecoflap.core.record.environment import peak_memory
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
