"""Arguments of ``from_pretrained`` are those that the installed transformers knows."""

import pytest

from ecoflap.core.export import surroundings
from ecoflap.core.export.surroundings import dtype_argument, without_kernels


@pytest.mark.parametrize(
    ("version", "named", "kernels"),
    [
        ("4.51.3", "torch_dtype", {}),
        ("4.56.0", "dtype", {}),
        ("5.24.0", "dtype", {}),
        ("5.25.0.dev0", "dtype", {"use_kernels": False}),
        ("5.25.0", "dtype", {"use_kernels": False}),
        ("6.0.1", "dtype", {"use_kernels": False}),
    ],
)
def test_arguments_are_those_of_the_version(version, named, kernels, monkeypatch):
    """From 5.25 on transformers puts functions from the hub into a model unless it is told not to."""
    monkeypatch.setattr(surroundings, "version", lambda name: version)
    assert (dtype_argument(), without_kernels()) == (named, kernels)
