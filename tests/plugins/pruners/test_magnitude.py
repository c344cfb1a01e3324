import pytest
import torch
from one_layer import PLACE

from ecoflap.core.budget.counts import Keep, Pattern
from ecoflap.core.contracts.records import Statistics
from ecoflap.core.errors import EcoflapError
from ecoflap.plugins.pruners.magnitude import Magnitude, ecoflap_register_pruners


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bits(weight):
    return weight.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()])


def test_is_offered():
    assert ecoflap_register_pruners() == {"magnitude": Magnitude}
    assert Magnitude().compare == "layer"
    assert Magnitude.needs == ()


def test_by_layer_is_one_threshold():
    weight = drawn(12, 20)
    mask, *_ = Magnitude()(weight, Statistics(), Keep(100), PLACE)
    assert mask.sum() == 100
    assert weight[mask].abs().min() > weight[~mask].abs().max()


def test_by_row_is_one_threshold_a_row():
    weight = drawn(12, 20)
    mask, *_ = Magnitude("row")(weight, Statistics(), Keep(12 * 7), PLACE)
    for row, kept in zip(weight.abs(), mask, strict=True):
        assert kept.sum() == 7
        assert row[kept].min() > row[~kept].max()


def test_by_pattern():
    weight = torch.tensor([[1.0, -4.0, 3.0, 2.0, -0.5, 0.0, 0.25, 0.125]])
    mask, pruned, *_ = Magnitude()(weight, Statistics(), Pattern(2, 4), PLACE)
    assert mask.tolist() == [[False, True, True, False, True, False, True, False]]
    assert pruned.tolist() == [[0, -4, 3, 0, -0.5, 0, 0.25, 0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("budget", [Keep(77), Pattern(1, 4)])
def test_kept_weights_are_the_same_bits_and_the_rest_plus_zero(dtype, budget):
    weight = drawn(12, 20, dtype=dtype)
    weight[0, :8] = -0.0
    before = weight.clone()
    mask, pruned, *_ = Magnitude()(weight, Statistics(), budget, PLACE)
    assert pruned.dtype == dtype
    assert torch.equal(bits(weight), bits(before))
    assert torch.equal(bits(pruned)[mask], bits(before)[mask])
    assert not bits(pruned)[~mask].any()


def test_zeros_go_first_and_a_kept_one_still_counts():
    weight = drawn(4, 4)
    weight[:3] = 0
    mask, pruned, *_ = Magnitude()(weight, Statistics(), Keep(6), PLACE)
    assert mask[3].all()
    assert mask.sum() == 6
    assert (pruned != 0).sum() == 4


def test_a_trained_parameter_leaves_no_graph():
    assert not Magnitude()(drawn(4, 4).requires_grad_(), Statistics(), Keep(6), PLACE).weight.requires_grad


def test_weights_that_are_not_finite():
    weight = drawn(4, 4)
    weight[0, 0] = float("nan")
    with pytest.raises(EcoflapError, match="not finite"):
        Magnitude()(weight, Statistics(), Keep(6), PLACE)
