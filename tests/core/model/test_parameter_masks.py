"""Masks of parts are put together as their parameter lies."""

import pytest
import torch
from torch import nn

from ecoflap.core.errors import ModelError
from ecoflap.core.model.anatomy import Anatomy, Block, Layer, Tower
from ecoflap.core.model.parameter_masks import ParameterMasks, parameter_and_part


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 4, 2))
        self.rows = nn.Parameter(torch.randn(6, 2))
        self.plain = nn.Parameter(torch.randn(2, 2))


@pytest.mark.parametrize(
    ("name", "parameter", "part"),
    [("a.b", "a.b", None), ("a.b[3]", "a.b", 3), ("a.b[0:64]", "a.b", (0, 64)), ("a[x]", "a[x]", None)],
)
def test_a_name_is_taken_apart(name, parameter, part):
    assert parameter_and_part(name) == (parameter, part)


def test_parts_are_put_together_and_the_rest_is_kept():
    made = {
        "experts[2]": torch.zeros(4, 2, dtype=torch.bool),
        "experts[0]": torch.rand(4, 2) > 0.5,
        "rows[3:6]": torch.rand(3, 2) > 0.5,
        "plain": torch.rand(2, 2) > 0.5,
    }
    masks = ParameterMasks(Parts(), made)
    assert list(masks) == ["experts", "rows", "plain"]
    assert len(masks) == 3
    assert torch.equal(masks["experts"][0], made["experts[0]"])
    assert bool(masks["experts"][1].all())
    assert not bool(masks["experts"][2].any())
    assert bool(masks["rows"][:3].all())
    assert torch.equal(masks["rows"][3:], made["rows[3:6]"])
    assert masks["plain"] is made["plain"]


def test_a_mask_of_another_shape_is_named():
    masks = ParameterMasks(Parts(), {"experts[0]": torch.ones(2, 4, dtype=torch.bool)})
    with pytest.raises(ModelError, match=r"the mask of experts\[0\] has the shape \(2, 4\)"):
        masks["experts"]


def anatomy(*layers: Layer) -> Anatomy:
    return Anatomy.of([Tower("t", (Block("b", nn.Module(), "t"),))], lambda block: layers)


def test_parts_that_overlap_are_listed_twice():
    model = Parts()
    fine = [Layer(f"experts[{e}]", model, "experts", part=e) for e in range(3)]
    fine += [Layer("rows[0:3]", model, "rows", part=(0, 3)), Layer("rows[3:6]", model, "rows", part=(3, 6))]
    assert [layer.shape for _, layer in anatomy(*fine).layers()] == [(4, 2)] * 3 + [(3, 2)] * 2
    for other in (
        Layer("experts", model, "experts"),
        Layer("e", model, "experts", part=1),
        Layer("r", model, "rows", part=(2, 4)),
    ):
        with pytest.raises(ModelError, match="lists one weight twice"):
            anatomy(*fine, other)
    with pytest.raises(ModelError, match="lists one weight twice"):
        anatomy(Layer("rows", model, "rows"), fine[3])


def test_a_layer_of_three_axes_is_refused():
    with pytest.raises(ModelError, match=r"the layer experts is \(3, 4, 2\) and no matrix"):
        _ = Layer("experts", Parts(), "experts").shape


def test_a_transposed_layer_is_a_view_and_back():
    model = Parts()
    layer = Layer("experts[1]", model, "experts", part=1, transposed=True)
    assert layer.shape == (2, 4)
    assert layer.size == 8
    assert layer.weight.data_ptr() == model.experts[1].data_ptr()
    mask = torch.rand(2, 4) > 0.5
    assert torch.equal(layer.oriented(layer.as_stored(mask)), mask)
    layer.weight.data.zero_()
    assert not bool(model.experts[1].any())
    assert bool(model.experts[0].any())
