"""What refiners of the whole model hold is counted: held against all tensors that are alive while they train."""

import gc

import pytest
import torch

import ecoflap
from ecoflap.core.contracts.events import Progress, StageStarted
from ecoflap.core.needs.memory import Places, memory_needs
from ecoflap.core.needs.sizes import bytes_of_record, bytes_of_refining
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry
from ecoflap.core.run.prepare import prepare


def alive():
    """Add up the memory of all tensors that Python knows, and of their gradients, each once."""
    gc.collect()
    found = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    found += [one.grad for one in found if one.is_leaf and one.grad is not None]
    storages = {(own := one.untyped_storage()).data_ptr(): own.nbytes() for one in found if one.device.type == "cpu"}
    return sum(storages.values())


@pytest.fixture
def recipe_of(pico_llama, redraw, pico_llama_folder, plain):
    """A recipe of a model whose weights are most of what its run holds."""

    def recipe_of(dtype, count):
        config = pico_llama().config
        config.update({"hidden_size": 128, "intermediate_size": 256, "head_dim": 32})
        model = type(pico_llama())(config)
        redraw(model)
        model.to(dtype).save_pretrained(pico_llama_folder, safe_serialization=True)
        source = {"source": str(pico_llama_folder), "compute": "model"}
        refine = [{"use": "distill", "steps": 3, "relative_rate": 1e-3 / (1 + at)} for at in range(count)]
        return plain(model=source, score=None, allocate="uniform", evaluate=None, export=None, refine=refine)

    return recipe_of


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [1, 2])
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
