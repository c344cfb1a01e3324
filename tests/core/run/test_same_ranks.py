"""Processes that see another disk are refused, and those that compute by something else are told."""

import os

import pytest
from several import several

import ecoflap
from ecoflap.core.contracts.events import StageStarted
from ecoflap.core.disk import whole_files
from ecoflap.core.errors import RunError
from ecoflap.core.kernel.route import route
from ecoflap.core.machine.environment import arithmetic
from ecoflap.core.ranks.ranks import Ranks
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.report import read_report
from ecoflap.core.run import pipeline
from ecoflap.core.run.same_ranks import check_same_disk, other_arithmetic

HERE = {"threads": 1, "cpu": "AVX512", "kernels": "avx512"}


class First(Ranks):
    """The first of several processes, by what the others have."""

    def __init__(self, *others):
        self._others = others
        self.size = 1 + len(others)

    def gather(self, mine):
        return [mine, *self._others]


def test_a_disk_of_its_own_is_named_with_the_ranks(tmp_path):
    with pytest.raises(RunError) as caught:
        check_same_disk(First(True, False, False), tmp_path)
    said = (
        f"does not see what rank 0 writes into {tmp_path} (all processes of a run have to see the disk of its folder)"
    )
    assert caught.value.problems == (f"rank 2 {said}", f"rank 3 {said}")
    assert not any(tmp_path.iterdir())


def test_a_disk_that_all_see_is_none_of_its_own(tmp_path):
    check_same_disk(First(True), tmp_path)
    check_same_disk(Ranks(), tmp_path / "not there, and not looked at")
    assert not any(tmp_path.iterdir())


def test_what_a_killed_process_left_for_the_others_is_a_leftover(tmp_path, monkeypatch):
    def killed(path, data):
        path.write_bytes(data)
        raise KeyboardInterrupt

    monkeypatch.setattr("ecoflap.core.run.same_ranks.write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        check_same_disk(First(True), tmp_path)
    assert len(whole_files.removed_leftovers(tmp_path)) == 1
    assert not any(tmp_path.iterdir())


def test_a_run_folder_on_a_disk_of_its_own_is_refused_before_anything_is_computed(plain, tmp_path):
    """One path leads each process elsewhere, as on machines without a disk that all see."""
    for rank in range(2):
        (tmp_path / f"disk {rank}").mkdir()

    def run(ranks):
        os.chdir(tmp_path / f"disk {ranks.rank}")
        ecoflap.run(plain(), folder="/proc/self/cwd/run", ranks=ranks)

    first, second = several(2, run, tmp_path)
    assert (first.code, second.code) == (2, 2)
    assert "rank 1 does not see what rank 0 writes into /proc/self/cwd/run" in first.said
    assert not (tmp_path / "disk 0" / "run" / "scores.jsonl").exists()


def test_who_computes_by_something_else_is_told():
    assert other_arithmetic(First(HERE, dict(HERE)), HERE) == []
    (said,) = other_arithmetic(First(HERE, {**HERE, "threads": 2, "kernels": "torch"}), HERE)
    begin = "rank 2 computes with threads 2 where rank 0 has 1, kernels torch where rank 0 has avx512: the last bits"
    assert said.startswith(begin)
    assert "OMP_NUM_THREADS" in said


def test_a_run_of_processes_with_other_threads_says_so_in_its_report(plain, pico, tmp_path, monkeypatch):
    """Said to be others alone: what OpenMP has begun before a fork does not outlive it with more threads."""
    text = {"use": "text", "path": str(pico / "text.jsonl"), "portion": [0, 0.7], "sequence_length": 16}

    def run(ranks):
        monkeypatch.setattr(pipeline, "arithmetic", lambda: {**HERE, "threads": 1 + ranks.rank})
        ecoflap.run(plain(calibration={**text, "samples": 2, "batch_size": 1}), folder=tmp_path / "run", ranks=ranks)

    assert [one.code for one in several(2, run, tmp_path)] == [0, 0]
    warnings = read_report(RunFolder(tmp_path / "run").report).warnings
    assert sum("rank 1 computes with threads 2 where rank 0 has 1" in one for one in warnings) == 1


def test_a_run_that_goes_on_with_other_kernels_says_so(plain, heard_by, tmp_path, monkeypatch):
    def stop(event):
        if isinstance(event, StageStarted) and event.stage == "prune":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ecoflap.run(plain(), folder=tmp_path / "run", registry=heard_by(stop))
    own = arithmetic()
    assert own["kernels"] == route().name
    monkeypatch.setattr(pipeline, "arithmetic", lambda: {**own, "kernels": "another"})
    report = ecoflap.run(plain(), folder=tmp_path / "run").report
    told = f"it was begun with kernels {own['kernels']} (now another): the last bits of sums are others"
    assert sum(one.startswith(told) for one in report.warnings) == 1
    monkeypatch.setattr(pipeline, "arithmetic", lambda: {**own, "threads": 99})
    again = ecoflap.run(plain(), folder=tmp_path / "run").report  # nothing is left to compute
    assert again.warnings == report.warnings
    assert report.machine["kernels"] == own["kernels"]


def test_a_run_that_goes_on_as_it_was_begun_says_nothing(plain, heard_by, tmp_path):
    def stop(event):
        if isinstance(event, StageStarted) and event.stage == "prune":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ecoflap.run(plain(), folder=tmp_path / "run", registry=heard_by(stop))
    report = ecoflap.run(plain(), folder=tmp_path / "run").report
    assert not any("last bits" in one for one in report.warnings)
