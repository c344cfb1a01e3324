"""Which batches are held out, and what a view says beside its gradient."""

import pytest
import torch

from ecoflap.core.ranks.ranks import Ranks
from ecoflap.core.refining.views import Split


@pytest.mark.parametrize(
    ("count", "held_out"), [(1, (0,)), (2, (1,)), (7, (6,)), (8, (7,)), (16, (7, 15)), (20, (7, 15))]
)
def test_every_eighth_batch_is_held_out(count, held_out):
    split = Split.of(count)
    assert split.held_out == held_out
    assert set(split.training) == set(range(count)) - set(held_out) or count == 1
    assert split.training


def test_a_measure_is_the_mean_of_the_objectives(case):
    view = case().view
    with view.opened():
        values = []
        for number in (0, 2):
            with view.objective(number) as error:
                values.append(float(error.detach()))
        assert view.measure((0, 2)) == pytest.approx(sum(values) / 2, rel=1e-6)
        assert view.add_gradient(0) == pytest.approx(values[0], rel=1e-6)


class Second(Ranks):
    """The second of two processes, the first of which has sent this."""

    rank, size = 1, 2

    def __init__(self, sent):
        self.sent = sent

    def gather(self, mine):
        return [self.sent, mine]


def test_a_process_without_a_batch_adds_what_another_has_found_once_each_time(case):
    alone, second = case().view, case().view
    with alone.opened():
        alone.add_gradient(0)
        sent = [parameter.grad.clone() for parameter in alone.parameters]
        alone.add_gradient(0)
        expected = [parameter.grad for parameter in alone.parameters]
    second.ranks = Second([sent])
    with second.opened():
        for _ in range(2):
            second.add_gradients([0])
        found = [parameter.grad for parameter in second.parameters]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
