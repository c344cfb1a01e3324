"""Which version of transformers the tests run with."""

import transformers
from packaging.version import Version


def is_before(version: str) -> bool:
    """Say whether it is older; what precedes a release counts as the release."""
    return Version(transformers.__version__).release < Version(version).release
