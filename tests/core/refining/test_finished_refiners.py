"""What finished refiners left is taken up by a run of the same ones, and by no other."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from ecoflap.core.contracts.events import Refined
from ecoflap.core.errors import FormatError
from ecoflap.core.ranks.ranks import ALONE
from ecoflap.core.refining.finished_refiners import FORMAT, FinishedRefiners
from ecoflap.core.refining.kept_steps import taken
from ecoflap.core.sealing.sealed import check_sealed, sealed, write_sealed

BETTER = {"training": 1.0, "held_out": 1.5}
DONE = [
    Refined("the model", "distill", {"training": 2.0, "held_out": 2.5}, BETTER, True, 3.0, 0),
    Refined("the model", "distill", BETTER, {}, False, 4.0, 1),
]


def parameters(start):
    return [nn.Parameter(torch.arange(6.0).reshape(2, 3) + start), nn.Parameter(torch.arange(2.0) - start)]


@pytest.fixture
def finished(tmp_path):
    refiners = [{"use": "distill", "steps": 4}, {"use": "distill", "steps": 8}, {"use": "distill", "steps": 16}]
    return FinishedRefiners(tmp_path / "refined.safetensors", refiners, "a plan", ALONE)


@pytest.mark.parametrize("is_mapped", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_weights_and_what_was_done_come_back(finished, count, is_mapped):
    finished = replace(finished, is_mapped=is_mapped)
    finished.keep(DONE[:count], parameters(7))
    now = parameters(0)
    assert finished.take_up(now) == DONE[:count]
    assert all(map(torch.equal, now, parameters(7)))
    check_sealed(finished.file, FORMAT)


def test_a_file_of_before_numbers_were_kept_is_taken_up(finished):
    told = [{key: one for key, one in asdict(done).items() if key != "number"} for done in DONE]
    manifest = {"refiners": list(finished.refiners[:2]), "plan": "a plan", "done": told}
    weights = {kept.written(): sealed(one) for kept, one in taken(parameters(7)).items()}
    write_sealed(finished.file, FORMAT, json.dumps(manifest), weights)
    assert finished.take_up(parameters(0)) == DONE


def test_nothing_is_taken_up_where_nothing_is_kept(finished):
    now = parameters(0)
    assert finished.take_up(now) == []
    assert all(map(torch.equal, now, parameters(0)))


@pytest.mark.parametrize(
    "change",
    [
        {"plan": "another"},
        {"refiners": [{"use": "distill", "steps": 5}, {"use": "distill", "steps": 8}]},
        {"refiners": [{"use": "distill", "steps": 4}]},
    ],
)
def test_what_other_refiners_or_another_plan_left_is_not_taken_up(finished, change):
    finished.keep(DONE, parameters(7))
    now = parameters(0)
    assert replace(finished, **change).take_up(now) == []
    assert all(map(torch.equal, now, parameters(0)))


def test_refiners_behind_those_that_are_finished_may_be_others(finished):
    finished.keep(DONE[:1], parameters(7))
    assert replace(finished, refiners=finished.refiners[:1]).take_up(parameters(0)) == DONE[:1]


@pytest.mark.parametrize("is_mapped", [False, True])
def test_a_damaged_file_is_refused_with_the_way_out(finished, is_mapped):
    finished = replace(finished, is_mapped=is_mapped)
    finished.keep(DONE, parameters(7))
    content = bytearray(finished.file.read_bytes())
    content[-3] ^= 4
    finished.file.write_bytes(content)
    told = r"refined\.safetensors.*is damaged.*Delete it, and the refiner begins anew"
    with pytest.raises(FormatError, match=told):
        finished.take_up(parameters(0))
    with pytest.raises(FormatError, match="is damaged"):
        check_sealed(finished.file, FORMAT)


def written(finished, manifest):
    write_sealed(finished.file, "ecoflap.refined", manifest, {"0 weight": sealed(torch.zeros(2, 3))})


@pytest.mark.parametrize("manifest", ['{"done": 3}', '{"done": [1], "refiners": [], "plan": "a plan"}', "{}"])
def test_a_sealed_file_of_somebody_elses_making_is_left_alone(finished, manifest):
    written(finished, manifest)
    now = parameters(0)
    assert finished.take_up(now) == []
    assert all(map(torch.equal, now, parameters(0)))


@pytest.mark.parametrize("done", ["1", "{}", '{"name": "the model"}'])
def test_one_that_does_not_say_what_a_refiner_did_is_refused(finished, done):
    written(finished, f'{{"done": [{done}], "refiners": [{{"use": "distill", "steps": 4}}], "plan": "a plan"}}')
    with pytest.raises(FormatError, match=r"of a finished refiner its manifest has not after, before.*Delete it"):
        finished.take_up(parameters(0))


def test_one_whose_manifest_is_none_is_refused(finished):
    written(finished, "[1]")
    with pytest.raises(FormatError, match=r"its manifest .*Delete it"):
        finished.take_up(parameters(0))
