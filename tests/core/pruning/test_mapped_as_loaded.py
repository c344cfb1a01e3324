"""Models that stay in their files, as they are loaded: what these hold twice, and what is put together of several."""

import re
from typing import Any

import pytest
from offloaded import assert_alike, hold_both_copies, in_memory, recipe_of, weights_in
from safetensors import SafetensorError

import ecoflap
from ecoflap.core.errors import RunError

pytest.importorskip("transformers", minversion="5.0", reason="it leaves weights on the disk from version 5 on")
pytest.importorskip("accelerate")


@pytest.mark.parametrize("differ", [0.0, 1.0], ids=["equal", "differ"])
def test_files_that_hold_a_tied_head_too(differ, tmp_path):
    """It is pruned and saved as in memory: once where it is equal to the embedding, else by itself."""
    keys = {"include": ["lm_head"], "prune": "wanda", "export": ["safetensors", "hugging_face"]}
    recipe = recipe_of("llama-tied", tmp_path, **keys)
    hold_both_copies(tmp_path / "dense", differ)
    ecoflap.run(recipe, folder=tmp_path / "disk")
    ecoflap.run(in_memory(recipe), folder=tmp_path / "memory")
    assert_alike(tmp_path / "disk", tmp_path / "memory")
    assert ("lm_head.weight" in weights_in(tmp_path / "disk" / "model")) == bool(differ)
    for file in ("safetensors/model.packed.safetensors", "hugging_face/model.safetensors"):
        written = [(tmp_path / name / "exports" / file).read_bytes() for name in ("disk", "memory")]
        assert written[0] == written[1]
    reports = [ecoflap.read_report(tmp_path / name / "report.json") for name in ("disk", "memory")]
    assert (reports[0].parameters, reports[0].prunable) == (reports[1].parameters, reports[1].prunable)


def test_a_disk_that_fills_while_experts_are_put_together_is_said_of_the_disk(monkeypatch, tmp_path):
    """safetensors only prints the system's error, and transformers writes by it while it loads."""
    from transformers.integrations import accelerate

    def full(weights: Any, file: str) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    recipe = recipe_of("mixtral", tmp_path, score=None, allocate="uniform", prune="magnitude")
    monkeypatch.setattr(accelerate, "save_file", full)
    run = re.escape(str(tmp_path / "run"))
    said = rf"{run}/\.weights-\S* could not be written: the disk is full \(.* free\)\. Make room, then run"
    with pytest.raises(RunError, match=said):
        ecoflap.run(recipe, folder=tmp_path / "run")
    monkeypatch.undo()
    ecoflap.run(recipe, folder=tmp_path / "run")
    ecoflap.run(recipe, folder=tmp_path / "whole")
    assert_alike(tmp_path / "run", tmp_path / "whole")
