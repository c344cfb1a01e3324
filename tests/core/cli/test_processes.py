"""More processes than the memory holds are refused before one is begun."""

import subprocess
import sys

import pytest

from ecoflap.core.machine import memory

READS = """
import subprocess, sys, time
from ecoflap.core.cli.stopping import end_with_starter

end_with_starter()
print([sys.stdin.read(), subprocess.run(["cat"], capture_output=True).stdout], flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("arguments", [("run", "--processes", 1000), ("sweep", "--processes", 1000)])
def test_more_than_the_memory_holds_are_refused(arguments, ecoflap_command, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "available_memory", lambda: 20 << 30)
    command, *option = arguments
    code, _, err = ecoflap_command(command, "quickstart", "--folder", tmp_path / "run", *option)
    assert code == 2
    said = " ".join(err.split())
    assert "1000 processes hold 157 GB before any of them reads a model" in said
    assert "21.5 GB of memory are free" in said
    assert not (tmp_path / "run").exists()


def test_each_of_several_is_not_asked_again(ecoflap_command, monkeypatch, tmp_path):
    """It would find what the others have left."""
    monkeypatch.setattr(memory, "available_memory", lambda: 0)
    monkeypatch.setenv("WORLD_SIZE", "1000")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    code, _, err = ecoflap_command("run", tmp_path / "none.yaml", "--processes", 1000)
    assert code == 2
    assert "GB of memory" not in err


def test_who_ends_with_its_starter_finds_stdin_empty_and_passes_it_on_to_nobody():
    """What asks a question there would wait for ever."""
    with subprocess.Popen([sys.executable, "-c", READS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"['', b'']\n"
        process.stdin.close()
        assert process.wait(60) == 143


@pytest.mark.parametrize("free", [None, 1 << 30])
def test_as_many_as_fit_are_begun_and_where_nothing_is_known_any(free, ecoflap_command, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "available_memory", lambda: free)
    code, _, err = ecoflap_command("sweep", tmp_path / "none.yaml", "--processes", 2)
    assert code == 2
    assert "none.yaml" in err
