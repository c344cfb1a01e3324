"""Tables on the terminal, and what a command imports for its own."""

import subprocess
import sys

import pytest

from ecoflap.core.cli.tables import Section, show
from ecoflap.core.text.columns import Column, left, right

LOADED = """
import sys
import ecoflap.core.cli.{module}
print(*sorted({{name.split(".")[2] for name in sys.modules if name.startswith("ecoflap.core.")}}))
"""


@pytest.mark.parametrize(
    ("module", "others"),
    [
        ("run_table", {"sweep", "compare", "run"}),
        ("export_table", {"sweep", "compare", "run"}),
        ("parts_table", {"sweep", "compare", "run", "report", "record"}),
        ("sweep_table", {"compare", "report"}),
    ],
)
def test_a_command_does_not_import_what_others_need(module, others):
    code = LOADED.format(module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not others & set(done.stdout.split())


def test_numbers_stand_to_the_right_and_markup_is_text(capsys):
    show([Section("title [b]", (*left("name"), *right("count")), [("a[i]", "1"), ("b", "1,000")])])
    title, head, _, first, second = (line for line in capsys.readouterr().out.splitlines() if line.strip())
    assert title == "title [b]"
    assert head.split() == ["name", "count"]
    assert first.split() == ["a[i]", "1"]
    assert first.index("1") == second.rindex("0")


def test_markup_in_a_columns_title_is_text_too(capsys):
    show([Section("", left("acc [wt]", "acc [/wt]", r"a\[b]"), [("1", "2", r"c\[d]")])])
    head, _, row = (line.split() for line in capsys.readouterr().out.splitlines() if line.strip())
    assert head == ["acc", "[wt]", "acc", "[/wt]", r"a\[b]"]
    assert row == ["1", "2", r"c\[d]"]


def test_what_is_no_terminal_is_as_wide_as_columns_says(capsys, monkeypatch):
    rows = [("word " * 30,)]
    monkeypatch.delenv("COLUMNS", raising=False)
    show([Section("", left("said"), rows)])
    assert max(map(len, capsys.readouterr().out.splitlines())) > 140
    monkeypatch.setenv("COLUMNS", "60")
    show([Section("", left("said"), rows)])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60


def test_columns_in_a_row():
    assert left("a", "b") == (Column("a"), Column("b"))
    assert right("n") == (Column("n", "right"),)
