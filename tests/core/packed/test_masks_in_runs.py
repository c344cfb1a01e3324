"""Runs whose masks come from elsewhere: from a run, a packed export, a plain file, or a checkpoint's zeros."""

import shutil
import signal

import pytest
import torch
from killing import in_a_fork, killer_in
from safetensors.torch import load_file, save_file

import ecoflap
from ecoflap.core.errors import RecipeError, RunError


@pytest.fixture(scope="module")
def first(pico, tmp_path_factory):
    """A run by magnitude, whose masks the others take."""
    recipe = {
        "version": 1,
        "model": str(pico / "model"),
        "sparsity": 0.37,
        "prune": "magnitude",
        "export": "safetensors",
    }
    return ecoflap.run(recipe, folder=tmp_path_factory.mktemp("first") / "run")


@pytest.fixture(scope="module")
def scored(pico, tmp_path_factory):
    """A run whose scores the others take."""
    recipe = {"version": 1, "model": str(pico / "model"), "sparsity": 0.37, "score": "hill", "prune": "magnitude"}
    return ecoflap.run(recipe, folder=tmp_path_factory.mktemp("scored") / "run")


@pytest.fixture
def killer(tmp_path):
    """An environment for a process that is to kill itself."""
    return killer_in(tmp_path)


@pytest.fixture
def published(first, tmp_path):
    """Writes masks as another tool would publish them; keywords replace masks, None removes one."""

    def published(**changed):
        masks = dict(ecoflap.load_masks(first.folder)) | {
            name.replace("__", "."): mask for name, mask in changed.items()
        }
        file = tmp_path / "published.safetensors"
        save_file({name: mask for name, mask in masks.items() if mask is not None}, file)
        return file

    return published


@pytest.fixture
def recipe(pico):
    def recipe(path, **keys):
        recipe = {"version": 1, "model": str(pico / "model"), "prune": {"use": "from_masks", "path": str(path)}, **keys}
        return {key: value for key, value in recipe.items() if value is not None}

    return recipe


def same_masks(run, other):
    one, two = (ecoflap.load_masks(done.folder) for done in (run, other))
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("of", ["run", "export", "file"])
def test_the_masks_and_their_total_are_those_of_elsewhere(first, published, recipe, tmp_path, of):
    path = {"run": first.folder, "export": first.folder / "exports" / "safetensors"}.get(of) or published()
    run = ecoflap.run(recipe(path), folder=tmp_path / "run")
    assert same_masks(run, first)
    assert {name: layer.keep for name, layer in run.plan.layers.items()} == {
        name: layer.keep for name, layer in first.plan.layers.items()
    }
    # the weights are those of the model, and the first run kept its values too
    assert (run.folder / "model/model.safetensors").read_bytes() == (
        first.folder / "model/model.safetensors"
    ).read_bytes()
    assert run.report.recipe.sparsity is None
    assert run.report.method == "from_masks → from_masks"
    assert ecoflap.run(recipe(path), folder=tmp_path / "run").report.measures == run.report.measures


def test_zeros_of_a_checkpoint_are_masks(first, recipe, tmp_path):
    own = {"prune": {"use": "from_masks", "path": str(first.folder / "model"), "zeros": True}}
    run = ecoflap.run(recipe("", **own), folder=tmp_path / "run")
    weights = load_file(first.folder / "model" / "model.safetensors")
    for name, mask in ecoflap.load_masks(run.folder).items():
        assert torch.equal(mask, weights[name] != 0)


def test_what_another_tool_pruned_is_mended(first, recipe, plain, lasting, killer, tmp_path):
    data = {"calibration": plain()["calibration"], "refine": {"use": "reconstruct", "steps": 3}}
    mend = {"use": "refit", "inner": {"use": "from_masks", "path": str(first.folder)}}
    run = ecoflap.run(recipe("", prune=mend, **data), folder=tmp_path / "run")
    assert same_masks(run, first)
    name = next(iter(run.plan.layers))
    assert not torch.equal(run.model.get_parameter(name), first.model.get_parameter(name))
    killed = in_a_fork(
        killer("event:Progress prune:2"),
        lambda: ecoflap.run(recipe("", prune=mend, **data), folder=tmp_path / "killed"),
    )
    assert killed == -signal.SIGKILL
    ecoflap.run(recipe("", prune=mend, **data), folder=tmp_path / "killed")
    assert lasting(tmp_path / "killed") == lasting(tmp_path / "run")


def test_a_written_sparsity_has_to_be_that_of_the_masks(first, recipe, tmp_path):
    assert same_masks(ecoflap.run(recipe(first.folder, sparsity=0.37), folder=tmp_path / "run"), first)
    size, keep = first.plan.size, first.plan.keep
    with pytest.raises(RecipeError, match=rf"prune: .*keep {keep} of {size} .* this recipe {size // 2}\. Leave"):
        ecoflap.run(recipe(first.folder, sparsity=0.5), folder=tmp_path / "other")


def test_a_pattern_that_the_masks_keep(plain, recipe, tmp_path):
    two_four = ecoflap.run(plain(score=None, sparsity="2:4", evaluate=None, export=None), folder=tmp_path / "first")
    run = ecoflap.run(recipe(two_four.folder, sparsity="2:4"), folder=tmp_path / "run")
    assert same_masks(run, two_four)
    assert {layer.pattern for layer in run.plan.layers.values()} == {"2:4"}


NAME = "model.layers.1.mlp.up_proj.weight"


def test_masks_of_another_model_are_refused_with_all_that_is_wrong(published, recipe, tmp_path):
    path = published(
        model__layers__0__self_attn__q_proj__weight=None,
        model__layers__1__mlp__up_proj__weight=torch.ones(32, 48, dtype=torch.bool),
        model__layers__7__mlp__up_proj__weight=torch.ones(48, 32, dtype=torch.bool),
        lm_head__weight=torch.zeros(64, 32, dtype=torch.bool),
        model__norm__weight=torch.ones(32, dtype=torch.bool),
    )
    with pytest.raises(RecipeError) as caught:
        ecoflap.run(recipe(path), folder=tmp_path / "run")
    unknown, pruned, shape, missing = caught.value.problems
    assert unknown.endswith("Name masks of this model, or take these out")
    assert unknown.startswith(f"prune: {path}: 1 of its 23 masks are of nothing that this model has")
    assert "model.layers.7.mlp.up_proj.weight" in unknown
    assert pruned.startswith(f"prune: {path}: it prunes what is no layer here: lm_head.weight. Take these masks out")
    assert shape == f"prune: {path}: the mask of {NAME} is (32, 48), and the weight (48, 32)"
    assert missing.startswith(f"prune: {path}: it has no mask of model.layers.0.self_attn.q_proj.weight. Did you")
    assert not (tmp_path / "run").exists()


def test_masks_that_are_not_there_are_told_once(recipe, tmp_path):
    with pytest.raises(RecipeError) as caught:
        ecoflap.run(recipe(tmp_path / "nowhere"), folder=tmp_path / "run")
    assert caught.value.problems == (
        f"prune: {tmp_path / 'nowhere'}: no masks are there; name the folder of a run, with masks.safetensors; a "
        "packed export; or a safetensors file of masks",
    )


@pytest.mark.parametrize(
    "keys", [{"allocate": "uniform", "sparsity": 0.5}, {"towers": {"language": {"sparsity": 0.5}}}]
)
def test_masks_are_not_allocated_otherwise(first, recipe, tmp_path, keys):
    with pytest.raises(RecipeError, match=r"(the recipe allocates by uniform: leave allocate|keep \d+ of \d+ weights)"):
        ecoflap.run(recipe(first.folder, **keys), folder=tmp_path / "run")


def test_without_masks_a_sparsity_is_needed_as_ever(pico, tmp_path):
    recipe = {"version": 1, "model": str(pico / "model"), "prune": "magnitude"}
    with pytest.raises(RecipeError, match="sparsity: required, and missing: a share such as"):
        ecoflap.run(recipe, folder=tmp_path / "run")


def test_a_run_does_not_go_on_with_other_masks(first, published, recipe, killer, tmp_path):
    path = published()
    assert in_a_fork(killer("event:Progress prune:1"), lambda: ecoflap.run(recipe(path), folder=tmp_path / "run"))
    masks = ecoflap.load_masks(first.folder)
    published(**{NAME.replace(".", "__"): masks[NAME].flip(0)})
    with pytest.raises(
        RunError, match=r"was begun with another file that it is pruned by \(from_masks\) than is there now"
    ):
        ecoflap.run(recipe(path), folder=tmp_path / "run")


def test_rounds_of_masks_are_to_be_removed_whatever_else_is_written(first, recipe, tmp_path):
    with pytest.raises(
        RecipeError, match=r"rounds: from_masks says itself how much is pruned, all of it at once\. Rem"
    ):
        ecoflap.run(recipe(first.folder, rounds=3), folder=tmp_path / "run")
    with pytest.raises(RecipeError) as caught:
        ecoflap.run(recipe(first.folder, rounds=3, sparsity=0.37), folder=tmp_path / "run")
    assert caught.value.problems == ("prune: masks are pruned at once: remove rounds:",)
    with pytest.raises(RecipeError, match=r"each prunes a share of sparsity, which is not written\. Write it\."):
        ecoflap.run(recipe(first.folder, rounds=3, prune="magnitude"), folder=tmp_path / "run")


def test_masks_of_a_deeper_model_are_told_without_a_name_that_is_taken(published, recipe, tmp_path):
    deeper = {f"model__layers__{i}__mlp__up_proj__weight": torch.ones(48, 32, dtype=torch.bool) for i in (7, 8)}
    with pytest.raises(RecipeError) as caught:
        ecoflap.run(recipe(published(**deeper)), folder=tmp_path / "run")
    (told,) = caught.value.problems
    assert told.endswith(
        "(model.layers.7.mlp.up_proj.weight, model.layers.8.mlp.up_proj.weight). Name masks of this model, or take "
        "these out"
    )


@pytest.fixture
def sibling(pico, tmp_path):
    """A model with the shapes of the other, and with other numbers."""
    folder = tmp_path / "sibling"
    shutil.copytree(pico / "model", folder)
    file = folder / "model.safetensors"
    save_file({name: 2 * weight for name, weight in load_file(file).items()}, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize("takes", ["run", "export", "zeros", "plan", "scores"])
def test_what_another_model_had_is_taken_over_with_a_warning(first, scored, recipe, sibling, pico, tmp_path, takes):
    taken = {
        "run": {"prune": {"use": "from_masks", "path": str(first.folder)}},
        "export": {"prune": {"use": "from_masks", "path": str(first.folder / "exports" / "safetensors")}},
        "zeros": {"prune": {"use": "from_masks", "path": str(first.folder / "model"), "zeros": True}},
        "plan": {"prune": "magnitude", "sparsity": 0.37, "allocate": {"use": "from_file", "path": str(first.folder)}},
        "scores": {"prune": "magnitude", "sparsity": 0.37, "score": {"use": "from_run", "run": str(scored.folder)}},
    }[takes]
    where = {"plan": "allocate", "scores": "score"}.get(takes, "prune")
    moved = shutil.copytree(pico / "model", tmp_path / "moved")
    for model in (pico / "model", moved):
        own = ecoflap.run(recipe("", model=str(model), **taken), folder=tmp_path / f"own-{model.name}")
        assert own.report.warnings == ()
    other = ecoflap.run(recipe("", model=str(sibling), **taken), folder=tmp_path / "other")
    (said,) = other.report.warnings
    run = (scored if takes == "scores" else first).folder
    assert said.startswith(f"{where}: {run} is a run of a model in other files, {pico / 'model'}, and from_")
    assert said.endswith(f"If it is another model and not meant, name a run of {sibling}")


@pytest.mark.parametrize("damaged", ["fingerprints.json", "recipe.yaml"])
def test_nothing_is_said_of_a_run_whose_record_of_its_model_cannot_be_read(first, recipe, sibling, tmp_path, damaged):
    edited = shutil.copytree(first.folder, tmp_path / "edited")
    with (edited / damaged).open("a") as file:
        file.write("# by hand\n")
    assert ecoflap.run(recipe(edited, model=str(sibling)), folder=tmp_path / "run").report.warnings == ()


def test_nothing_is_said_of_a_model_in_memory_that_files_cannot_be_held_against(first, recipe, pico, tmp_path):
    model = ecoflap.run(recipe(first.folder), folder=tmp_path / "read").model
    run = ecoflap.run(recipe(first.folder, model=None), model=model, folder=tmp_path / "run")
    assert run.report.warnings == ()
