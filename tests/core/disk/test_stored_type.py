"""The type that most of a file is in is read off its header."""

import pytest
import torch
from safetensors.torch import save_file

from ecoflap.core.disk.stored_type import stored_type


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_type_that_takes_most_is_told(tmp_path, dtype):
    """Norms may be wider than all else, and numbers of positions are whole ones."""
    weights = {
        "matrix": torch.ones(8, 8, dtype=dtype),
        "norm": torch.ones(8, dtype=torch.float32),
        "positions": torch.arange(1000),
    }
    save_file(weights, tmp_path / "model.safetensors")
    assert stored_type(tmp_path / "model.safetensors") == dtype


def test_nothing_is_told_of_what_has_no_such_numbers_or_cannot_be_read(tmp_path):
    save_file({"positions": torch.arange(4)}, tmp_path / "whole.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 40)
    (tmp_path / "short.safetensors").write_bytes(b"\x01")
    for name in ("whole", "damaged", "short", "absent"):
        assert stored_type(tmp_path / f"{name}.safetensors") is None
