"""What a run of a sweep has failed of comes whole from one process to another."""

import pytest

from ecoflap.core.errors import RunError
from ecoflap.core.sweep.failures import failing_into, failure_in, failure_of

ERRORS = [
    RunError("a file called ecoflap: is in the way"),
    RunError("one", "other"),
    RunError("a name of no text: \udce9"),
    OSError(28, "No space left on device", "somewhere"),
    ValueError("odd"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_what_is_written_is_read(error, tmp_path):
    with pytest.raises(type(error)) as raised, failing_into(tmp_path / "failure"):
        raise error
    assert raised.value is error
    assert failure_in(tmp_path / "failure") == failure_of(error)


def test_an_error_that_is_no_users_is_told_with_its_type():
    assert failure_of(ValueError("odd")) == "ValueError: odd"


def test_where_nothing_fails_nothing_is_written(tmp_path):
    with failing_into(tmp_path / "failure"):
        pass
    assert failure_in(tmp_path / "failure") == ""
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_hides_no_error(tmp_path):
    for file in (None, tmp_path / "nowhere" / "failure"):
        with pytest.raises(RunError, match="first"), failing_into(file):
            raise RunError("first")
