"""A run goes on where the model lies elsewhere than when it was begun, to the bits of one that was not cut off."""

import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from killing import in_a_fork, killer_in
from offloaded import assert_alike, recipe_of

import ecoflap
from ecoflap.core.errors import RunError

pytest.importorskip("transformers", minversion="5.0", reason="it leaves weights on the disk from version 5 on")
pytest.importorskip("accelerate")

SCORING, TRYING, FIRST = "event:Progress score:3", "event:Progress allocate:1", "rename:blocks/000.safetensors:"
SAVING, SAVED = "rename:run/masks.safetensors:before", "rename:run/model:after"
TRIED = {"allocate": {"use": "best_of", "of": ["uniform", "ecoflap"]}}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A recipe of a llama in memory, and its unbroken run, without and with rounds and trials."""
    made: dict[bool, tuple[dict[str, Any], Path]] = {}
    for is_tried in (False, True):
        folder = tmp_path_factory.mktemp("unbroken")
        recipe = recipe_of("llama", folder, **({**TRIED, "rounds": 2} if is_tried else {}))
        made[is_tried] = recipe, ecoflap.run(offloaded(recipe, None), folder=folder / "run").folder
    return made


def offloaded(recipe: dict[str, Any], offload: str | None) -> dict[str, Any]:
    return {**recipe, "model": {**recipe["model"], "offload": offload}}


def killed(recipe: dict[str, Any], point: str, folder: Path) -> None:
    run = partial(ecoflap.run, recipe, folder=folder)
    assert in_a_fork(killer_in(folder.parent)(point), run) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("before", "after", "point", "is_tried"),
    [
        (None, "disk", SCORING, False),
        pytest.param(None, "disk", FIRST + "before", False, marks=pytest.mark.slow),
        pytest.param(None, "disk", SAVED, False, marks=pytest.mark.slow),
        pytest.param(None, "disk", TRYING, True, marks=pytest.mark.slow),
        pytest.param("disk", "cpu", SCORING, True, marks=pytest.mark.slow),
        ("disk", "cpu", FIRST + "before", False),  # its weights were written before
        ("disk", None, SAVED, True),
        pytest.param("cpu", None, FIRST + "after", False, marks=pytest.mark.slow),
        (None, "cpu", SAVING, True),
    ],
)
def test_it_goes_on_to_the_same_bits(before, after, point, is_tried, unbroken, tmp_path):
    recipe, alone = unbroken[is_tried]
    folder = tmp_path / "run"
    killed(offloaded(recipe, before), point, folder)
    run = ecoflap.run(offloaded(recipe, after), folder=folder)
    assert run.recipe.model.offload == after
    assert_alike(folder, alone)
    for name in ("scores.jsonl", "plan.json"):
        assert (folder / name).read_bytes() == (alone / name).read_bytes()
    assert not [*folder.rglob("blocks"), *folder.rglob(".*.partial")]


@pytest.mark.parametrize(
    ("before", "after", "point", "is_tried"),
    [
        (None, "disk", FIRST + "after", False),
        pytest.param("disk", None, FIRST + "after", True, marks=pytest.mark.slow),  # of a trial in the first round
        ("disk", "cpu", "rename:run/plan.json:before", True),  # behind the first round
        ("cpu", "disk", SAVING, False),
    ],
)
def test_finished_blocks_are_not_read_by_the_other_and_stay(before, after, point, is_tried, unbroken, tmp_path):
    recipe, alone = unbroken[is_tried]
    folder = tmp_path / "run"
    killed(offloaded(recipe, before), point, folder)
    there = {file: file.read_bytes() for file in folder.rglob("*.safetensors")}
    said = (
        rf"was begun with model\.offload {before or 'not set'}, and has finished blocks, which model\.offload {after}"
    )
    with pytest.raises(RunError, match=said.replace("None", "not set")):
        ecoflap.run(offloaded(recipe, after), folder=folder)
    assert {file: file.read_bytes() for file in folder.rglob("*.safetensors")} == there
    ecoflap.run(offloaded(recipe, before), folder=folder)
    assert_alike(folder, alone)
