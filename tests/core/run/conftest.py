"""The command in a process of its own, which a test may kill."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from killing import killer_in


@pytest.fixture
def command_code():
    """The command as Python code, for a process of its own that knows the models which this one knows."""
    code = "from ecoflap.core.cli.main import main; main()"
    if find_spec("transformers.models.llama") is None:
        support = str(Path(__file__).parents[2] / "support" / "models")
        return f"import sys; sys.path.append({support!r}); from old_llama import register; register(); {code}"
    return code


@pytest.fixture
def killer(tmp_path):
    """An environment for a process that is to kill itself."""
    return killer_in(tmp_path)
