"""Parts that a function makes: what they have from it tells them apart, as a parameter does."""

import pytest

import ecoflap
from ecoflap import EcoflapError, Pruned, select

DATALESS = {"calibration": None, "evaluate": None, "export": None}


def pruner_beyond(least):
    class Local:
        def __call__(self, weight, seen, budget, layer):
            mask = select((weight - least).abs(), budget)
            return Pruned(mask, weight * mask)

    return Local


def scorer_rising_by(step):
    class Local:
        data = False
        aggregate = "sum"

        def __call__(self, replay, layers):
            yield from ((layer.name, 1.0 + step * number) for number, layer in enumerate(layers))

    return Local


def test_another_one_is_not_taken_for_the_one_that_a_folder_was_begun_with(plain, tmp_path):
    keys = {**DATALESS, "score": None, "allocate": "uniform"}
    ecoflap.run(plain(**keys, prune=pruner_beyond(0.0)), folder=tmp_path / "run")
    again = ecoflap.run(plain(**keys, prune=pruner_beyond(0.0)), folder=tmp_path / "run")
    assert again.report.sparsity == 0.5
    with pytest.raises(EcoflapError, match=r"was begun with another .*:pruner_beyond\.<locals>\.Local"):
        ecoflap.run(plain(**keys, prune=pruner_beyond(0.1)), folder=tmp_path / "run")


def test_scores_of_another_one_are_not_taken_over(plain, tmp_path):
    keys = {**DATALESS, "allocate": "ecoflap", "prune": "magnitude"}
    first = ecoflap.run(plain(**keys, score=scorer_rising_by(0.0)), folder=tmp_path / "first")
    alike = plain(**keys, score=scorer_rising_by(0.0), reuse=[str(tmp_path / "first")])
    assert (ecoflap.run(alike, folder=tmp_path / "alike").folder / "taken_over.jsonl").is_file()
    other = ecoflap.run({**alike, "score": scorer_rising_by(1.0)}, folder=tmp_path / "other")
    assert not (other.folder / "taken_over.jsonl").is_file()
    assert other.plan.layers != first.plan.layers
