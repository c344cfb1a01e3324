"""What writes into what it is given to look at is named."""

from contextlib import suppress

import pytest
import torch

from ecoflap.core.contracts.records import Statistics
from ecoflap.core.errors import ModelError
from ecoflap.core.guards.untouched import untouched


class Sum:
    """A statistic that offers a tensor as a member, and keeps another for itself."""

    def __init__(self):
        self.matrix, self._waiting, self.tokens = torch.ones(3), torch.ones(3), 4


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda weight, seen: weight.detach().abs_(), "the weights,"),
        (lambda weight, seen: weight[1:].zero_(), "the weights,"),
        (lambda weight, seen: weight.data.neg_(), "the weights,"),
        (lambda weight, seen: weight[1:].data.neg_(), "the weights,"),
        (lambda weight, seen: weight.numpy().fill(0), "the weights,"),
        (lambda weight, seen: seen[Sum].matrix.sqrt_(), r"Sum\.matrix,"),
        (lambda weight, seen: seen[Sum].matrix.data.zero_(), r"Sum\.matrix,"),
        (lambda weight, seen: seen[Sum].matrix.add_(weight.mul_(2)[0]), r"the weights, Sum\.matrix,"),
    ],
)
def test_what_was_written_into_is_told(write, told):
    given = torch.ones(3, 3), Statistics({Sum: Sum()})
    said = rf"the metric Mine wrote into {told} which it is given to look at"
    with pytest.raises(ModelError, match=said), untouched("the metric Mine", *given):
        write(*given)


LAID_OUT = {
    "rows": lambda weight: weight,
    "transposed": lambda weight: weight.t().contiguous().t(),
    "rows of an odd length": lambda weight: weight[:, 1:].contiguous(),
    "rows that lie apart": lambda weight: weight[:, 1:],
    "columns that lie apart": lambda weight: torch.stack([weight, weight], -1)[..., 0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("how", LAID_OUT)
def test_one_sign_is_seen_wherever_weights_lie(how, dtype):
    whole = torch.arange(48, dtype=dtype).reshape(6, 8)
    whole[5, 7] = -1
    weight = LAID_OUT[how](whole)
    with pytest.raises(ModelError, match="wrote into the weights"), untouched("the metric Mine", weight, Statistics()):
        weight.data.abs_()


@pytest.mark.parametrize("order", [lambda rows: rows.flip(0), lambda rows: rows.flip(1)])
def test_weights_that_change_places_are_seen(order):
    weight = torch.arange(48.0).reshape(6, 8)
    with pytest.raises(ModelError, match="wrote into the weights"), untouched("the metric Mine", weight, Statistics()):
        weight.data.copy_(order(weight).clone())


def test_what_it_has_made_itself_it_may_write_into():
    weight, seen = torch.ones(2, 3), Statistics({Sum: Sum(), int: 3})
    with untouched("the metric Mine", weight, seen):
        weight.abs().mul_(seen[Sum].matrix).sqrt_()
        seen[Sum]._waiting.zero_()  # a statistic may have put off a sum until it is asked


def test_an_error_of_its_own_comes_first():
    weight = torch.ones(2, 3)
    with pytest.raises(ZeroDivisionError), untouched("the metric Mine", weight, Statistics()):
        weight.zero_().fill_(1 / 0)


def test_tensors_of_which_writes_are_not_counted_are_looked_at_too():
    with torch.inference_mode():
        weight = torch.ones(2, 3)
        with (
            pytest.raises(ModelError, match="wrote into the weights"),
            untouched("the metric Mine", weight, Statistics()),
        ):
            weight.zero_()


def test_of_a_sparse_member_writes_are_counted():
    seen = Statistics({Sum: Sum()})
    seen[Sum].matrix = torch.eye(3).to_sparse()
    with untouched("the metric Mine", torch.ones(2, 3), seen):
        seen[Sum].matrix.to_dense().zero_()
    with pytest.raises(ModelError, match=r"wrote into Sum\.matrix"), untouched("it", torch.ones(2, 3), seen):
        seen[Sum].matrix.mul_(2)


class Kept:
    """A statistic that counts how often it is asked, and keeps what it has answered."""

    def __init__(self):
        self.norms, self.root, self.asked = torch.full((3,), 4.0), None, 0

    def roots(self):
        self.asked += 1
        self.root = self.norms.sqrt() if self.root is None else self.root
        return self.root


def test_what_is_put_in_the_place_of_a_member_is_told():
    """Layers of one input share a statistic: the next would be pruned by what was put there."""
    seen = Statistics({Kept: Kept()})
    said = r"the pruner Mine has put something else in the place of Kept\.norms"
    with pytest.raises(ModelError, match=said), untouched("the pruner Mine", torch.ones(2, 3), seen):
        seen[Kept].norms = torch.ones(3)


def test_what_a_statistic_fills_in_by_itself_is_its_own():
    seen = Statistics({Kept: Kept()})
    for _ in range(2):
        with untouched("the pruner Mine", torch.ones(2, 3), seen):
            assert seen[Kept].roots().tolist() == [2.0] * 3
    assert seen[Kept].asked == 2


def test_what_a_part_has_set_for_all_of_torch_is_put_back():
    """Masks of the layers behind it would be of other sums, and differ where a run was cut off in between."""

    def settings():
        return torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()

    before = settings()
    with suppress(KeyError), untouched("the metric Mine", torch.ones(3, 3), Statistics()):
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(before[1] + 1)
        torch.set_grad_enabled(not before[2])
        assert all(now != then for now, then in zip(settings(), before, strict=True))
        raise KeyError
    assert settings() == before
