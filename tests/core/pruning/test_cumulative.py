"""What earlier rounds pruned does not come back: held against sets of places, computed one by one."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoflap.core.contracts.records import Pruned
from ecoflap.core.pruning.cumulative import held_within


@st.composite
def answers(draw):
    """A weight with zeros where an earlier round pruned, the mask that it left, and any answer of a pruner."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    size = rows * columns
    left = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    keep = draw(st.integers(0, sum(left)))
    kept = set(draw(st.permutations(range(size)))[:keep])
    values = draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size))
    weight = torch.tensor([float(value) if stays else 0.0 for value, stays in zip(values, left, strict=True)]).reshape(
        rows, columns
    )
    mask = torch.tensor([at in kept for at in range(size)]).reshape(rows, columns)
    return weight, torch.tensor(left).reshape(rows, columns), Pruned(mask, torch.where(mask, weight + 10, 0.0))


@given(answers())
@settings(max_examples=300)
def test_the_count_stays_and_nothing_comes_back(drawn):
    weight, left, pruned = drawn
    held = held_within(pruned, weight, left, "any")
    before, after = set(places(pruned.mask)), set(places(held.mask))
    assert len(after) == len(before)
    assert after <= set(places(left))
    assert before & set(places(left)) <= after  # what the pruner chose of what is left stays
    came, spare = after - before, set(places(left)) - before
    sizes = weight.abs().flatten().tolist()
    assert (
        sorted((sizes[at] for at in came), reverse=True)
        == sorted((sizes[at] for at in spare), reverse=True)[: len(came)]
    )
    for at, (value, old, new) in enumerate(
        zip(held.weight.flatten().tolist(), weight.flatten().tolist(), pruned.weight.flatten().tolist(), strict=True)
    ):
        assert value == (old if at in came else new if at in after else 0.0)


def places(mask):
    return mask.flatten().nonzero()[:, 0].tolist()


def test_an_answer_within_is_left_as_it_is():
    left = torch.tensor([[True, True, False]])
    pruned = Pruned(torch.tensor([[True, False, False]]), torch.tensor([[2.0, 0.0, 0.0]]), ("noted",))
    assert held_within(pruned, torch.tensor([[1.0, 3.0, 0.0]]), left, "any") is pruned


def test_many_that_would_come_back_are_told_and_a_few_are_not():
    weight, left = torch.ones(1, 400), torch.ones(1, 400, dtype=torch.bool)
    left[0, :100] = False
    for back, told in ((3, 0), (4, 1)):
        mask = torch.zeros(1, 400, dtype=torch.bool)
        mask[0, 100 - back : 400 - back] = True
        held = held_within(Pruned(mask, weight * mask, ("noted",)), weight * left, left, "mine")
        assert held.notes[0] == "noted"
        assert len(held.notes) == 1 + told
    assert held.notes[1].startswith("mine would bring 4 weights back that an earlier round has pruned")
