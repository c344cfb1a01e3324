"""Types of torch's have the names that recipes give them."""

import pytest
import torch

from ecoflap.core.dtypes import dtype_called, dtype_name


def test_types_are_named_as_recipes_do():
    assert [dtype_name(dtype) for dtype in (torch.bfloat16, torch.uint8, "torch.int4", "float16")] == [
        "bfloat16",
        "uint8",
        "int4",
        "float16",
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_type_is_found_by_its_name(dtype):
    assert dtype_called(dtype_name(dtype)) is dtype_called(str(dtype)) is dtype_called(dtype) is dtype


@pytest.mark.parametrize("name", ["auto", "int8", "load", "bf16", "", None])
def test_what_names_no_float_gives_none(name):
    assert dtype_called(name) is None
