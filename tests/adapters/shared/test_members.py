"""What a model has under a path, and what is said where it has it not."""

import pytest
from torch import nn

from ecoflap.adapters.shared.members import find, member
from ecoflap.core.errors import ModelError


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 3)]), "norm": nn.LayerNorm(2)})
        self.bias = None
        self.size = 7


def test_a_member_is_found_by_its_path():
    model = Model()
    assert member(model, "encoder.layers.0") is find(model, "encoder.layers.0") is model.encoder["layers"][0]
    assert member(model, "encoder.layers.0.weight", nn.Parameter).shape == (3, 2)
    assert member(model, "size", int) == find(model, "size", int) == 7
    assert member(model, "parameters") == model.parameters


def test_what_may_be_missing_is_none():
    model = Model()
    for path in ("decoder", "decoder.layers", "encoder.layers.1", "bias", "bias.shape"):
        assert find(model, path) is None
    assert find(model, "encoder.layers", nn.Linear) is None


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("encodr.layers", r"this Model has no encodr\.layers: a Model has no 'encodr'\. Did you mean 'encoder'\?"),
        ("encoder.layer", r"no encoder\.layer: a ModuleDict has no 'layer'\. Did you mean 'layers'\?"),
        ("encoder.pooler.weight", r"no encoder\.pooler\.weight: .* no 'pooler'\. It has layers, norm\."),
        ("encoder.layers.0.qkv", r"a Linear has no 'qkv'\.$"),
        ("bias", r"a Model has no 'bias'"),
    ],
)
def test_what_is_missing_is_said_with_what_is_there(path: str, told: str):
    with pytest.raises(ModelError, match=told):
        member(Model(), path)


def test_another_kind_is_refused():
    with pytest.raises(ModelError, match=r"encoder of this Model is a ModuleDict, .* expects a ModuleList there\."):
        member(Model(), "encoder", nn.ModuleList)
