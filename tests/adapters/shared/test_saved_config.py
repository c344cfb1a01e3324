"""What is written of a saved model's type, by configurations made here."""

import json

import pytest
import torch
from torch import nn

from ecoflap.adapters.shared.saved_config import say_type_of_most


class Mixed(nn.Module):
    """Has its first weight, and a part, in float32, as its class wants it."""

    _keep_in_fp32_modules = ("queries", "reader")

    def __init__(self, dtype):
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(4, 8))
        self.reader = nn.Linear(64, 64)
        self.rest = nn.Linear(8, 8).to(dtype)


@pytest.mark.parametrize(("dtype", "said"), [(torch.float16, "float16"), (torch.float32, "as it was")])
def test_the_type_of_most_weights_is_said_where_the_first_is_another(tmp_path, dtype, said):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"dtype": "as it was", "size": 3}))
    say_type_of_most(Mixed(dtype), tmp_path)
    assert json.loads(file.read_text()) == {"dtype": said, "size": 3}
