"""Functions with a backward of their own can be traced, and are what they were afterwards."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from ecoflap.exporters.torchscript.functions import forwards_only


class Doubled(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        return 2 * value

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return 3 * gradients[0]  # wrong on purpose: to be told from what autograd makes of the forward


class SetUpApart(Function):
    @staticmethod
    def forward(value: Tensor) -> Tensor:
        return value + 5

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        raise AssertionError("nothing is kept for a backward")


@pytest.mark.parametrize(("kind", "wanted"), [(Doubled, [2.0, 8.0]), (SetUpApart, [6.0, 9.0])])
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_the_forward_alone_is_run(kind: type[Function], wanted: list[float]):
    with forwards_only(), torch.no_grad():
        assert kind.apply(torch.tensor([1.0, 4.0])).tolist() == wanted  # type: ignore[no-untyped-call]
        traced = torch.jit.trace(lambda value: kind.apply(value), (torch.zeros(2),))  # type: ignore[no-untyped-call]
    assert "PythonOp" not in str(traced.graph)
    assert traced(torch.tensor([1.0, 4.0])).tolist() == wanted


def test_it_is_put_back_where_what_is_run_fails():
    with pytest.raises(ValueError, match="no"), forwards_only():
        raise ValueError("no")
    value = torch.tensor(1.0, requires_grad=True)
    Doubled.apply(value).backward()  # type: ignore[no-untyped-call]
    assert value.grad is not None
    assert value.grad.item() == 3.0
