"""Weights that transformers holds in float32 beside narrower ones: read from a packed folder, they are float32 too."""

import pytest
import torch
from exported import half_pruned

from ecoflap.adapters.hubs.hugging_face import load_transformers_model
from ecoflap.core.model.source import open_source
from ecoflap.exporters.safetensors import Safetensors

pytest.importorskip("transformers", minversion="5.0", reason="before, it keeps other modules")


@pytest.mark.parametrize(
    ("name", "dtype", "kept"),
    [("gpt_oss", torch.float16, "input_layernorm"), ("deepseek_v3", torch.bfloat16, "mlp.gate.weight")],
)
def test_a_packed_model_is_read_in_the_types_of_a_dense_one(name, dtype, kept, tmp_path):
    pruned = half_pruned(name)
    pruned.adapter.save(pruned.model, tmp_path / "dense")
    (tmp_path / "packed").mkdir()
    Safetensors()(pruned, tmp_path / "packed")
    dense, packed = (
        load_transformers_model("AutoModelForCausalLM", open_source(str(tmp_path / folder), tmp_path), dtype, "cpu")
        for folder in ("dense", "packed")
    )
    types = {weight: one.dtype for weight, one in dense.state_dict().items()}
    assert any(kept in weight for weight, one in types.items() if one == torch.float32)
    assert types == {weight: one.dtype for weight, one in packed.state_dict().items()}
