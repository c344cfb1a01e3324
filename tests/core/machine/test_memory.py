"""The memory that a stage holds: what is gone again counts, and what lies in a file does not."""

from pathlib import Path

import pytest
import torch

from ecoflap.core.machine import memory
from ecoflap.core.machine.memory import MemoryWatch, available_memory, held, left_in_groups

on_linux = pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="only Linux tells")
SIZE = 64 << 20


@on_linux
def test_what_was_held_for_a_while_is_the_most():
    watch = MemoryWatch()
    before = watch.most()
    tensor = torch.ones(SIZE, dtype=torch.uint8)
    while watch._most < before + SIZE // 2:
        assert tensor.sum() == SIZE
    del tensor
    watch.stop()
    assert watch.most() > before + SIZE // 2


def test_what_one_thread_has_seen_another_does_not_take_back(monkeypatch):
    monkeypatch.setattr(memory, "_EVERY", 60)
    watch = MemoryWatch()
    asked = []

    def held():
        """Tell little; before that is told, another thread asks and is told much."""
        asked.append(1)
        if len(asked) == 2:
            return 1 << 50
        watch.most()
        return 1

    monkeypatch.setattr(memory, "held", held)
    found = watch.most()
    monkeypatch.setattr(memory, "held", lambda: 1)
    assert (found, watch.most()) == (1 << 50, 1 << 50)
    watch.stop()


@on_linux
def test_a_mapped_file_is_not_held(tmp_path):
    (tmp_path / "file").write_bytes(bytes(SIZE))
    before = held()
    mapped = torch.from_file(str(tmp_path / "file"), shared=False, size=SIZE, dtype=torch.uint8)
    assert int(mapped.sum()) == 0
    assert held() - before < SIZE / 4


@on_linux
def test_a_system_has_more_memory_than_this_needs():
    assert (available_memory() or 0) > 1 << 20


GROUPS = {
    "0::/box/inner\n": {
        "memory.max": "max\n",
        "box/memory.max": "5000\n",
        "box/memory.current": "3000\n",
        "box/memory.stat": "anon 2000\ninactive_file 600\nactive_file 400\n",
        "box/inner/memory.max": "max\n",
    },
    "7:cpu:/box\n4:memory:/box\n0::/\n": {
        "memory/box/memory.limit_in_bytes": "5000\n",
        "memory/box/memory.usage_in_bytes": "3000\n",
        "memory/box/memory.stat": "cache 1000\ntotal_inactive_file 600\n",
    },
    "0::/elsewhere\n": {"memory.max": "5000\n", "memory.current": "2400\n", "memory.stat": "anon 2400\n"},
}


@pytest.mark.parametrize("told", GROUPS)
def test_a_control_group_that_allows_less_counts(told, tmp_path):
    (tmp_path / "told").write_text(told)
    for name, text in GROUPS[told].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(left_in_groups(tmp_path / "told", tmp_path)) == [5000 - 2400]
    assert list(left_in_groups(tmp_path / "nowhere", tmp_path)) == []


def test_elsewhere_the_peak_is_what_was_resident(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_STATM", tmp_path / "nowhere")
    monkeypatch.setattr(memory, "peak_memory", lambda: 17)
    assert held() == 17
