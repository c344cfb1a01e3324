"""A pruned model, or masks, of another run are told from a run's own, though every list and seal of them holds."""

import shutil

import pytest
from sealed_by_hand import edit_sealed

import ecoflap
from ecoflap.core.errors import EcoflapError, FormatError, RunError
from ecoflap.core.record.report import read_report
from ecoflap.core.verifying.verify import verify

MORE = ["export=[safetensors, hugging_face]"]
OTHERS = {"model": ["model/SHA256SUMS"], "masks.safetensors": ["masks.safetensors"]}


@pytest.fixture(scope="module")
def runs(pico, tmp_path_factory):
    """Two runs of the same budgets, whose pruners choose other weights."""
    text = {"use": "text", "path": str(pico / "text.jsonl"), "sequence_length": 16}
    recipe = {
        "version": 1,
        "model": str(pico / "model"),
        "calibration": {**text, "samples": 2, "batch_size": 2},
        "sparsity": 0.5,
        "score": {"use": "magnitude"},
        "export": "safetensors",
    }
    folder = tmp_path_factory.mktemp("two")
    pruners = ("magnitude", "wanda")
    return {name: ecoflap.run({**recipe, "prune": name}, folder=folder / name).folder for name in pruners}


@pytest.fixture
def folder(runs, tmp_path):
    return shutil.copytree(runs["magnitude"], tmp_path / "run")


def take(runs, folder, name):
    """Put what another run has in the place of the folder's own."""
    theirs = runs["wanda"] / name
    if theirs.is_file():
        shutil.copy(theirs, folder / name)
    else:
        shutil.rmtree(folder / name)
        shutil.copytree(theirs, folder / name)


@pytest.mark.parametrize("taken", [["model"], ["masks.safetensors"], ["model", "masks.safetensors"]], ids="+".join)
def test_what_another_run_pruned_is_told(runs, folder, taken):
    for name in taken:
        take(runs, folder, name)
    uses = (
        lambda: verify(folder),
        lambda: ecoflap.export_run(folder, "hugging_face"),
        lambda: ecoflap.run(folder / "recipe.yaml", folder=folder, set_=MORE),
    )
    for use in uses:
        with pytest.raises(FormatError, match=r"is not what this run wrote: it is damaged, or another run's") as told:
            use()
        named = [problem for problem in told.value.problems if "is not what this run wrote" in problem]
        assert len(named) == len(taken)
        for problem, name in zip(named, taken, strict=True):
            assert problem.startswith(str(folder / OTHERS[name][0]))
            assert "run the recipe again, which prunes anew by the same plan" in problem
    assert not (folder / "exports" / "hugging_face").exists()


def test_by_the_way_out_it_is_pruned_anew(runs, folder):
    take(runs, folder, "model")
    shutil.rmtree(folder / "model")
    ecoflap.run(folder / "recipe.yaml", folder=folder)
    verify(folder)
    name = "model/model.safetensors"
    assert (folder / name).read_bytes() == (runs["magnitude"] / name).read_bytes()


def test_a_run_of_an_earlier_version_knows_only_its_lists(runs, folder):
    """Its fingerprints say nothing of the model, and it is exported as it always was."""
    edit_sealed(folder / "fingerprints.json", lambda known: {key: known[key] for key in known if key != "pruned model"})
    verify(folder)
    ecoflap.export_run(folder, "hugging_face")


def test_the_recipe_of_another_run_is_told_before_a_report_or_a_card_says_it(runs, folder):
    take(runs, folder, "recipe.yaml")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "log.jsonl"}
    told = r"recipe\.yaml is not the recipe that report\.json tells of: prune\.use: wanda vs magnitude \(there vs in"
    with pytest.raises(EcoflapError, match=told):
        verify(folder)
    with pytest.raises(RunError, match=told):
        ecoflap.export_run(folder, "hugging_face")
    with pytest.raises(RunError, match=told):
        ecoflap.run(folder / "recipe.yaml", folder=folder)
    assert {path: path.read_bytes() for path in before} == before
    assert not (folder / "exports" / "hugging_face").exists()


@pytest.mark.parametrize("name", ["safetensors.json", "safetensors/manifest.json"])
def test_a_damaged_export_is_told_before_another_is_written(folder, name):
    raw = (folder / "exports" / name).read_bytes()
    (folder / "exports" / name).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(EcoflapError, match=name.replace(".", r"\.")):
        ecoflap.export_run(folder, "hugging_face")
    assert not (folder / "exports" / "hugging_face").exists()
    ecoflap.export_run(folder, "safetensors", overwrite=True)  # as the message advises
    ecoflap.export_run(folder, "hugging_face")
    verify(folder)


def test_bytes_of_an_export_are_those_of_its_record(folder):
    """Its list may be damaged, of which another export reads nothing; what somebody put beside it is not its own."""
    known = read_report(folder / "report.json").bytes
    sums = folder / "exports" / "safetensors" / "SHA256SUMS"
    sums.write_bytes(sums.read_bytes()[:70])
    (folder / "exports" / "safetensors" / "mine.bin").write_bytes(bytes(1000))
    ecoflap.export_run(folder, "hugging_face")
    now = read_report(folder / "report.json").bytes
    assert {name: now[name] for name in known} == known
    assert now["hugging_face"] == (folder / "exports" / "hugging_face" / "model.safetensors").stat().st_size
