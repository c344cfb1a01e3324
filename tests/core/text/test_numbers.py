"""Numbers as tables show them."""

import pytest

from ecoflap.core.text.numbers import bytes_text, mean, time_text, with_error


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_000_000, "1.0 MB"), (2.5e9, "2.5 GB"), (3e15, "3000.0 TB")],
)
def test_bytes(count, text):
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (99.94, "99.9 s"), (100, "2 min"), (3600, "1 h 00 min"), (11100, "3 h 05 min")]
)
def test_times(seconds, text):
    assert time_text(seconds) == text


def test_a_value_with_its_error_and_without():
    assert with_error(12.3456, None) == "12.35"
    assert with_error(12.3456, 0.123) == "12.35 ± 0.12"


def test_the_mean_of_equal_numbers_is_that_number():
    assert mean([0.1] * 3) == 0.1
