"""``ecoflap verify`` misses what other files of a run know, and not what is yet to come or may be deleted."""

import shutil

import pytest

import ecoflap
from ecoflap.core.errors import FormatError, RunError
from ecoflap.core.verifying.verify import verify


@pytest.fixture(scope="module")
def finished(plain, tmp_path_factory):
    recipe = plain(score={"use": "magnitude"}, prune="magnitude", rounds=2)
    return ecoflap.run(recipe, folder=tmp_path_factory.mktemp("missing") / "run").folder


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def delete(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


KNOWN = {
    "recipe.yaml": "a run writes it before it finds anything. Restore it, or begin the run anew with --fresh.",
    "fingerprints.json": "a run writes it before it finds anything. Restore it, or begin the run anew with --fresh.",
    "scores.jsonl": "which plan.json knows. Restore the file, or begin the run anew with --fresh",
    "plan.json": "masks.safetensors was made by it. Restore it, or begin the run anew with --fresh.",
    "masks.safetensors": "report.json was made after it. Restore it, or begin the run anew with --fresh.",
    "report.json": "report.html was made of it. Restore it, or run the recipe again, which writes it anew.",
    "exports/safetensors.json": "Restore it, or run the recipe again, which exports it anew.",
    "rounds/1/plan.json": "masks.safetensors was made by it. Restore it, or begin the run anew with --fresh.",
    "rounds/1/scores.jsonl": "which plan.json knows. Restore the file, or begin the run anew with --fresh",
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_others_know_is_missed(folder, name):
    delete(folder / name)
    with pytest.raises(FormatError) as caught:
        verify(folder)
    (told,) = caught.value.problems
    assert told.startswith(f"{folder / name} is missing")
    assert told.endswith(KNOWN[name])


def test_lines_that_a_report_knows_are_missed(folder):
    for name in ("evaluations.jsonl", "stages.jsonl"):
        delete(folder / name)
    with pytest.raises(FormatError, match=r"evaluations\.jsonl: its last lines are gone.*\n.*stages\.jsonl: its last"):
        verify(folder)


@pytest.mark.parametrize("left", ["model", "exports"])
def test_masks_are_missed_by_all_that_is_made_after_them(folder, left):
    for name in ("report.json", "report.html", "masks.safetensors", "plan.json", *({"model", "exports"} - {left})):
        delete(folder / name)
    with pytest.raises(FormatError, match=rf"plan\.json is missing: {left}.*\n.*masks\.safetensors is missing: {left}"):
        verify(folder)


@pytest.mark.parametrize("name", ["masks.safetensors", "plan.json", "scores.jsonl", "recipe.yaml", "fingerprints.json"])
def test_a_folder_or_a_dead_link_in_the_place_of_a_file_is_told(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(FormatError, match=rf"{name} cannot be read: Is a directory\..*(estore|Undo|meant)"):
        verify(folder)
    (folder / name).rmdir()
    (folder / name).symlink_to("nowhere")
    with pytest.raises(FormatError, match=rf"{name}(:| cannot be read:) (there is no such file|it is a link to what)"):
        verify(folder)


ALLOWED = [
    ["model"],
    ["exports"],
    ["exports/safetensors"],
    ["exports/safetensors", "exports/safetensors.json"],
    ["rounds"],
    ["report.html", "log.jsonl"],
    [".lock"],
    ["model", "exports", "rounds", "report.html", "log.jsonl", ".lock"],
]


@pytest.mark.parametrize("names", ALLOWED, ids=",".join)
def test_what_may_be_deleted_is_not_missed(folder, names):
    for name in names:
        delete(folder / name)
    found = verify(folder)
    assert folder / "masks.safetensors" in found.files
    assert (found.strangers, found.unfinished) == ([], [])


def test_a_run_without_a_report_is_said_not_to_be_finished(folder, ecoflap_command):
    for name in ("report.json", "report.html", "exports/safetensors.json"):  # as one that was cut off in between
        delete(folder / name)
    assert verify(folder).unfinished == [folder]
    code, out, _ = ecoflap_command("verify", folder)
    assert code == 3
    assert "not finished" in out
    assert "it has no report.json" in out


def test_files_of_the_same_names_are_no_run(folder, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("plan.json", "report.json", "recipe.yaml", "scores.jsonl"):
        shutil.copy(folder / name, theirs)
    with pytest.raises(RunError, match="nothing in it carries a seal"):
        verify(theirs)
    with pytest.raises(RunError, match="nothing in it carries a seal"):
        verify(folder / "rounds" / "1")
