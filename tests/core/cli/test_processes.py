"""More processes than the memory holds are refused before one is begun."""

import pytest

from ecoflap.core.machine import memory


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


@pytest.mark.parametrize("free", [None, 1 << 30])
def test_as_many_as_fit_are_begun_and_where_nothing_is_known_any(free, ecoflap_command, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "available_memory", lambda: free)
    code, _, err = ecoflap_command("sweep", tmp_path / "none.yaml", "--processes", 2)
    assert code == 2
    assert "none.yaml" in err
