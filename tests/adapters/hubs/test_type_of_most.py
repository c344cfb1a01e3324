"""What is written of a saved model's type, by a model made here whose first weight is kept in float32."""

import json

import pytest
import torch
from torch import nn

from ecoflap.adapters.hubs.kept_in_float32 import type_of_most
from ecoflap.adapters.llama import LlamaAdapter


class Mixed(nn.Module):
    """Has its first weight, and a part, in float32, as its class wants it."""

    _keep_in_fp32_modules = ("queries", "reader")

    def __init__(self, dtype):
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(4, 8))
        self.reader = nn.Linear(64, 64)
        self.rest = nn.Linear(8, 8).to(dtype)


@pytest.mark.parametrize(("dtype", "said"), [(torch.float16, "float16"), (torch.float32, "as it was")])
def test_the_type_of_most_weights_is_said_where_the_first_is_another(tmp_path, dtype, said, monkeypatch):
    model, file = Mixed(dtype), tmp_path / "config.json"
    file.write_text(json.dumps({"dtype": "as it was", "size": 3}))
    assert type_of_most(model) == dtype
    monkeypatch.setattr(LlamaAdapter, "_correct", lambda *_: None)
    LlamaAdapter()._amend(model, tmp_path)
    assert json.loads(file.read_text()) == {"dtype": said, "size": 3}
