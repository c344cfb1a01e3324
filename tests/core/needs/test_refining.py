"""What refiners of the whole model hold is counted: held against all tensors that are alive while they train."""

import gc
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers_version import is_before

import ecoflap
from ecoflap.core.contracts.events import Progress, StageStarted
from ecoflap.core.needs.disk import disk_needs
from ecoflap.core.needs.memory import Places, memory_needs
from ecoflap.core.needs.sizes import bytes_of_record, bytes_of_refining, largest_block
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry


def alive(*, in_files=False):
    """Add up the memory of all tensors that Python knows, and of their gradients, each once; or what of it is files."""
    gc.collect()
    found = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    found += [one.grad for one in found if one.is_leaf and one.grad is not None]
    here = [one.untyped_storage() for one in found if one.device.type == "cpu"]
    return sum({own.data_ptr(): own.nbytes() for own in here if not in_files or own.filename is not None}.values())


@pytest.fixture
def recipe_of(pico_llama, redraw, pico_llama_folder, plain):
    """A recipe of a model whose weights are most of what its run holds."""

    def recipe_of(dtype, count, **keys):
        config = pico_llama().config
        config.update({"hidden_size": 128, "intermediate_size": 256, "head_dim": 32})
        model = type(pico_llama())(config)
        redraw(model)
        model.to(dtype).save_pretrained(pico_llama_folder, safe_serialization=True)
        source = {"source": str(pico_llama_folder), "compute": "model", **keys}
        refine = [{"use": "distill", "steps": 3, "relative_rate": 1e-3 / (1 + at)} for at in range(count)]
        return plain(model=source, score=None, allocate="uniform", evaluate=None, export=None, refine=refine)

    return recipe_of


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_training_the_whole_model_holds_what_the_plan_says(recipe_of, heard_by, tmp_path, dtype, count):
    recipe, seen = recipe_of(dtype, count), {}

    def look(event):
        if isinstance(event, StageStarted) and event.stage == "refine":
            seen["before"] = alive()
        if isinstance(event, Progress) and event.stage == "refine" and event.done:
            seen["most"] = max(seen.get("most", 0), alive())

    run = ecoflap.run(recipe, folder=tmp_path / "run", registry=heard_by(look))
    assert len((run.folder / "refined.jsonl").read_text().splitlines()) == count
    prepared = prepare(parse_recipe(recipe, registry=load_registry()), load_registry())
    needed = bytes_of_refining(prepared)
    assert memory_needs(prepared, Places.asked(prepared.recipe)).refining == needed + bytes_of_record(prepared)
    assert seen["most"] - seen["before"] == pytest.approx(needed, rel=0.03)


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_training_a_model_that_stays_in_its_files_takes_the_disk_that_the_plan_says(
    recipe_of, heard_by, tmp_path, dtype, count
):
    """While batches are trained on: between them there is not what each block was given, which is little here."""
    if is_before("5"):
        pytest.skip("transformers leaves weights on the disk from version 5 on")
    recipe, seen = recipe_of(dtype, count, offload="disk"), {"files": 0, "blocks": 0}

    def look(event):
        if isinstance(event, Progress) and event.stage == "refine" and event.done:
            seen["files"] = max(seen["files"], alive(in_files=True))
        if isinstance(event, StageStarted) and event.stage == "save":
            files = [*(tmp_path / "run" / "blocks").rglob("*/*.safetensors")]
            seen["blocks"] = sum(one.nbytes for file in files for one in load_file(file).values())

    ecoflap.run(recipe, folder=tmp_path / "run", registry=heard_by(look))
    prepared = prepare(parse_recipe(recipe, registry=load_registry()), load_registry())
    places = Places.asked(prepared.recipe)
    needed = disk_needs(prepared, places)
    assert seen["files"] == pytest.approx(needed.trained, rel=0.03)
    assert needed.meanwhile == needed.blocks + needed.left + needed.trained
    assert needed.left == 4 * prepared.size * (count - 1)
    assert needed.longer == needed.steps
    masks = prepared.size // 8
    assert seen["blocks"] == 2 * (needed.blocks - masks)  # of which one half becomes the model's
    elsewhere = replace(places, offloaded=False)
    assert disk_needs(prepared, elsewhere).trained == 0
    of_blocks = largest_block(prepared.anatomy)
    assert memory_needs(prepared, places).refining < memory_needs(prepared, elsewhere).refining / 3
    assert bytes_of_refining(prepared, in_files=True) == 16 * 128 * 256 + 2 * of_blocks
