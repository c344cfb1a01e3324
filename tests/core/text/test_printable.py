"""What others wrote does not steer the terminal."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from ecoflap.core.cli.tables import Section, show
from ecoflap.core.text.columns import left
from ecoflap.core.text.printable import printable


def test_controls_are_written_out():
    assert printable("a\x1b]0;mine\x07\tb\n\u202ec\x9b") == "a\\x1b]0;mine\\x07\tb\n\\u202ec\\x9b"
    assert printable("a\u2028b\u2029c") == "a\\u2028b\\u2029c"
    assert printable("größer ± 8 % → 漢字") == "größer ± 8 % → 漢字"


@given(st.text())
def test_nothing_else_is_left(text):
    left_over = {unicodedata.category(one) for one in printable(text) if one not in "\n\t"}
    assert not left_over & {"Cc", "Cf"}


def test_tables_are_printed_so(capsys):
    show([Section("title \x1b[2J", left("name"), [["\x1b[31mred"]])])
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert r"\x1b[2J" in said
    assert r"\x1b[31mred" in said
