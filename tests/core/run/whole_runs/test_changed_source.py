"""A model whose files change between being hashed and being loaded: a run would be recorded as one of other weights."""

import os
import shutil

import pytest
from offloaded import weights_in
from safetensors.torch import load_file, save
from transformers_version import OFFLOADS

import ecoflap
from ecoflap.core.contracts.events import StageStarted
from ecoflap.core.errors import RunError


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("offload", OFFLOADS)
def test_it_is_refused_and_the_run_goes_on_where_it_is_put_back(plain, heard_by, tmp_path, offload, hidden):
    source = shutil.copytree(plain()["model"], tmp_path / "model")
    model = {"source": str(source), **({"offload": offload} if offload else {})}
    recipe = plain(model=model, score=None, allocate="uniform", evaluate=None, export=None)
    ecoflap.run(recipe, folder=tmp_path / "whole")
    file = source / "model.safetensors"
    original, stamp = file.read_bytes(), file.stat()

    def write(contents, *, at_its_old_time):
        with file.open("r+b") as stream:
            stream.write(contents)
        if at_its_old_time:
            os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))

    def change(event):
        if isinstance(event, StageStarted) and event.stage == "load":
            others = {name: 3 * tensor for name, tensor in load_file(file).items()}
            write(save(others, {"format": "pt"}), at_its_old_time=hidden)

    with pytest.raises(RunError, match=r"model\.safetensors changed while the model was hashed and loaded, so that"):
        ecoflap.run(recipe, folder=tmp_path / "run", registry=heard_by(change))
    write(original, at_its_old_time=True)
    ecoflap.run(recipe, folder=tmp_path / "run")
    ours, theirs = (weights_in(tmp_path / name / "model") for name in ("run", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
