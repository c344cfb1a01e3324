"""Observers that fail are named and switched off; the run is none the worse."""

import pytest

import ecoflap
from ecoflap.core.contracts.events import RunFailed, RunFinished, RunStarted, Warned
from ecoflap.core.registry.observers import Observers


def test_each_that_raises_is_told_once_and_hears_no_more():
    heard = []

    def raises(event):
        heard.append(event)
        raise ValueError("no")

    observers = Observers([("bad", raises), ("good", heard.append)])
    assert observers(Warned("1")) == ["the observer 'bad' raised ValueError('no') and is switched off for this run"]
    assert observers(Warned("2")) == []
    assert heard == [Warned("1"), Warned("1"), Warned("2")]


def test_ctrl_c_is_nobodys_failure():
    def stopped(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Observers([("innocent", stopped)])(Warned("1"))


@pytest.mark.parametrize("error", [ValueError("odd"), SystemExit(3), MemoryError()])
def test_a_run_outlives_its_observers(plain, heard_by, lasting, tmp_path, error):
    """Each of these raises at one event; together at every one."""
    kinds, counts = [], []

    def count(event):
        counts.append(type(event))

    expected = lasting(ecoflap.run(plain(), folder=tmp_path / "plain", registry=heard_by(count)).folder)

    def raising_at(number):
        left = [number]

        def hear(event):
            left[0] -= 1
            if left[0] < 0:
                raise error

        return hear

    points = range(0, len(counts), 3)
    registry = heard_by(*map(raising_at, points), lambda event: kinds.append(type(event)))
    run = ecoflap.run(plain(), folder=tmp_path / "run", registry=registry)
    assert lasting(run.folder) == expected
    switched_off = [warning for warning in run.report.warnings if "switched off" in warning]
    assert len(switched_off) >= len(points) - 1  # the last may come after the report
    assert kinds[0] is RunStarted
    assert RunFinished in kinds
    assert RunFailed not in kinds


class Unready:
    def __call__(self, weight, seen, budget, layer):
        raise LookupError("not yet")


def test_a_failed_run_is_told(plain, heard_by, tmp_path):
    heard = []
    with pytest.raises(ecoflap.EcoflapError):
        ecoflap.run(plain(prune={"use": Unready}), folder=tmp_path / "run", registry=heard_by(heard.append))
    assert isinstance(heard[-1], RunFailed)
    assert "raised LookupError: not yet" in heard[-1].error
