"""Folders of runs that were made up."""

import json

import pytest
from made_report import made_report
from sealed_by_hand import write_sealed

from ecoflap.core.record.folder import RunFolder


@pytest.fixture
def made(tmp_path):
    """Write the folder of a finished run."""

    def made(name, *, fingerprints=None, taken_over=(), **keys):
        report = made_report(**keys)
        folder = tmp_path / name
        folder.mkdir(parents=True)
        write_sealed(folder / "recipe.yaml", json.dumps(report["recipe"]))
        write_sealed(folder / "report.json", report)
        write_sealed(folder / "fingerprints.json", fingerprints or {"model": "a"})
        for what in taken_over:
            RunFolder(folder).record_taken_over(what)
        return folder

    return made
