"""Exports of a finished run, their manifests, and the commands that show them."""

import errno
import inspect
import json
import os
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import ecoflap
from ecoflap.core.disk.whole_files import sha256_of
from ecoflap.core.errors import RecipeError, RunError, WayOut
from ecoflap.core.export import export_again, write_manifest
from ecoflap.core.export.densify import densify
from ecoflap.core.export.write_manifest import deflated_share
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.manifest import read_manifest
from ecoflap.core.record.report import read_report
from ecoflap.core.verifying.verify import verify
from ecoflap.exporters.safetensors import Safetensors

SEER = '''
from dataclasses import dataclass
from ecoflap import Exported, hookimpl

@dataclass(frozen=True)
class Seen:
    """Writes the tokens that the model was pruned by."""
    name: str = "seen"

    def __call__(self, pruned, folder):
        batches = pruned.calibration() if pruned.calibration else []
        (folder / "seen").write_text(repr([batch["input_ids"].tolist() for batch in batches]))
        return Exported((folder / "seen",))

@hookimpl
def ecoflap_register_exporters():
    return {"seen": Seen}
'''


@pytest.fixture
def run(copied_run):
    return copied_run


def test_every_export_has_a_manifest(plain_run):
    run = plain_run
    folder = run.folder / "exports" / "safetensors"
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        assert entry == {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
    assert manifest["run"]["plan"] == sha256_of(run.folder / "plan.json")
    assert manifest["run"]["masks"] == sha256_of(run.folder / "masks.safetensors")
    weights = b"".join(p.detach().view(torch.uint8).numpy().tobytes() for p in run.model.parameters())
    assert manifest["bytes"]["model"] == len(weights)
    assert manifest["bytes"]["stored"] == run.report.bytes["safetensors"]
    assert manifest["bytes"]["deflated"] == pytest.approx(len(zlib.compress(weights, 6)), rel=0.1)
    assert str(run.folder.parent) not in (folder / "manifest.json").read_text()
    assert run.report.exports == {"safetensors": read_manifest(folder / "manifest.json")}


def test_a_finished_run_is_exported_once_more(run, letters, tmp_path, plain):
    folder = ecoflap.export_run(run.folder, "letters", set_=["letter=b"], registry=letters)
    assert folder == run.folder / "exports" / "letters"
    assert (folder / "w.letters").read_text() == "b" * 10
    report = json.loads((run.folder / "report.json").read_text())
    assert report["bytes"]["letters"] == 10
    assert report["exports"]["letters"]["checks"][0]["runtime"] == "python"
    assert "letters: needs a reader of letters" in report["warnings"]
    page = (run.folder / "report.html").read_text()
    assert "needs a reader of letters" in page
    assert "1 letters" in page
    with pytest.raises(ecoflap.EcoflapError, match=r"letters is there already\. Say --overwrite, or overwrite=True"):
        ecoflap.export_run(run.folder, "letters", set_=["letter=b"], registry=letters)
    again = ecoflap.export_run(run.folder, "letters", set_=["letter=b"], registry=letters, overwrite=True)
    assert again == folder
    other = ecoflap.export_run(run.folder, {"use": "letters", "letter": "c"}, registry=letters)
    assert other.name == "letters-2"
    assert (folder / "w.letters").read_text() == "b" * 10
    # the recipe it left says so, and going on with it does nothing anew
    before = (other / "w.letters").stat().st_mtime_ns
    ecoflap.run(run.folder / "recipe.yaml", folder=run.folder, registry=letters)
    assert (other / "w.letters").stat().st_mtime_ns == before


def test_an_exporter_may_look_at_the_data_that_the_model_was_pruned_by(plain, tmp_path, monkeypatch):
    (tmp_path / "seen_plugin.py").write_text(SEER)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "registry.yaml").write_text("version: 1\nplugins: {seen: seen_plugin}\n")
    registry = ecoflap.load_registry(tmp_path / "registry.yaml")
    kept = {"allocate": "uniform", "score": None, "evaluate": None, "export": "seen"}
    done = ecoflap.run(plain(**kept), folder=tmp_path / "run", registry=registry)
    seen = json.loads((done.folder / "exports" / "seen" / "seen").read_text())
    assert [len(batch) for batch in seen] == [2, 2]
    assert all(len(tokens) == 16 for batch in seen for tokens in batch)
    again = ecoflap.export_run(done.folder, {"use": "seen", "name": "again"}, registry=registry)
    assert json.loads((again / "seen").read_text()) == seen
    changed = tmp_path / "text.jsonl"
    text = {"use": "text", "path": str(changed), "sequence_length": 16, "samples": 4, "batch_size": 2}
    changed.write_text(json.dumps({"text": "word1 word2 " * 40}) + "\n")
    other = ecoflap.run(plain(**kept, calibration=text), folder=tmp_path / "other", registry=registry)
    changed.write_text(json.dumps({"text": "word3 word4 " * 40}) + "\n")
    anew = {"to": {"use": "seen", "name": "anew"}, "registry": registry}
    with pytest.raises(RunError, match=r"was pruned by another calibration data than is there now \(text\)\. Put it"):
        ecoflap.export_run(other.folder, **anew)
    assert not (other.folder / "exports" / "anew").exists()
    assert not verify(other.folder).problems
    ecoflap.export_run(other.folder, **anew, accept_change=True)
    assert any("calibration data of this export are others" in one for one in RunFolder(other.folder).warnings())
    assert not verify(other.folder).problems
    blind = plain(**kept, prune="magnitude", calibration=None)
    without = ecoflap.run(blind, folder=tmp_path / "without", registry=registry)
    assert (without.folder / "exports" / "seen" / "seen").read_text() == "[]"


GONE = """
from dataclasses import dataclass
from ecoflap.plugins.pruners.wanda import Wanda
from ecoflap.plugins.scorers.zeroth_order import ZerothOrder

@dataclass(frozen=True)
class Mine(Wanda):
    share: float = 0.25

class Scores(ZerothOrder):
    aggregate = "mean"
"""


def test_what_a_model_was_pruned_by_need_not_be_there_any_more(plain, letters, tmp_path, monkeypatch):
    (tmp_path / "gone_plugin.py").write_text(GONE)
    sets = {"prune": {"use": "gone_plugin:Mine", "share": 0.5}, "score": {"use": "gone_plugin:Scores", "samples": 2}}
    recipe = plain(**sets, allocate="ecoflap", towers={"language": {"prune": "gone_plugin:Mine"}}, evaluate=None)
    done = ecoflap.run(recipe, folder=tmp_path / "run", registry=letters.trusting(True))
    before = done.folder.joinpath("recipe.yaml").read_text().splitlines()
    pieces = {"use": "safetensors", "shard_bytes": 20_000}
    there = ecoflap.export_run(done.folder, pieces, registry=letters, allow_code=True)
    written = {file.name: file.read_bytes() for file in there.glob("*.safetensors")}
    assert len(written) > 1
    (tmp_path / "gone_plugin.py").unlink()
    monkeypatch.delitem(sys.modules, "gone_plugin")
    with pytest.raises(RecipeError, match=r"to is Safetensors\(.*; it is an exporter's name, or \{use: name, parame"):
        inspect.unwrap(ecoflap.export_run)(done.folder, Safetensors(), registry=letters)  # as where nobody checks types
    with pytest.raises(RecipeError, match=r"safetensors has no parameter 'shards'") as refused:
        ecoflap.export_run(done.folder, {"use": "safetensors", "shards": 3}, registry=letters)
    assert len(refused.value.problems) == 1
    again = ecoflap.export_run(done.folder, pieces, registry=letters, overwrite=True)
    assert {file.name: file.read_bytes() for file in again.glob("*.safetensors")} == written
    ecoflap.export_run(done.folder, "letters", registry=letters)
    report = read_report(done.folder / "report.json")
    assert (report.recipe.prune.use, report.recipe.prune.share) == ("gone_plugin:Mine", 0.5)
    assert "letters" in report.exports
    after = done.folder.joinpath("recipe.yaml").read_text().splitlines()
    assert after[0] == before[0]
    assert {line for line in before if "gone_plugin" in line} == {line for line in after if "gone_plugin" in line}
    assert not verify(done.folder).problems


def test_a_run_of_a_model_in_memory_is_exported_too(plain, pico_llama, pico_tokenizer, letters, tmp_path):
    recipe = {key: value for key, value in plain().items() if key != "model"}
    done = ecoflap.run(recipe, model=pico_llama(), processor=pico_tokenizer, folder=tmp_path / "run")
    assert (ecoflap.export_run(done.folder, "letters", registry=letters) / "w.letters").is_file()


def test_each_runs_log_has_what_became_of_it(plain, letters, tmp_path):
    """One registry, whose observers hear of several runs: an export of the first after the second."""
    for name in ("first", "second"):
        ecoflap.run(plain(evaluate=None), folder=tmp_path / name, registry=letters)

    def log(name):
        return [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]

    before, others = log("first"), log("second")
    ecoflap.export_run(tmp_path / "first", "letters", registry=letters)
    assert log("second") == others
    told = [(line["event"], line.get("stage") or line.get("stages")) for line in log("first")[len(before) :]]
    assert told[0] == ("RunStarted", ["export"])
    assert told[-1] == ("RunFinished", None)


def test_by_the_command_line(run, letters, ecoflap_command, tmp_path):
    code, out, err = ecoflap_command("export", run.folder, "--to", "letters", "--set", "letter=z")
    assert code == 0, err
    assert "1 letters" in out
    code, out, err = ecoflap_command("report", run.folder)
    assert code == 0, err
    assert "perplexity" in out
    assert "python" in out
    packed = run.folder / "exports" / "letters" / "w.letters"
    code, out, err = ecoflap_command("densify", packed, tmp_path / "dense")
    assert code == 0, err
    assert (tmp_path / "dense").read_text() == "dense"
    (tmp_path / "dense").write_text("mine")
    code, _, err = ecoflap_command("densify", packed, tmp_path / "dense")
    assert (code, (tmp_path / "dense").read_text()) == (2, "mine")
    assert "dense is there already; name another, or say --overwrite" in err
    assert ecoflap_command("densify", packed, tmp_path / "dense", "--overwrite")[0] == 0
    assert (tmp_path / "dense").read_text() == "dense"


def test_where_a_run_cannot_be_written_no_option_is_named_that_export_lacks(run, letters, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("ecoflap.core.record.open_run.os.open", refuse)
    with pytest.raises(RunError) as told:
        ecoflap.export_run(run.folder, "letters", registry=letters)
    said = f"the run folder {run.folder} cannot be written: {os.strerror(errno.EROFS)}. Copy the run to where you may "
    assert str(told.value) == f"{said}write, and export the copy"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("export", "nowhere", "--to", "safetensors"), "no run folder"),
        (("export", "RUN", "--to", "onix"), "no exporter named 'onix'"),
        (("export", "RUN", "--to", "letters", "--set", "leter=b"), "--set leter=b: leter: letters has no parameter"),
        (("export", "RUN", "--to", "letters", "--set", "letter=3"), "--set letter=3: letter: should be a valid string"),
        (("export", "RUN", "--to", "letters", "--set", "letter"), "--set letter: should be KEY=VALUE"),
        (("densify", "nowhere.letters", "x"), "is not there"),
        (("densify", "RUN/plan.json", "x"), "no exporter packs such files. Known endings: "),
        (("densify", "RUN/exports/letters/w.letters", "RUN/exports/letters/w.letters"), "is the packed file itself"),
        (("report", "nowhere"), "no run folder: there is no folder of that name, looked for in "),
    ],
)
def test_mistakes_are_told(arguments, told, run, letters, ecoflap_command):
    if "letters/w" in "".join(arguments):
        ecoflap.export_run(run.folder, "letters", registry=letters)
    code, _, err = ecoflap_command(*(argument.replace("RUN", str(run.folder)) for argument in arguments))
    assert code == 2
    assert told in err


def test_of_two_exports_of_a_kind_each_keeps_its_folder(run, letters):
    for letter in "bc":
        ecoflap.export_run(run.folder, "letters", set_=[f"letter={letter}"], registry=letters)
    folders = [run.folder / "exports" / name for name in ("letters", "letters-2")]
    with pytest.raises(ecoflap.EcoflapError, match=r"exports/letters is there already"):
        ecoflap.export_run(run.folder, "letters", set_=["letter=b"], registry=letters)
    again = ecoflap.export_run(run.folder, "letters", set_=["letter=b"], registry=letters, overwrite=True)
    assert again == folders[0]
    assert [(folder / "w.letters").read_text()[0] for folder in folders] == ["b", "c"]


def test_an_export_that_another_command_makes_just_before_is_kept(run, letters, monkeypatch):
    """The other ends before this one holds the run's folder."""
    taken = export_again.open_run

    def later(path, **keys):
        monkeypatch.setattr(export_again, "open_run", taken)
        ecoflap.export_run(run.folder, "letters", set_=["letter=b"], registry=letters)
        return taken(path, **keys)

    monkeypatch.setattr(export_again, "open_run", later)
    own = ecoflap.export_run(run.folder, "letters", set_=["letter=c"], registry=letters)
    assert own.name == "letters-2"
    folders = [run.folder / "exports" / name for name in ("letters", "letters-2")]
    assert [(folder / "w.letters").read_text()[0] for folder in folders] == ["b", "c"]
    assert set(read_report(run.folder / "report.json").exports) == {"safetensors", "letters", "letters-2"}


class _Killed(WayOut):
    pass


@contextmanager
def _killed_at(step, monkeypatch):
    def killed(*arguments):
        raise _Killed

    with monkeypatch.context() as until_then:
        until_then.setattr(export_again, step, killed)
        with pytest.raises(_Killed):
            yield


@pytest.mark.parametrize("step", ["write_report", "write_sealed_text"])
def test_a_command_that_was_killed_behind_its_files_goes_on(run, letters, monkeypatch, step):
    """The files and their record are whole by then; the recipe and the report do not know of them yet."""

    with _killed_at(step, monkeypatch):
        ecoflap.export_run(run.folder, "letters", registry=letters)
    written = run.folder / "exports" / "letters" / "w.letters"
    before = written.stat().st_mtime_ns
    assert "letters" not in (run.folder / "recipe.yaml").read_text()
    assert ecoflap.export_run(run.folder, "letters", registry=letters) == written.parent
    assert written.stat().st_mtime_ns == before
    assert "letters" in (run.folder / "recipe.yaml").read_text()
    assert set(read_report(run.folder / "report.json").exports) == {"safetensors", "letters"}
    with pytest.raises(RunError, match="letters is there already"):
        ecoflap.export_run(run.folder, "letters", registry=letters)


def test_one_killed_behind_its_files_keeps_its_place_in_a_run_whose_export_was_refused(run, letters, monkeypatch):
    recipe = run.folder / "recipe.yaml"
    ecoflap.export_run(run.folder, "letters", set_=["letter=b"], registry=letters)
    (run.folder / "report.json").unlink()
    (run.folder / "exports" / "letters.json").unlink()

    with _killed_at("write_sealed_text", monkeypatch):
        ecoflap.export_run(run.folder, "letters", set_=["letter=c"], registry=letters)
    again = ecoflap.export_run(run.folder, "letters", set_=["letter=c"], registry=letters)
    assert again.name == "letters"
    assert "letter: b" not in recipe.read_text()


def test_an_export_stays_where_writing_it_anew_fails(run, letters, monkeypatch):
    import letters_plugin

    folder = ecoflap.export_run(run.folder, "letters", registry=letters)
    before = {path: path.read_bytes() for path in (run.folder / "exports").rglob("*") if path.is_file()}

    def fail(self, pruned, folder):
        raise ecoflap.EcoflapError("the disk is made of cheese")

    monkeypatch.setattr(letters_plugin.Letters, "__call__", fail)
    with pytest.raises(ecoflap.EcoflapError, match="cheese"):
        ecoflap.export_run(run.folder, "letters", registry=letters, overwrite=True)
    assert {path: path.read_bytes() for path in (run.folder / "exports").rglob("*") if path.is_file()} == before
    assert (folder.parent / "letters.json").is_file()


@pytest.mark.parametrize(
    ("gone", "why"),
    [
        ("model", "its model is not pruned yet"),
        ("masks.safetensors", "its model is not pruned yet"),
        ("evaluations.jsonl", "its model was not evaluated yet by perplexity"),
    ],
)
def test_a_run_that_is_not_pruned_and_evaluated_is_refused(run, gone, why):
    (run.folder / "report.json").unlink()
    (run.folder / gone).rename(run.folder.parent / gone)
    with pytest.raises(RunError, match=rf"not finished: {why}.*Run its recipe again to go on"):
        ecoflap.export_run(run.folder, "hugging_face")
    assert not (run.folder / "exports" / "hugging_face").exists()


def test_an_exporter_that_fails_leaves_nothing(run, letters, monkeypatch):
    import letters_plugin

    def fail(self, pruned, folder):
        Path(folder / "half").write_text("x")
        raise ecoflap.EcoflapError("the disk is made of cheese")

    monkeypatch.setattr(letters_plugin.Letters, "__call__", fail)
    before = sorted(run.folder.rglob("*"))
    with pytest.raises(ecoflap.EcoflapError, match="cheese"):
        ecoflap.export_run(run.folder, "letters", registry=letters)
    assert sorted(run.folder.rglob("*")) == before


def test_an_exporter_is_given_what_the_run_knows(run, letters, monkeypatch):
    import letters_plugin

    given, write = [], letters_plugin.Letters.__call__

    def noting(self, pruned, folder):
        given.append(pruned)
        return write(self, pruned, folder)

    monkeypatch.setattr(letters_plugin.Letters, "__call__", noting)
    ecoflap.export_run(run.folder, "letters", registry=letters)
    (pruned,) = given
    masks = ecoflap.load_masks(run.folder)
    assert list(pruned.masks) == list(masks)
    assert all(torch.equal(pruned.masks[name], mask) for name, mask in masks.items())
    assert pruned.provenance.source == run.recipe.model.source
    assert pruned.provenance.sparsity == run.report.sparsity
    assert pruned.provenance.measures == run.report.measures.model_dump()
    assert pruned.adapter.processor is not None
    assert all(torch.equal(weight, run.model.state_dict()[name]) for name, weight in pruned.model.state_dict().items())


def test_an_exporter_that_says_endings_and_not_how_is_passed_over(run, letters, monkeypatch, ecoflap_command):
    import letters_plugin

    monkeypatch.setattr(letters_plugin.Letters, "densify", None)
    with pytest.raises(ecoflap.EcoflapError, match=r"no exporter packs such files\. Known endings: [^:]*onnx"):
        densify(run.folder / "plan.json", run.folder / "dense", letters)
    (run.folder / "w.letters").write_text("a")
    with pytest.raises(ecoflap.EcoflapError, match="no exporter packs such files"):
        densify(run.folder / "w.letters", run.folder / "dense", letters)


def test_an_exporter_that_breaks_as_it_makes_a_file_dense_is_named(run, letters, monkeypatch):
    import letters_plugin

    def broken(file, target):
        raise KeyError("x")

    monkeypatch.setattr(letters_plugin.Letters, "densify", staticmethod(broken))
    (run.folder / "w.letters").write_text("a")
    with pytest.raises(ecoflap.EcoflapError, match=r"the exporter letters, writing w\.letters dense, raised KeyError"):
        densify(run.folder / "w.letters", run.folder / "dense", letters)


def test_deflate_is_measured_on_even_pieces(monkeypatch):
    monkeypatch.setattr(write_manifest, "SAMPLE", 1 << 20)
    torch.manual_seed(0)
    large = torch.nn.Linear(2048, 1024, bias=False).requires_grad_(False)  # 8 MB: every eighth piece
    large.weight[:, ::2] = 0
    exact = len(zlib.compress(large.weight.numpy().tobytes(), 6)) / large.weight.nbytes
    assert deflated_share(large) == pytest.approx(exact, rel=0.02)


def test_masks_that_are_gone_are_named(run):
    (run.folder / "masks.safetensors").unlink()
    with pytest.raises(RunError, match=r"masks\.safetensors is gone\. Run its recipe again"):
        ecoflap.export_run(run.folder, "hugging_face")
