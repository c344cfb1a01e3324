import pytest
import torch
from one_layer import PLACE
from safetensors.torch import save_file

from ecoflap.core.budget.counts import Keep
from ecoflap.core.contracts.records import LayerPlace, Statistics
from ecoflap.core.errors import ModelError
from ecoflap.core.statistics.column_norm import ColumnNorm
from ecoflap.plugins.pruners.from_masks import FromMasks, ecoflap_register_pruners
from ecoflap.plugins.pruners.refit import Refit

MASK = torch.tensor([[True, False, True], [False, False, True]])


@pytest.fixture
def path(tmp_path):
    save_file({PLACE.name: MASK, "square": torch.eye(3, dtype=torch.bool)}, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_is_offered(path):
    assert ecoflap_register_pruners() == {"from_masks": FromMasks}
    assert FromMasks.needs == ()
    assert ColumnNorm not in Refit(FromMasks(path)).needs


def test_it_keeps_what_the_mask_keeps_bit_for_bit(path):
    weight = torch.tensor([[0.1, float("nan"), -0.0], [3.0, -4.0, 5.0]])
    mask, after, notes, _ = FromMasks(path)(weight, Statistics(), Keep(3), PLACE)
    assert torch.equal(mask, MASK)
    expected = torch.tensor([[0.1, 0.0, -0.0], [0.0, 0.0, 5.0]])
    assert torch.equal(after.view(torch.int32), expected.view(torch.int32))
    assert notes == ()


def test_a_transposed_layer_takes_the_mask_as_its_parameter_lies(tmp_path):
    stored = torch.tensor([[True, True], [False, True]])
    save_file({"c.weight": stored}, tmp_path / "m.safetensors")
    place = LayerPlace("c.weight", "language", "c", 0, 0, transposed=True)
    mask, *_ = FromMasks(tmp_path)(torch.ones(2, 2), Statistics(), Keep(3), place)
    assert mask.tolist() == [[True, False], [True, True]]


def test_a_mask_that_is_missing_or_of_another_shape(path):
    other = LayerPlace("other.weight", "language", "other", 0, 0)
    with pytest.raises(ModelError, match="it has no mask of this layer"):
        FromMasks(path)(torch.ones(2, 3), Statistics(), Keep(3), other)
    with pytest.raises(ModelError, match=r"the mask is \(2, 3\), and the weight \(3, 2\)"):
        FromMasks(path)(torch.ones(3, 2), Statistics(), Keep(3), PLACE)
