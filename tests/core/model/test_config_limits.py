"""Counts that no model has are refused when a configuration is read, whatever library would make a model of it."""

import json

import pytest

from ecoflap.core.errors import ModelError
from ecoflap.core.model import config_limits
from ecoflap.core.model.source import open_source


def opened(folder, config, name="config.json"):
    (folder / name).write_text(config if isinstance(config, str) else json.dumps(config))
    return open_source(str(folder), folder)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, and no model has more than 10,000"),
        ({"text_config": {"n_layer": 1e9}}, r"text_config\.n_layer is 1000000000\.0, and"),
        ({"depths": [2, 10**9]}, "depths is 1000000000"),
        ({"num_local_experts": 10**6}, "num_local_experts is 1000000, and no model has more than 100,000"),
        ({"num_labels": 10**8}, "num_labels is 100000000"),
        ({"text_config": {"hidden_size": 10**6}}, r"text_config\.hidden_size is 1000000, and no model .* than 131,072"),
        ({"vision_config": {"intermediate_size": 10**6}}, r"intermediate_size is 1000000, .* more than 524,288"),
        ({"head_dim": 10**6}, "head_dim is 1000000, and no model has more than 16,384"),
        ({"num_layers": 10**2000}, r"num_layers is 10000000000000000…, and"),
        ({"text_config": {"vocab_size": 10**11}}, r"vocab_size is 100000000000, and no model has more than 10,000,0"),
        ('{"rms_norm_eps": NaN}', r"config\.json: rms_norm_eps is NaN, and a number is meant\. The file is"),
        ('{"text_config": {"rms_norm_eps": 1e999}}', r"text_config\.rms_norm_eps is inf, and a finite number is meant"),
        ('{"a": [{"time_step_limit": NaN}]}', r"a\.time_step_limit is NaN"),
        ({"text_config": {"sliding_window": -1}}, r"text_config\.sliding_window is -1, .* no tokens then; null is for"),
        ('{"a": {"eps": 1, "b": 2, "eps": 3}, "b": 4}', r"config\.json has 'eps' twice, .* counts\. Remove one\."),
        ('{"num_layers": 1' + "0" * 5000 + "}", "is not JSON: number out of range"),
        ("[" * 100_000, "is not JSON: recursion limit exceeded"),
        ('{"a":' * 100_000, "is not JSON: recursion limit exceeded"),
    ],
)
def test_what_no_model_has_is_refused(config, told, tmp_path):
    with pytest.raises(ModelError, match=told):
        opened(tmp_path, config)


def test_open_clips_own_configurations_are_held_to_it_too(tmp_path):
    config = {"model_cfg": {"text_cfg": {"layers": 10**9, "heads": 8}}}
    with pytest.raises(ModelError, match=r"open_clip_config\.json: model_cfg\.text_cfg\.layers is 1000000000"):
        opened(tmp_path, config, "open_clip_config.json")


def test_every_count_is_told(tmp_path):
    with pytest.raises(ModelError) as caught:
        opened(tmp_path, {"num_layers": 10**5, "num_blocks": 10**5, "vocab_size": 10**7})
    assert len(caught.value.problems) == 2


def test_what_models_have_is_read(tmp_path):
    config = {"num_layers": 200, "num_experts": 16384, "num_labels": 50257, "rope_theta": 10**9, "is_layers": True}
    assert opened(tmp_path, config).config == config


@pytest.mark.parametrize(
    "config",
    [
        {"time_step_limit": [0.0, float("inf")]},  # as those of Mamba-2 are published
        {"sliding_window": -1, "use_sliding_window": False},
        {"sliding_window": None, "vocab_size": 10**6},
    ],
)
def test_numbers_that_are_odd_and_meant_are_read(config, tmp_path):
    assert opened(tmp_path, config).config == config


def test_a_configuration_of_any_size_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(config_limits, "LARGEST", 100)
    with pytest.raises(ModelError, match="is not JSON: it is larger than 100 bytes"):
        opened(tmp_path, {"a": "b" * 100})
