"""What all messages have in common: a problem is a line."""

from ecoflap.core.errors import EcoflapError
from ecoflap.core.text.problems import RecipeProblems


def test_a_name_with_a_line_break_begins_no_message_of_its_own():
    assert str(EcoflapError("a\nb/c: no such\r folder")) == r"a\nb/c: no such\r folder"
    assert str(EcoflapError("a\nb", "c")) == "2 problems\n  a\\nb\n  c"
    assert str(RecipeProblems("r.yaml", "a\nb", "c")) == "2 problems in r.yaml\na\\nb\nc"
    again = EcoflapError(*EcoflapError("a\nb").problems)
    assert again.problems == (r"a\nb",)
