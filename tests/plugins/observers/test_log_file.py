"""The log: a line an event, of this run's folder alone."""

import json
from pathlib import Path

from made_report import made_report

from ecoflap.core.contracts.events import (
    LayerPruned,
    Progress,
    RunFailed,
    RunFinished,
    RunStarted,
    StageStarted,
    Warned,
)
from ecoflap.core.record.report import Report
from ecoflap.plugins.observers.log_file import LogFile


def lines(folder: Path):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_every_event_but_progress_is_a_line(tmp_path):
    log = LogFile()
    log.ecoflap_on_event(Warned("before any run: goes nowhere"))
    events = [
        RunStarted(tmp_path, ("score", "prune")), StageStarted("score"), Progress("score", 1, 2, "layers"),
        LayerPruned("a.weight", 5, 10, 1, 0.5), Warned("odd"), RunFailed("stopped"),
    ]  # fmt: skip
    for event in events:
        log.ecoflap_on_event(event)
    found = lines(tmp_path)
    assert [line["event"] for line in found] == ["RunStarted", "StageStarted", "LayerPruned", "Warned", "RunFailed"]
    assert found[0]["folder"] == str(tmp_path)
    assert found[0]["stages"] == ["score", "prune"]
    assert found[2] | {"time": "", "seal": ""} == {
        "time": "", "event": "LayerPruned", "name": "a.weight", "kept": 5, "size": 10, "zeros": 1, "seconds": 0.5,
        "seal": "",
    }  # fmt: skip
    assert found == sorted(found, key=lambda line: line["time"])


def test_the_report_is_not_repeated_and_a_new_run_has_its_own_log(tmp_path):
    log, report = LogFile(), Report.model_validate_json(json.dumps(made_report()))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        log.ecoflap_on_event(RunStarted(tmp_path / name, ()))
        log.ecoflap_on_event(RunFinished(tmp_path / name, report))
        assert [line["event"] for line in lines(tmp_path / name)] == ["RunStarted", "RunFinished"]
        assert "sparsity" not in (tmp_path / name / "log.jsonl").read_text()
