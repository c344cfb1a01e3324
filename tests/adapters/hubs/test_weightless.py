"""A model runs without its products, in the memory that its texts take."""

import torch
from torch import Tensor, nn

from ecoflap.adapters.hubs.weightless import WithoutProducts, lent_weights


class Experts(nn.Module):
    """Takes the experts of all tokens side by side: here four terabytes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.empty(4, 1 << 16, 1 << 14, device="meta"))

    def forward(self, hidden: Tensor, chosen: Tensor) -> Tensor:
        taken = self.experts[chosen]
        return torch.bmm(taken, hidden[..., None]).squeeze(-1) + 1


def test_experts_that_are_taken_side_by_side_need_no_memory():
    module = Experts()
    with torch.no_grad(), lent_weights(module), WithoutProducts() as watch:
        made = module(torch.ones(1000, 1 << 14), torch.zeros(1000, dtype=torch.int64))
    assert made.shape == (1000, 1 << 16)
    assert bool((made == 1).all()), "a product is zero"
    assert watch.calls["bmm"] == watch.calls["__getitem__"] - 1 == 1
    assert module.experts.is_meta


def test_an_expert_that_is_taken_by_itself_is_looked_at_as_ever():
    experts = nn.Parameter(torch.arange(8.0).reshape(2, 2, 2))
    with WithoutProducts():
        assert experts[torch.tensor(1)].tolist() == [[4.0, 5.0], [6.0, 7.0]]
        assert experts[1, 0].tolist() == [4.0, 5.0]


def test_complex_numbers_are_noted():
    with WithoutProducts() as watch:
        torch.ones(2) + 1
        assert not watch.has_complex
        torch.polar(torch.ones(2), torch.ones(2))
    assert watch.has_complex


def test_a_loop_over_what_was_found_is_noted():
    chosen = torch.tensor([0, 1, 1])
    with WithoutProducts() as watch:
        [*torch.ones(3)]
        chosen.nonzero()
        assert not watch.loops_over_found
        [*chosen.nonzero()]
    assert watch.loops_over_found


def test_it_is_noted_by_how_much_a_text_is_filled_up():
    with WithoutProducts() as watch:
        nn.functional.pad(torch.ones(1, 5), (0, 3))
        nn.functional.pad(torch.ones(1, 6), pad=(0, 2))
    assert watch.pads == [(0, 3), (0, 2)]
