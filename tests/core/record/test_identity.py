"""With what a folder was begun, and what is refused as another."""

import json

import pytest

from ecoflap.core.errors import RunError
from ecoflap.core.machine.part_code import PartCode
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.identity import Identity
from ecoflap.core.sealing.sealed_lines import append_line


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def test_what_was_fingerprinted_first_must_stay(folder):
    Identity(folder).check({"model": {"a": "1", "b": "2"}})
    Identity(folder).check({"model": {"a": "1", "b": "2"}, "calibration data": "3"})
    Identity(folder).check({"model": {"a": "1", "b": "2"}})
    assert json.loads(folder.fingerprints.read_text())["calibration data"] == "3"
    with pytest.raises(RunError, match=r"another model \(b, c\) and another calibration data than"):
        Identity(folder).check({"model": {"a": "1", "b": "0", "c": "1"}, "calibration data": "4"})


HEADER, SCORE = {"version": 1}, {"name": "a", "score": 1.0}
NOTHING, DENSE = {}, {"evaluations.jsonl": [{"stage": "dense"}]}


@pytest.mark.parametrize(
    ("files", "changed", "refused"),
    [
        (NOTHING, "adapter", False),
        ({"scores.jsonl": [HEADER]}, "adapter", False),
        (DENSE, "adapter", True),
        (DENSE, "scorer", False),
        ({**DENSE, "scores.jsonl": [HEADER]}, "scorer", False),
        ({**DENSE, "scores.jsonl": [HEADER, SCORE]}, "scorer", True),
        ({"trials.jsonl": [{"why": ""}]}, "scorer", True),
    ],
)
def test_other_code_is_refused_where_it_has_found_something(folder, files, changed, refused):
    before = {name: PartCode(f"{name}.py", "1" * 64) for name in ("adapter", "scorer")}
    now = {**before, changed: PartCode(f"{changed}.py", "2" * 64)}
    Identity(folder).check_code(before, evaluated_by=["adapter"])
    for name, lines in files.items():
        for line in lines:
            append_line(folder.path / name, line)
    if refused:
        with pytest.raises(RunError, match=rf"another {changed} \({changed}\.py\).* delete this folder alone"):
            Identity(folder).check_code(now, evaluated_by=["adapter"])
        assert Identity(folder).check_code(now, evaluated_by=["adapter"], accept=True)
        assert not Identity(folder).is_all_by({changed: "2" * 64})
    else:
        assert Identity(folder).check_code(now, evaluated_by=["adapter"]) == []
        assert Identity(folder).is_all_by({name: one.sha256 for name, one in now.items()})
        assert not folder.scores.exists()
