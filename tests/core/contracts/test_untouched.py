"""What writes into what it is given to look at is named."""

import pytest
import torch

from ecoflap.core.contracts.untouched import untouched
from ecoflap.core.errors import ModelError


class Sum:
    """A statistic that offers a tensor as a member, and keeps another for itself."""

    def __init__(self):
        self.matrix, self._waiting, self.tokens = torch.ones(3), torch.ones(3), 4


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda weight, seen: weight.detach().abs_(), "the weights,"),
        (lambda weight, seen: weight[1:].zero_(), "the weights,"),
        (lambda weight, seen: seen[Sum].matrix.sqrt_(), r"Sum\.matrix,"),
        (lambda weight, seen: seen[Sum].matrix.add_(weight.mul_(2)[0]), r"the weights and Sum\.matrix,"),
    ],
)
def test_what_was_written_into_is_told(write, told):
    given = torch.ones(3, 3), {Sum: Sum()}
    said = rf"the metric Mine wrote into {told} which it is given to look at"
    with pytest.raises(ModelError, match=said), untouched("the metric Mine", *given):
        write(*given)


def test_what_it_has_made_itself_it_may_write_into():
    weight, seen = torch.ones(2, 3), {Sum: Sum(), int: 3}
    with untouched("the metric Mine", weight, seen):
        weight.abs().mul_(seen[Sum].matrix).sqrt_()
        seen[Sum]._waiting.zero_()  # a statistic may have put off a sum until it is asked


def test_an_error_of_its_own_comes_first():
    weight = torch.ones(2, 3)
    with pytest.raises(ZeroDivisionError), untouched("the metric Mine", weight, {}):
        weight.zero_().fill_(1 / 0)


def test_tensors_of_which_writes_are_not_counted_are_passed_over():
    with torch.inference_mode():
        weight = torch.ones(2, 3)
        with untouched("the metric Mine", weight, {}):
            weight.zero_()
