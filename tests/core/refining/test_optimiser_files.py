"""What an optimiser keeps lies on the disk, whichever it is, and does what it does in memory."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from ecoflap.core.disk.on_disk import lies_on_disk
from ecoflap.core.refining.optimiser_files import state_on_disk

MAKE = {
    "adam": lambda weights: torch.optim.Adam(weights, amsgrad=True),
    "fused": lambda weights: torch.optim.Adam(weights, fused=True),
    "momentum": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
    "adafactor": torch.optim.Adafactor,
}


def trained(make, around):
    weights = [nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4)), nn.Parameter(torch.linspace(1, 2, 5))]
    optimiser = make(weights)
    with around(optimiser):
        for number in range(3):
            optimiser.zero_grad()
            sum((one.sin() * (number + 1)).sum() for one in weights).backward()
            optimiser.step()
    return optimiser, weights


@pytest.mark.parametrize("name", MAKE)
def test_its_steps_are_those_of_one_in_memory(tmp_path, name):
    _, own = trained(MAKE[name], nullcontext)
    optimiser, weights = trained(MAKE[name], lambda optimiser: state_on_disk(optimiser, tmp_path))
    assert all(map(torch.equal, weights, own))
    kept = [value for state in optimiser.state.values() for value in state.values()]
    assert {lies_on_disk(value) for value in kept if value.dim() > 1} == {True}
    assert not any(lies_on_disk(value) for value in kept if value.dim() < 2)
    assert list(tmp_path.iterdir()) == []
    assert "step" not in vars(optimiser)


def test_a_scheduler_goes_on_and_finds_its_own_step_again(tmp_path):
    weight = nn.Parameter(torch.ones(3, 4))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, 1)
    own = vars(optimiser)["step"]
    with state_on_disk(optimiser, tmp_path):
        for _ in range(2):
            weight.sum().backward()
            optimiser.step()
            scheduler.step()
    assert scheduler.get_last_lr() == [pytest.approx(0.01)]
    assert vars(optimiser)["step"] is own


def test_a_scheduler_that_is_made_meanwhile_sees_the_steps(tmp_path):
    weight = nn.Parameter(torch.ones(3, 4))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    with state_on_disk(optimiser, tmp_path):
        scheduler = torch.optim.lr_scheduler.StepLR(optimiser, 1)
        weight.sum().backward()
        optimiser.step()
        scheduler.step()  # which warns where it has seen no step
    assert scheduler.get_last_lr() == [pytest.approx(0.1)]


def test_contexts_may_end_in_any_order(tmp_path):
    optimiser = torch.optim.SGD([nn.Parameter(torch.ones(3, 4))], lr=1.0)
    first, second = state_on_disk(optimiser, tmp_path), state_on_disk(optimiser, tmp_path)
    for one in (first, second):
        one.__enter__()
    for one in (first, second):
        one.__exit__(None, None, None)
    optimiser.step()


def test_behind_a_step_that_fails_zeros_are_made_in_memory_again(tmp_path):
    weight = nn.Parameter(torch.ones(3, 4))
    optimiser = torch.optim.Adam([weight])

    def fail():
        assert lies_on_disk(torch.zeros_like(weight))
        assert not lies_on_disk(torch.zeros_like(weight, dtype=torch.float64))
        assert not lies_on_disk(torch.zeros_like(weight[0]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), state_on_disk(optimiser, tmp_path):
        optimiser.step(fail)
    assert not lies_on_disk(torch.zeros_like(weight))
