"""What changed between the begin of a run and its end is said, and the user decides."""

import pytest

import ecoflap
from ecoflap.core.contracts.events import StageStarted
from ecoflap.core.errors import RunError
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.run import pipeline

NEWER = {"python": "3.11.7", "ecoflap": "9.0", "torch": "2.99"}
OLDER = {"python": "3.11.7", "ecoflap": "8.0", "torch": "2.98", "gguf": "1"}


@pytest.fixture
def stopped(plain, heard_by, tmp_path, monkeypatch):
    """The recipe and folder of a run that was stopped when it began to prune, by older versions than there are now."""

    def stop(event):
        if isinstance(event, StageStarted) and event.stage == "prune":
            raise KeyboardInterrupt

    def stopped(**keys):
        monkeypatch.setattr(pipeline, "versions", lambda used: OLDER)
        recipe = plain(evaluate=None, export=None, **keys)
        with pytest.raises(KeyboardInterrupt):
            ecoflap.run(recipe, folder=tmp_path / "run", registry=heard_by(stop))
        monkeypatch.setattr(pipeline, "versions", lambda used: NEWER)
        return recipe, tmp_path / "run"

    return stopped


CHANGES = "ecoflap 8.0 (now 9.0), torch 2.98 (now 2.99), gguf 1 (now absent)"


def test_other_versions_are_said_and_the_user_decides(stopped):
    recipe, folder = stopped()
    with pytest.raises(RunError) as caught:
        ecoflap.run(recipe, folder=folder)
    assert f"was begun with {CHANGES}: what is left would be computed by other code" in str(caught.value)
    assert "go on all the same with --accept-change" in str(caught.value)
    done = ecoflap.run(recipe, folder=folder, accept_change=True)
    assert done.report.warnings == (f"it was begun with {CHANGES}, which was accepted",)
    assert RunFolder(folder).read_fingerprints()["versions"] == NEWER


def test_a_finished_run_may_be_looked_at_with_any_version(stopped, monkeypatch):
    recipe, folder = stopped()
    ecoflap.run(recipe, folder=folder, accept_change=True)
    monkeypatch.setattr(pipeline, "versions", lambda used: OLDER)
    assert ecoflap.run(recipe, folder=folder).report.kept == 11520
    with pytest.raises(RunError, match=r"was begun with ecoflap 9\.0 \(now 8\.0\)"):
        ecoflap.run({**recipe, "export": "safetensors"}, folder=folder)


def test_data_that_changed_are_gone_on_with_only_if_asked_for(stopped, pico, tmp_path, monkeypatch):
    text = tmp_path / "text.jsonl"
    text.write_bytes((pico / "text.jsonl").read_bytes())
    calibration = {"use": "text", "path": str(text), "sequence_length": 16, "samples": 4, "batch_size": 2}
    recipe, folder = stopped(calibration=calibration)
    monkeypatch.setattr(pipeline, "versions", lambda used: OLDER)
    text.write_text(text.read_text().replace("word1 ", "word2 "))
    with pytest.raises(RunError, match=r"another calibration data than .* with --accept-change, or begin"):
        ecoflap.run(recipe, folder=folder)
    done = ecoflap.run(recipe, folder=folder, accept_change=True)
    (warning,) = done.report.warnings
    assert warning.startswith("the calibration data changed since it was begun, from SHA-256 ")
    assert ecoflap.run(recipe, folder=folder).report.warnings == (warning,)


def test_another_model_is_never_gone_on_with(tmp_path):
    folder = RunFolder(tmp_path)
    folder.identify({"model": {"a": "1"}, "calibration data": "2"})
    with pytest.raises(RunError) as caught:
        folder.identify({"model": {"a": "0"}, "calibration data": "3"}, accept=True)
    assert "another model (a) and another calibration data than" in str(caught.value)
    assert "--accept-change" not in str(caught.value)
    folder.identify({"calibration data": "3"}, accept=True)
    assert folder.read_fingerprints() == {"model": {"a": "1"}, "calibration data": "3"}
