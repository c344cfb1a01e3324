"""A run of which an export is refused: what else it makes, what it says, and how it comes to its end."""

import shlex

import pytest

import ecoflap
from ecoflap.core.errors import RunError
from ecoflap.core.export.stage import ended_by
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.report import read_report

EXPORTED = ["safetensors", {"use": "letters", "letter": "x"}, "hugging_face", {"use": "letters", "letter": "y"}]
"""Of which those by ``letters`` are refused."""


@pytest.fixture(autouse=True)
def refusing(letters, monkeypatch):
    """Have ``letters`` refuse two of them."""
    import letters_plugin

    write = letters_plugin.Letters.__call__

    def refuse(self, pruned, folder):
        if self.letter in "xy":
            raise ecoflap.EcoflapError(f"there is no {self.letter} in cheese.")
        return write(self, pruned, folder)

    monkeypatch.setattr(letters_plugin.Letters, "__call__", refuse)


@pytest.fixture
def refused(plain, letters, tmp_path):
    """The folder of such a run, and what it said."""
    with pytest.raises(RunError) as told:
        ecoflap.run(plain(export=EXPORTED), folder=tmp_path / "run", registry=letters)
    return tmp_path / "run", told.value


def _exported(folder):
    """Give the bytes of all exports, by their paths, with the times at which they were written."""
    files = [path for path in (folder / "exports").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_all_that_is_refused_is_told_at_once_with_the_way_on_and_the_others_are_there(refused):
    folder, error = refused
    way = f"All else of the run is kept. `ecoflap export {folder} --to letters --set …` writes it by other parameters"
    recipe = folder / "recipe.yaml"
    assert error.problems == (
        f"export letters: there is no x in cheese. {way}",
        f"export letters-2: there is no y in cheese. {way}; `ecoflap run {recipe} --folder {folder} --set export=…` "
        f"ends the run with what you name there",
    )
    assert {path.name for path in (folder / "exports").iterdir() if path.is_dir()} == {"safetensors", "hugging_face"}
    assert not (folder / "report.json").exists()


def test_what_a_shell_would_take_apart_is_quoted(plain, letters, tmp_path):
    folder = RunFolder(tmp_path / "it's my run")
    recipe = parse_recipe(plain(export=["onnx"]), registry=letters)
    (told,) = ended_by(folder, recipe, {"onnx": ecoflap.EcoflapError("no view")}).problems
    export, run = (shlex.split(command) for command in told.split("`")[1::2])
    assert export == ["ecoflap", "export", str(folder.path), "--to", "onnx", "--set", "…"]
    assert run == ["ecoflap", "run", str(folder.recipe), "--folder", str(folder.path), "--set", "export=…"]


def test_a_recipe_that_names_code_goes_on_by_leave_to_run_it(plain, letters, tmp_path):
    folder, mine = RunFolder(tmp_path), "ecoflap.plugins.pruners.magnitude:Magnitude"
    recipe = parse_recipe(plain(export=["onnx"], prune=mine), registry=letters.trusting(True))
    (told,) = ended_by(folder, recipe, {"onnx": ecoflap.EcoflapError("no view")}).problems
    _, run = told.split("`")[1::2]
    assert run == f"{folder.command} --allow-code --set export=…"


def test_a_full_disk_asks_for_no_other_export(plain, letters, tmp_path):
    folder = RunFolder(tmp_path)
    recipe = parse_recipe(plain(export=["safetensors", "onnx"]), registry=letters)
    full, other = RunError("w could not be written: the disk is full. Make room."), ecoflap.EcoflapError("no view")
    told = ended_by(folder, recipe, {"safetensors": full})
    assert told.problems == (
        "export safetensors: w could not be written: the disk is full. Make room. All else of the run is kept",
    )
    first, second = ended_by(folder, recipe, {"onnx": other, "safetensors": full}).problems
    assert first.startswith("export onnx: no view. All else")
    assert first.endswith("ends the run with what you name there")
    assert second == told.problems[0]


def test_without_what_was_refused_the_run_ends_and_makes_nothing_again(refused, plain, letters, lasting, tmp_path):
    folder, _ = refused
    before = _exported(folder)
    done = ecoflap.run(
        folder / "recipe.yaml", folder=folder, set_=["export=[safetensors, hugging_face]"], registry=letters
    )
    assert list(done.report.exports) == ["safetensors", "hugging_face"]
    assert _exported(folder) == before
    unbroken = plain(export=["safetensors", "hugging_face"])
    whole = lasting(ecoflap.run(unbroken, folder=tmp_path / "unbroken").folder)
    same = [name for name in whole if name.endswith(".safetensors") or not name.startswith("exports")]
    assert len(same) > 5
    now = lasting(folder)
    assert {name: now[name] for name in same} == {name: whole[name] for name in same}


def test_an_export_by_other_parameters_takes_the_place_of_a_refused_one(refused, letters, ecoflap_command):
    folder, _ = refused
    before = _exported(folder)
    for letter, name in (("a", "letters"), ("b", "letters-2")):
        code, out, err = ecoflap_command("export", folder, "--to", "letters", "--set", f"letter={letter}")
        assert code == 0, err
        assert f"files: {folder / 'exports' / name}" in out
        assert f"`ecoflap run {folder / 'recipe.yaml'} --folder {folder}` writes {folder / 'report.json'}" in out
        assert not (folder / "report.json").exists()
    written = _exported(folder)
    assert before.items() <= written.items()
    code, _, err = ecoflap_command("run", folder / "recipe.yaml", "--folder", folder)
    assert code == 0, err
    assert list(read_report(folder / "report.json").exports) == ["safetensors", "letters", "hugging_face", "letters-2"]
    assert _exported(folder) == written


def test_what_is_there_of_the_same_exporter_keeps_its_place(refused, letters):
    folder, _ = refused
    ecoflap.export_run(folder, {"use": "safetensors"}, overwrite=True)
    assert [part["use"] for part in RunFolder(folder).read_recipe()["export"]] == [
        "safetensors", "letters", "hugging_face", "letters"
    ]  # fmt: skip
    ecoflap.export_run(folder, "hugging_face", registry=letters, overwrite=True)
    assert len(RunFolder(folder).read_recipe()["export"]) == len(EXPORTED)


def test_an_export_knows_the_same_of_the_run_before_and_after_its_report(refused, letters, monkeypatch):
    import letters_plugin

    folder, _ = refused
    given, write = [], letters_plugin.Letters.__call__

    def noting(self, pruned, inside):
        given.append(pruned.provenance)
        return write(self, pruned, inside)

    monkeypatch.setattr(letters_plugin.Letters, "__call__", noting)
    ecoflap.export_run(folder, {"use": "letters", "letter": "a"}, registry=letters)
    done = ecoflap.run(folder / "recipe.yaml", folder=folder, set_=["export=[safetensors]"], registry=letters)
    ecoflap.export_run(folder, {"use": "letters", "letter": "a"}, registry=letters, overwrite=True)
    before, after = given
    assert before.measures == after.measures == done.report.measures.model_dump()
    assert (before.towers, before.fingerprint) == (after.towers, after.fingerprint)


HALVES = {
    "and writes": lambda pruned: pruned.model.half(),
    "and is refused": lambda pruned: pruned.model.half().no_such_thing,
    "or leaves a hook": lambda pruned: pruned.model.register_forward_hook(lambda module, given, output: None),
}


@pytest.mark.parametrize("how", HALVES)
def test_an_exporter_that_changes_the_model_is_refused_and_none_behind_it_writes_that(
    plain, letters, monkeypatch, tmp_path, how
):
    import letters_plugin

    own = letters_plugin.Letters.__call__

    def change(self, pruned, folder):
        HALVES[how](pruned)
        return own(self, pruned, folder)

    recipe = plain(export=["safetensors", {"use": "letters", "letter": "e"}, "hugging_face"])
    with monkeypatch.context() as changed:
        changed.setattr(letters_plugin.Letters, "__call__", change)
        with pytest.raises(RunError) as told:
            ecoflap.run(recipe, folder=tmp_path / "run", registry=letters)
    assert any("letters has left the model, which others look at next, otherwise" in one for one in told.value.problems)
    assert "export hugging_face: it was not begun, for letters before it" in told.value.problems[-1]
    assert {path.name for path in (tmp_path / "run" / "exports").iterdir() if path.is_dir()} == {"safetensors"}
    done = ecoflap.run(recipe, folder=tmp_path / "run", registry=letters)
    whole = ecoflap.run(recipe, folder=tmp_path / "whole", registry=letters)
    ours, theirs = (
        {name: contents for name, (contents, _) in _exported(folder).items() if name.endswith(".safetensors")}
        for folder in (done.folder, whole.folder)
    )
    assert ours == theirs
