"""A part that is given a whole model leaves its settings, which are saved with it, as they were."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ecoflap.core.guards.left_as_given import ChangedModelError, left_as_given


class Settings(SimpleNamespace):
    """What a configuration of transformers is here: something that is written out by ``to_dict``."""

    def to_dict(self):
        return dict(vars(self))


@pytest.fixture
def model():
    made = nn.Linear(2, 2)
    made.config, made.generation_config = Settings(eps=1e-6, inner={"size": 4}), Settings(max_length=20)
    return made


def with_another_setting(model):
    model.config.eps = 0.5


def with_a_setting_inside(model):
    model.config.inner["size"] = 5


def with_a_new_setting(model):
    model.generation_config.min_length = 3


@pytest.mark.parametrize(("change", "said"), [
    (with_another_setting, r"config\.eps is 0\.5"),
    (with_a_setting_inside, r"config\.inner is \{'size': 5\}"),
    (with_a_new_setting, r"generation_config\.min_length is 3"),
])  # fmt: skip
def test_a_setting_that_is_another_is_named(model, change, said):
    with pytest.raises(ChangedModelError, match=said), left_as_given("it", model, "Cure.", is_on_disk=False):
        change(model)


def test_what_is_put_back_is_none(model):
    with left_as_given("it", model, "Cure.", is_on_disk=False):
        model.config.eps = 0.5
        model.config.eps = 1e-6


def test_what_transformers_writes_down_by_itself_is_no_setting(model):
    with left_as_given("it", model, "Cure.", is_on_disk=False):
        model.config.architectures, model.config._attn_implementation_autoset = ["Linear"], True
        model.config.inner["_attn_implementation_autoset"] = True


def cast_there_and_back(model):
    model.to(torch.bfloat16)
    for one in model.parameters():
        one.data = one.data.float()


def test_a_buffer_that_was_cast_is_named(model):
    model.register_buffer("angles", torch.ones(2), persistent=False)
    with (
        pytest.raises(ChangedModelError, match="angles is bfloat16"),
        left_as_given("it", model, "C.", is_on_disk=False),
    ):
        cast_there_and_back(model)
