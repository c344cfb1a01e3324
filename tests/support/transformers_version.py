"""Which version of transformers the tests run with."""

import pytest
import transformers
from packaging.version import Version


def is_before(version: str) -> bool:
    """Say whether it is older; what precedes a release counts as the release."""
    return Version(transformers.__version__).release < Version(version).release


LEAVES_WEIGHTS = pytest.mark.skipif(is_before("5"), reason="transformers leaves weights on the disk from version 5 on")
OFFLOADS = (None, pytest.param("disk", marks=LEAVES_WEIGHTS))
