"""Where a comparison may be written: nowhere that a run, or a list of files, says what is there."""

import pytest

from ecoflap.core.compare.comparison import compared
from ecoflap.core.compare.page import write_comparison
from ecoflap.core.errors import RunError
from ecoflap.core.sealing.sums import write_sums

pytestmark = pytest.mark.usefixtures("drawing")


@pytest.mark.parametrize("inside", [".", "model", "exports", "exports/onnx", "blocks", "rounds", "dense", "scores"])
@pytest.mark.parametrize("more", [(), ("--overwrite",)], ids=["", "overwrite"])
def test_it_is_not_written_into_a_run(made, ecoflap_command, inside, more):
    run = made("a")
    out = run / inside
    out.mkdir(parents=True, exist_ok=True)
    before = files_in(run)
    code, _, err = ecoflap_command("compare", run, "--out", out, *more)
    assert code == 2
    told = "is a run's folder, whose own report" if inside == "." else f"is inside {inside.split('/')[0]}/ of the run"
    assert told in err
    assert "Name another folder with --out" in err
    assert files_in(run) == before
    with pytest.raises(RunError, match="Name another folder with --out"):
        write_comparison(compared([run]), out, "t")
    assert files_in(run) == before


def test_it_is_not_written_among_files_that_are_listed(made, tmp_path, ecoflap_command):
    listed = tmp_path / "deployed"
    listed.mkdir()
    (listed / "model.safetensors").write_bytes(b"x")
    write_sums(listed)
    before = files_in(listed)
    code, _, err = ecoflap_command("compare", made("a"), "--out", listed, "--overwrite")
    assert code == 2
    assert "deployed has a SHA256SUMS, on which a comparison's files are not. Name another folder with --out" in err
    assert files_in(listed) == before


def test_a_file_is_refused_before_the_table_is_printed(made, tmp_path, ecoflap_command):
    (tmp_path / "mine").write_text("mine")
    code, out, err = ecoflap_command("compare", made("a"), "--out", tmp_path / "mine", "--overwrite")
    assert (code, out) == (2, "")
    assert "mine is a file; a comparison is a folder of files. Name another folder with --out" in err


def test_it_is_written_into_a_folder_of_somebodys_beside_the_runs_own(made, ecoflap_command):
    run = made("a")
    assert ecoflap_command("compare", run, "--out", run / "mine")[0] == 0
    assert (run / "mine" / "report.html").is_file()


def files_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
