"""What a folder is told to lack, and what is the fault of the machine that reads it."""

import re

import pytest

from ecoflap.core.checking.saved import read_back
from ecoflap.core.errors import FormatError, ModelError, RunError


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (RunError("there: the disk is full. Make room"), RunError, "there: the disk is full. Make room"),
        (
            ModelError("no config.json"),
            FormatError,
            "as a model it is not read: no config.json An adapter's",
        ),
    ],
)
def test_a_full_disk_is_not_the_fault_of_what_was_saved(error, kind, said, tmp_path):
    """Experts that a library puts together are written beside the folder to be read back."""

    def reload():
        raise error

    with pytest.raises(kind, match=re.escape(said)) as raised:
        list(read_back(tmp_path, {"experts"}, reload))
    assert ("An adapter's save" in str(raised.value)) is (kind is FormatError)
