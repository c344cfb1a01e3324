"""Scripts of the examples, which are no package, as modules."""

from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def module_of() -> Callable[[str], Any]:
    """``module_of(path)``: the module that a script below ``examples`` is."""

    def module_of(path: str) -> Any:
        spec = spec_from_file_location(Path(path).stem, EXAMPLES / path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return module_of
