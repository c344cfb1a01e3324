"""Which batches are held out, and what a view says beside its gradient."""

import pytest

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
