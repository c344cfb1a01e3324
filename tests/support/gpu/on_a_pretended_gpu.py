"""A plugin of pytest's: tests that need a GPU run on a pretended one.

PYTHONPATH=tests/support/gpu python -m pytest -p on_a_pretended_gpu -m gpu …
"""

from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryDirectory

import one_gpu
import pytest

with TemporaryDirectory() as folder:
    one_gpu.tell_torch(one_gpu.make_library(Path(folder)))
from pretended_gpu import pretended_gpu  # imports torch


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    with pretended_gpu():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    with pretended_gpu():
        return (yield)
