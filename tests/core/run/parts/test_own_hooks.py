"""Hooks that transformers leaves in a model, the first time that it is asked for hidden states, are nobody's mistake.

LLaVA's vision tower asks for them in its own forward. A run that goes on, and an export, may be the first to run that.
"""

import shutil

import pytest
from pico_llava import recipe_of_llava, save_llava
from table import GENERIC_ROWS

import ecoflap

pytestmark = pytest.mark.skipif("llava" not in GENERIC_ROWS, reason="transformers here is too old for it")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A recipe of a pico LLaVA without evaluators or exports, and the folder of its run."""
    folder = tmp_path_factory.mktemp("llava")
    save_llava(folder)
    recipe = recipe_of_llava(folder / "model", folder / "images")
    return recipe, ecoflap.run(recipe, folder=folder / "run").folder


def test_an_evaluator_is_not_blamed_for_them(pruned, tmp_path):
    recipe, folder = pruned
    data = {name: value for name, value in recipe["calibration"].items() if name != "batch_size"}
    asked = {**recipe, "evaluate": {"use": "vqa", "data": data}}
    run = ecoflap.run(asked, folder=shutil.copytree(folder, tmp_path / "run"), accept_change=True)
    assert "vqa" in run.report.measures.pruned


def test_an_exporter_is_not_blamed_for_them(pruned, tmp_path):
    pytest.importorskip("onnx")
    onnx = {"use": "onnx", "views": ["vision"]}
    written = ecoflap.export_run(shutil.copytree(pruned[1], tmp_path / "run"), onnx)
    assert any(written.rglob("*.onnx"))
