"""The page's observer: a run is finished before it draws, and none the worse where it cannot."""

import json
import shutil
from dataclasses import replace

import broken_matplotlib
import pytest
from made_report import made_report

import ecoflap
from ecoflap.core.contracts.events import RunFinished, RunStarted, StageStarted
from ecoflap.core.record.report import Report, read_report
from ecoflap.core.report.drawings import obstacle
from ecoflap.plugins.observers import page


@pytest.fixture
def recipe(pico_llama_folder, tmp_path):
    return {"version": 1, "model": str(pico_llama_folder), "sparsity": 0.5, "prune": "magnitude"}


@pytest.fixture
def stages():
    """The registry that ships, with an ear; and what it hears."""
    heard = []

    def hear(event):
        heard.extend([event.stage] if isinstance(event, StageStarted) else [])

    registry = ecoflap.load_registry(installed=False)
    return replace(registry, _observers=(*registry.observers(), ("ear", hear))), heard


pytestmark = pytest.mark.usefixtures("drawing")
needs_matplotlib = pytest.mark.skipif(obstacle() is not None, reason="needs matplotlib")
BREAKAGES = [
    pytest.param(lambda patch, folder: broken_matplotlib.absent(patch), "pip install", id="absent"),
    pytest.param(broken_matplotlib.raising_at_import, "cannot be imported: RuntimeError", id="import"),
    pytest.param(
        lambda patch, folder: broken_matplotlib.raising_when_saved(patch),
        "drawing failed: OSError",
        id="saving",
        marks=needs_matplotlib,
    ),
]


@pytest.mark.parametrize(("breaks", "why"), BREAKAGES)
def test_a_run_is_finished_whatever_drawing_does(recipe, stages, monkeypatch, tmp_path, breaks, why):
    (tmp_path / "lib").mkdir()
    breaks(monkeypatch, tmp_path / "lib")
    registry, heard = stages
    done = ecoflap.run(recipe, folder=tmp_path / "run", registry=registry)
    assert read_report(done.folder / "report.json") == done.report
    text = (done.folder / "report.html").read_text()
    assert why in text
    assert "<svg" not in text
    assert not done.report.warnings
    del heard[:]
    again = ecoflap.run(recipe, folder=tmp_path / "run", registry=registry)
    assert heard == ["load"]
    assert again.plan == done.plan


def test_the_report_is_there_before_the_page_and_outlives_a_page_that_fails(recipe, monkeypatch, tmp_path):
    there = []

    def fails(folder, report):
        there.extend(path.name for path in folder.glob("report.*"))
        raise RuntimeError("no page today")

    monkeypatch.setattr("ecoflap.core.report.run_page.write_page", fails)
    done = ecoflap.run(recipe, folder=tmp_path / "run")
    assert there == ["report.json"]
    said = (done.folder / "warnings.jsonl").read_text()
    assert "the observer 'page' raised RuntimeError('no page today') and is switched off" in said
    monkeypatch.undo()
    ecoflap.run(recipe, folder=tmp_path / "run")
    assert (done.folder / "report.html").is_file()


def test_another_export_makes_the_page_anew(recipe, monkeypatch, tmp_path):
    done = ecoflap.run(recipe, folder=tmp_path / "run")
    assert "Exports" not in (done.folder / "report.html").read_text()
    ecoflap.export_run(done.folder, "safetensors")
    assert "<h2>Exports</h2>" in (done.folder / "report.html").read_text()
    monkeypatch.setattr("ecoflap.core.report.run_page.write_page", lambda *_: 1 / 0)
    shutil.rmtree(done.folder / "exports")
    folder = ecoflap.export_run(done.folder, "hugging_face")
    assert folder.is_dir()
    assert set(read_report(done.folder / "report.json").exports) == {"hugging_face"}
    assert "the observer 'page' raised ZeroDivisionError" in (done.folder / "warnings.jsonl").read_text()


def test_other_events_write_nothing(tmp_path):
    page.ecoflap_on_event(RunStarted(tmp_path, ()))
    assert not list(tmp_path.iterdir())
    page.ecoflap_on_event(RunFinished(tmp_path, Report.model_validate_json(json.dumps(made_report()))))
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
