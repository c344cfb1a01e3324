"""TorchScript files of one model are the same bytes: twice from one process, from two processes, and from a sweep."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ecoflap
from ecoflap.core.sweep.request import SweepRequest
from ecoflap.core.sweep.sweep import sweep


@pytest.fixture(scope="module")
def folder(pico_llama, pico_tokenizer, tmp_path_factory):
    """A folder with a pico LLaMA and a recipe that exports it."""
    folder = tmp_path_factory.mktemp("same")
    pico_llama(layers=2).save_pretrained(folder / "model", safe_serialization=True)
    pico_tokenizer.save_pretrained(folder / "model")
    recipe = {"version": 1, "model": "./model", "sparsity": 0.5, "prune": "magnitude", "export": "torchscript"}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder


@pytest.fixture(scope="module")
def here(folder):
    """The files of a run in this process."""
    ecoflap.run(folder / "recipe.yaml", folder=folder / "here")
    return files_of(folder / "here")


def files_of(run: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in (run / "exports").rglob("*.pt")}
    assert found
    return found


def test_twice_from_one_process(folder, here):
    """The second run traces where the first has left classes of the same names."""
    ecoflap.run(folder / "recipe.yaml", folder=folder / "again")
    assert files_of(folder / "again") == here


@pytest.mark.slow
def test_from_another_process(folder, here):
    """Its sets and dictionaries are in another order, where one depends on hashes."""
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(ecoflap.__file__).parents[1])}
    command = [sys.executable, "-m", "ecoflap", "run", "recipe.yaml", "--folder", "process"]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert files_of(folder / "process") == here


@pytest.mark.slow
def test_from_a_sweep(folder, here):
    """The run before it in the same process traces a model of another sparsity."""
    (folder / "sweep.yaml").write_text("version: 1\nrecipe: recipe.yaml\ngrid: {sparsity: [0.25, 0.5]}\n")
    swept = sweep(SweepRequest(str(folder / "sweep.yaml"), folder=folder / "swept"), tell=lambda line: None)
    other, same = (files_of(run) for run in swept.finished)
    assert same == here
    assert other.keys() == here.keys()
    assert other != here
