"""What changed between the begin of a run and its end is said, and the user decides."""

import sys

import pytest

import ecoflap
from ecoflap.core.contracts.events import StageStarted
from ecoflap.core.errors import RunError
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.identity import Identity
from ecoflap.core.run import pipeline
from ecoflap.core.sealing.sealed_text import write_sealed_json

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
    Identity(folder).check({"model": {"a": "1"}, "calibration data": "2"})
    with pytest.raises(RunError) as caught:
        Identity(folder).check({"model": {"a": "0"}, "calibration data": "3"}, accept=True)
    assert "another model (a) and another calibration data than" in str(caught.value)
    assert "--accept-change" not in str(caught.value)
    Identity(folder).check({"calibration data": "3"}, accept=True)
    assert folder.read_fingerprints() == {"model": {"a": "1"}, "calibration data": "3"}


MINE = """
from ecoflap import Measure
from ecoflap.plugins.pruners.magnitude import Magnitude

class Mine(Magnitude):
    pass

class Halves:
    def __call__(self, model, adapter, note):
        return {"half": Measure(0.5, 1, 0.0)}

class Score:
    def __call__(self, replay, layers):
        for number, layer in enumerate(layers):
            yield layer.name, 1.0 + number
"""


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """The module ``code_of_mine`` with a pruner, a scorer and an evaluator, and what edits it for a new process."""
    file = tmp_path / "code_of_mine.py"
    file.write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)

    def edit():
        file.write_text(file.read_text() + "# edited\n")
        sys.modules.pop("code_of_mine", None)

    yield edit
    sys.modules.pop("code_of_mine", None)


def test_a_run_is_refused_where_the_code_of_its_parts_is_other(plain, edited, tmp_path):
    """Also one that is finished: what it would show is of the code of before."""
    recipe, folder = plain(prune="code_of_mine:Mine", evaluate=None, export=None), tmp_path / "run"
    ecoflap.run(recipe, folder=folder, allow_code=True)
    first = ecoflap.run(recipe, folder=folder, allow_code=True).report.versions["code of code_of_mine"]
    edited()
    with pytest.raises(RunError, match=r"begun with another code_of_mine \(.*code_of_mine\.py\) than is there now"):
        ecoflap.run(recipe, folder=folder, allow_code=True)
    done = ecoflap.run(recipe, folder=folder, allow_code=True, accept_change=True)
    assert done.report.warnings[-1] == "code_of_mine changed since it was begun, which was accepted"
    again = ecoflap.run(recipe, folder=folder, allow_code=True).report.versions["code of code_of_mine"]
    assert again.startswith(f"{first}, then ")
    edited()
    with pytest.raises(RunError, match="begun with another code_of_mine"):
        ecoflap.run(recipe, folder=folder, allow_code=True)


def test_a_folder_that_does_not_tell_its_code_goes_on(plain, edited, tmp_path):
    """Versions of before kept none. What is there is not said to be by the code that is there now."""
    recipe, folder = plain(prune="code_of_mine:Mine", evaluate=None, export=None), tmp_path / "run"
    ecoflap.run(recipe, folder=folder, allow_code=True)
    known = RunFolder(folder).read_fingerprints()
    write_sealed_json(RunFolder(folder).fingerprints, {key: one for key, one in known.items() if key != "code"})
    edited()
    assert not ecoflap.run(recipe, folder=folder, allow_code=True).report.warnings
    assert not Identity(RunFolder(folder)).is_all_by({"code_of_mine": known["code"]["code_of_mine"]})
    assert "code" not in RunFolder(folder).read_fingerprints()


def test_an_evaluator_that_was_edited_measures_anew(plain, edited, heard_by, tmp_path):
    recipe, folder, heard = plain(evaluate="code_of_mine:Halves", export=None), tmp_path / "run", []
    ecoflap.run(recipe, folder=folder, allow_code=True)
    edited()
    ecoflap.run(recipe, folder=folder, allow_code=True, registry=heard_by(heard.append))
    stages = [event.stage for event in heard if isinstance(event, StageStarted)]
    assert [name for name in stages if name not in ("load", "check")] == ["evaluate dense", "evaluate pruned"]


def test_scores_of_a_scorer_that_was_edited_are_not_taken_over(plain, edited, tmp_path):
    """Nor from a run that has gone on with the new one since; and those of one that was not edited are."""
    recipe = plain(score="code_of_mine:Score", allocate="ecoflap", evaluate=None, export=None)
    first = ecoflap.run(recipe, folder=tmp_path / "first", allow_code=True).folder
    again = {**recipe, "prune": "magnitude", "reuse": [str(first)]}
    ecoflap.run(again, folder=tmp_path / "same", allow_code=True)
    assert RunFolder(tmp_path / "same").taken_over() == ["scores"]
    edited()
    ecoflap.run(again, folder=tmp_path / "other", allow_code=True)
    ecoflap.run(recipe, folder=first, allow_code=True, accept_change=True)
    ecoflap.run(again, folder=tmp_path / "third", allow_code=True)
    assert RunFolder(tmp_path / "other").taken_over() == RunFolder(tmp_path / "third").taken_over() == []
