"""A replay that scorers are tried on."""

import pytest
import torch

from ecoflap import Replay
from ecoflap.adapters.llama import LlamaAdapter


@pytest.fixture
def replay(pico_llama):
    generator = torch.Generator().manual_seed(4)
    ids = [torch.randint(3, 60, (2, 16), generator=generator) for _ in range(2)]
    return Replay(pico_llama(), LlamaAdapter(), [{"input_ids": i, "attention_mask": torch.ones_like(i)} for i in ids])
