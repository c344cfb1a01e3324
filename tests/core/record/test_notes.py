"""What a dataset notes of itself is in the run's report, whether it calibrates or an evaluator reads it."""

import json

import ecoflap

NOTED = """
from dataclasses import dataclass
from pathlib import Path
import torch
from ecoflap import Sample

@dataclass(frozen=True)
class Noted:
    said: str
    samples: int = 2

    def __call__(self, adapter, model, note):
        for number in range(self.samples):
            yield Sample(tokens=torch.arange(3, 12) + number)
        note(self.said)
"""


def test_notes_are_told_and_reported(plain, tmp_path, monkeypatch):
    (tmp_path / "noted.py").write_text(NOTED)
    monkeypatch.syspath_prepend(tmp_path)
    data = {"use": "noted:Noted", "said": "3 rows were passed over"}
    evaluate = {"use": "perplexity", "data": {"use": "noted:Noted", "said": "5 others were"}}
    done = ecoflap.run(plain(calibration=data, evaluate=evaluate), folder=tmp_path / "run", allow_code=True)
    told = [json.loads(line)["warning"] for line in (done.folder / "warnings.jsonl").read_text().splitlines()]
    assert told.count("noted:Noted: 3 rows were passed over") == 1
    assert told.count("perplexity: 5 others were") == 1  # noted before and after, told once
    assert all(message in done.report.warnings for message in told)
