"""``ecoflap verify``: nothing in a finished run's folder can change without being named."""

import os
import shutil
from pathlib import Path

import pytest
from sealed_by_hand import edit_sealed, read_lines, write_lines, write_sealed

import ecoflap
from ecoflap.core.compare.comparison import compared
from ecoflap.core.compare.page import write_comparison
from ecoflap.core.errors import FormatError, RunError
from ecoflap.core.record.open_run import open_run
from ecoflap.core.sweep.runs import record_runs
from ecoflap.core.verifying.comparison_files import FILES, PAGE
from ecoflap.core.verifying.verify import verify

NAMES = (
    "recipe.yaml", "fingerprints.json", "scores.jsonl", "plan.json", "evaluations.jsonl", "masks.safetensors",
    "model/SHA256SUMS", "model/config.json", "model/model.safetensors", "model/tokenizer.json", "stages.jsonl",
    "log.jsonl", "report.json", "report.html", "exports/safetensors.json", "exports/safetensors/SHA256SUMS",
    "exports/safetensors/manifest.json", "exports/safetensors/model.packed.safetensors",
    "exports/safetensors/config.json", "exports/safetensors/README.md", "exports/safetensors/tokenizer.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def recipe(pico):
    text = {"use": "text", "path": str(pico / "text.jsonl"), "sequence_length": 16}
    return {
        "version": 1,
        "model": str(pico / "model"),
        "calibration": {**text, "samples": 2, "batch_size": 2},
        "sparsity": 0.5,
        "score": {"use": "magnitude"},
        "prune": "magnitude",
        "evaluate": {"use": "perplexity", "data": {**text, "samples": 1}},
        "export": "safetensors",
    }


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    return ecoflap.run(recipe, folder=tmp_path_factory.mktemp("verified") / "run").folder


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_a_run_is_as_it_was_written(finished):
    found = verify(finished)
    there = {path for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}
    assert set(found.files) == there
    assert found.bytes == sum(path.stat().st_size for path in there)
    assert found.strangers == []
    assert {str(path.relative_to(finished)) for path in there} >= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_bit_that_turned_is_told_with_its_file(folder, name):
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 4
    (folder / name).write_bytes(raw)
    with pytest.raises(FormatError) as caught:
        verify(folder)
    # Of a list it is the file that it then differs from which is named, or the list.
    named = str(folder / name).removesuffix("SHA256SUMS")
    assert any(problem.startswith(named) for problem in caught.value.problems), caught.value.problems


def test_what_belongs_together_is_held_together(folder):
    *lines, _ = read_lines(folder / "scores.jsonl")
    write_lines(folder / "scores.jsonl", lines)
    (folder / "exports" / "safetensors" / "config.json").unlink()
    edit_sealed(folder / "exports" / "safetensors" / "manifest.json", lambda manifest: manifest.update(notes=["x"]))
    with pytest.raises(FormatError) as caught:
        verify(folder)
    told = "\n".join(caught.value.problems)
    assert "scores.jsonl: its last lines are gone, which plan.json knows" in told
    assert "config.json is missing: SHA256SUMS lists it" in told
    assert "manifest.json is not what was written: its SHA-256 is" in told


def test_what_differs_while_a_process_works_there_is_not_called_damage(folder, ecoflap_command):
    other = shutil.copytree(folder, folder.parent / "other")
    record_runs(folder.parent, [{"folder": name, "method": "", "seed": 0, "grid": {}} for name in ("run", "other")])
    for run in (folder, other):
        (run / "masks.safetensors").unlink()
    (folder / "plan.json").unlink()
    with open_run(folder, fresh=False):
        code, _, err = ecoflap_command("verify", folder)
        assert code == 2
        assert err.strip() == (
            f"ecoflap: {folder}: another process is working there, and what differs may be what it writes just now. "
            f"Verify again when it has ended."
        )
        with pytest.raises(FormatError) as caught:
            verify(folder.parent)
        assert [str(folder) in problem for problem in caught.value.problems].count(True) == 1
        assert any(f"{other / 'masks.safetensors'} is missing" in problem for problem in caught.value.problems)
    with pytest.raises(FormatError, match=r"plan\.json is missing"):
        verify(folder)


def test_a_run_that_works_meanwhile_and_is_as_it_was_written_is_no_problem(folder):
    with open_run(folder, fresh=False):
        found = verify(folder)
    assert folder / "plan.json" in found.files
    size = found.bytes
    (folder / "report.html").unlink()
    assert 0 < found.bytes < size


def test_the_exports_of_a_run_are_checked_by_their_records(folder, monkeypatch):
    exports = folder / "exports"
    monkeypatch.chdir(exports)
    for named in (exports, Path()):
        found = verify(named)
        assert found.strangers == []
        assert set(found.files) == {path for path in exports.rglob("*") if path.is_file()}
    (exports / "safetensors" / "SHA256SUMS").write_text("")
    with pytest.raises(FormatError, match=r"SHA256SUMS is not the list that safetensors\.json knows"):
        verify(exports)


def test_an_export_of_another_plan_is_told(folder):
    edit_sealed(folder / "plan.json", lambda plan: plan.update(kept_whole={}))
    with pytest.raises(FormatError, match=r"manifest\.json says that it comes from a plan\.json of SHA-256 .*another"):
        verify(folder)


@pytest.mark.parametrize(("reported", "planned"), [("text", None), (None, "text"), ("real", "text")])
def test_a_report_and_a_plan_of_other_tokens_are_told(folder, reported, planned):
    for name, tokens in (("report.json", reported), ("plan.json", planned)):
        edit_sealed(folder / name, lambda file, tokens=tokens: file.update(tokens=tokens))
    with pytest.raises(FormatError) as caught:
        verify(folder)
    told, known = ("null" if tokens is None else f'"{tokens}"' for tokens in (reported, planned))
    (said,) = (problem for problem in caught.value.problems if "tokens" in problem)
    assert said.startswith(f"{folder / 'report.json'}: tokens is {told}, and {known} in plan.json. Restore the one ")


def test_a_report_and_a_plan_of_the_same_tokens_belong_together(folder):
    shutil.rmtree(folder / "exports")  # which know the plan as it was
    for name in ("report.json", "plan.json"):
        edit_sealed(folder / name, lambda file: file.update(tokens="text"))
    assert folder / "report.json" in verify(folder).files


def test_what_is_not_ours_is_said_and_not_refused(folder, ecoflap_command):
    (folder / "notes.txt").write_text("mine")
    assert verify(folder).strangers == [folder / "notes.txt"]
    code, out, _ = ecoflap_command("verify", folder)
    assert code == 0
    assert "every byte is what was written" in out
    assert "notes.txt: it has no seal and is on no list" in out


def test_profiles_are_a_runs_own_and_what_lies_among_them_is_not(folder):
    (folder / "profile.txt").write_text("prune: 1.00 s")
    (folder / "profile").mkdir()
    for name in ("00-load.prof", "notes.txt"):
        (folder / "profile" / name).write_text("any")
    assert verify(folder).strangers == [folder / "profile" / "notes.txt"]


def test_links_are_not_followed_nor_is_a_disk_walked_through(finished, tmp_path):
    """One that leads back, as there are below /proc, would have no end."""
    there = tmp_path / "work"
    shutil.copytree(finished, there / "run")
    (there / "back").symlink_to(tmp_path)
    deep = there.joinpath(*"abcdefgh")
    shutil.copytree(finished, deep / "run")
    found = verify(tmp_path)
    assert {file.parts[len(there.parts)] for file in found.files} == {"run"}
    assert found.strangers == [there.joinpath(*"abcde"), there / "back"]


def test_by_the_command_line(folder, ecoflap_command):
    (folder / "model" / "generation_config.json").write_text("{}\n")
    (folder / "plan.json").write_text((folder / "plan.json").read_text().replace('"keep"', '"kept"', 1))
    code, _, err = ecoflap_command("verify", folder)
    assert code == 2
    assert "plan.json:4: this line is not what was written (SHA-256). Restore the file, or begin" in err
    assert "generation_config.json" in err


@pytest.mark.parametrize("inside", ["model", "exports/safetensors"])
def test_a_folder_of_it_alone(folder, inside):
    assert len(verify(folder / inside).files) == len(list((folder / inside).iterdir()))
    (folder / inside / "tokenizer.json").unlink()
    with pytest.raises(FormatError, match=r"tokenizer\.json is missing"):
        verify(folder / inside)


def test_a_packed_file_without_a_list(folder, tmp_path):
    (tmp_path / "alone").mkdir()
    shutil.copy(folder / "exports/safetensors/model.packed.safetensors", tmp_path / "alone")
    assert verify(tmp_path / "alone").files == [tmp_path / "alone" / "model.packed.safetensors"]


def test_a_sweep_whose_list_leads_out_of_it_is_told(tmp_path):
    write_sealed(tmp_path / "sweep.json", {"version": 1, "runs": [{"folder": "..", "method": ""}]})
    with pytest.raises(FormatError, match=r"sweep\.json: runs\.0\.folder is '\.\.', and the name of a folder"):
        verify(tmp_path)


def test_a_sweep_is_its_list_and_its_runs(folder):
    sweep = folder.parent
    record_runs(sweep, [{"folder": "run", "method": "", "seed": 0, "grid": {}}])
    found = verify(sweep)
    assert sweep / "sweep.json" in found.files
    assert folder / "plan.json" in found.files
    (sweep / "sweep.json").write_text((sweep / "sweep.json").read_text().replace("run", "nur"))
    with pytest.raises(FormatError, match=r"sweep\.json:\d: this line is not what was written"):
        verify(sweep)


def test_a_folder_of_somebody_else(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(RunError, match="nothing in it carries a seal or is listed"):
        verify(tmp_path)
    with pytest.raises(RunError, match=r"nowhere is not a folder: name a run's"):
        verify(tmp_path / "nowhere")


EDITS = {
    "changed": lambda lines, at: [*lines[:at], lines[at].replace("1", "2") + " ", *lines[at + 1 :]],
    "removed": lambda lines, at: [*lines[:at], *lines[at + 1 :]],
    "doubled": lambda lines, at: [*lines[: at + 1], *lines[at:]],
    "added": lambda lines, at: [*lines[:at], '{"x": 1}', *lines[at:]],
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("name", [
    "recipe.yaml", "fingerprints.json", "plan.json", "report.json", "exports/safetensors.json", "scores.jsonl",
    "evaluations.jsonl", "stages.jsonl",
])  # fmt: skip
def test_a_run_that_was_edited_does_not_go_on(recipe, folder, name, edit):
    """Refused with file, line and cure; and with nothing written."""
    lines = (folder / name).read_text().splitlines()
    at = min(2, len(lines) - 2)
    (folder / name).write_text("\n".join([*EDITS[edit](lines, at), ""]))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    line = at + 2 if edit == "doubled" else at + 1
    with pytest.raises(ecoflap.EcoflapError, match=rf"{name}:{line}: this line .*(Restore|Undo)"):
        ecoflap.run(recipe, folder=folder)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    told = ("log.jsonl", "stages.jsonl")  # that it failed, and the time until then
    assert {path: data for path, data in after.items() if path.name not in told} == {
        path: data for path, data in before.items() if path.name not in told
    }


READERS = {
    "model/model.safetensors": "model/ and run the recipe again",
    "model/config.json": "model/ and run the recipe again",
    "masks.safetensors": "damaged",
}


@pytest.mark.parametrize("name", READERS)
def test_a_model_that_changed_is_neither_exported_nor_gone_on_with(recipe, folder, name):
    raw = bytearray((folder / name).read_bytes())
    raw[-3] ^= 1
    (folder / name).write_bytes(raw)
    uses = (
        lambda: ecoflap.export_run(folder, "hugging_face"),
        lambda: ecoflap.run({**recipe, "export": ["safetensors", "hugging_face"]}, folder=folder),
    )
    for use in uses:
        with pytest.raises(FormatError, match=rf"{name}.*{READERS[name]}"):
            use()
    assert not (folder / "exports" / "hugging_face").exists()


def test_what_lies_beside_packed_weights_is_checked_as_they_are(folder):
    packed = folder / "exports" / "safetensors"
    ecoflap.load_model(packed)
    for name in ("config.json", "tokenizer.json"):
        data = (packed / name).read_bytes()
        (packed / name).write_bytes(data + b" ")
        with pytest.raises(FormatError, match=rf"{name} is not what was written: its SHA-256 is"):
            ecoflap.load_model(packed)
        (packed / name).write_bytes(data)
    (packed / "chat_template.jinja").write_text("{{ evil }}")
    with pytest.raises(FormatError, match=r"chat_template\.jinja was added"):
        ecoflap.load_model(packed)


def test_reports_and_what_is_reused_are_checked(recipe, folder, ecoflap_command):
    report = (folder / "report.json").read_text()
    (folder / "report.json").write_text(report.replace('"value": ', '"value": 1', 1))
    for arguments in (("report", folder), ("compare", folder, "--out", folder.parent / "out")):
        code, _, err = ecoflap_command(*arguments)
        assert code == 2
        assert "report.json:" in err
        assert "this line is not what was written (SHA-256)" in err
    (folder / "report.json").write_text(report)
    *lines, last = (folder / "evaluations.jsonl").read_text().splitlines()
    (folder / "evaluations.jsonl").write_text("\n".join([*lines, last.replace('"value": ', '"value": 1'), ""]))
    with pytest.raises(RunError, match=r"run/evaluations\.jsonl:2: this line is not what was written"):
        ecoflap.run({**recipe, "reuse": str(folder), "sparsity": 0.6}, folder=folder.parent / "other")


UNREADABLE = [*NAMES, "model", "exports", "exports/safetensors", "dense", "blocks", "rounds", "."]


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_the_system_does_not_let_be_read_is_told(folder, unreadable, ecoflap_command, name):
    if name in ("dense", "blocks", "rounds"):
        (folder / name).mkdir()
    unreadable(folder / name)
    code, _, err = ecoflap_command("verify", folder)
    assert code == 2
    assert f"{folder / name} cannot be read: Permission denied." in err
    assert "damaged" not in err


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(("model/", "exports/safetensors/"))])
def test_a_pipe_is_told_and_not_waited_on(folder, name):
    if not hasattr(os, "mkfifo"):
        pytest.skip("the system has no pipes with names")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(FormatError, match=rf"{name} cannot be read: it is no file, but a pipe"):
        verify(folder)


def test_a_pipe_among_listed_files(folder):
    if not hasattr(os, "mkfifo"):
        pytest.skip("the system has no pipes with names")
    for name in ("model/SHA256SUMS", "exports/safetensors/manifest.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
    with pytest.raises(FormatError) as caught:
        verify(folder)
    told = "\n".join(caught.value.problems)
    assert "model/SHA256SUMS cannot be read: it is no file, but a pipe, a device or the like. A list is meant" in told
    assert "manifest.json is missing: SHA256SUMS lists it. Restore it, or make the folder anew." in told


def test_an_unreadable_folder_of_somebody_else_is_not_looked_into(folder, unreadable):
    (folder.parent / "lost+found").mkdir()
    unreadable(folder.parent / "lost+found")
    assert verify(folder.parent).strangers == [folder.parent / "lost+found"]
    record_runs(folder.parent, [{"folder": "run", "method": "", "seed": 0, "grid": {}}])
    unreadable(folder / "model")
    with pytest.raises(FormatError, match="model cannot be read: Permission denied"):
        verify(folder.parent)


def test_what_lies_among_blocks_and_is_no_block(folder):
    (folder / "blocks" / "trials").mkdir(parents=True)
    mine = [folder / "blocks" / name for name in ("000 (copy).safetensors", "notes.txt", "٠٠٠.safetensors")]
    for path in mine:
        path.write_bytes(b"")
    assert sorted(verify(folder).strangers) == sorted(mine)
    (folder / "blocks" / "000.safetensors").write_bytes(b"")
    with pytest.raises(FormatError, match=r"blocks/000\.safetensors is truncated"):
        verify(folder)


def test_the_comparison_of_a_sweep_is_held_to_its_data(folder):
    sweep = folder.parent
    record_runs(sweep, [{"folder": "run", "method": "", "seed": 0, "grid": {}}])
    write_comparison(compared([folder]), sweep, "a sweep")
    (sweep / "report.txt").write_text("mine")
    found = verify(sweep)
    assert {path.name for path in found.files} >= {"sweep.json", *FILES}
    assert found.strangers == [sweep / "report.txt"]
    edited = (("report.csv", "is not what report.json beside it knows"), (PAGE, r"html:\d+: this line is not what was"))
    for name, said in edited:
        file = sweep / name
        before = file.read_bytes()
        file.write_bytes(before.replace(b"e", b"a", 1))
        with pytest.raises(FormatError, match=said):
            verify(sweep)
        file.write_bytes(before)
    (sweep / "report.csv").unlink()  # which may be deleted
    assert verify(sweep).strangers == [sweep / "report.txt"]
