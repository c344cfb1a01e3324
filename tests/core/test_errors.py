"""What all messages have in common: a problem is a line."""

from ecoflap.core.errors import EcoflapError, one_line
from ecoflap.core.text.problems import RecipeProblems


def test_a_name_with_a_line_break_begins_no_message_of_its_own():
    assert str(EcoflapError("a\nb/c: no such\r folder")) == r"a\nb/c: no such\r folder"
    assert str(EcoflapError("a\nb", "c")) == "2 problems\n  a\\nb\n  c"
    assert str(RecipeProblems("r.yaml", "a\nb", "c")) == "2 problems in r.yaml\na\\nb\nc"
    again = EcoflapError(*EcoflapError("a\nb").problems)
    assert again.problems == (r"a\nb",)


def test_what_an_error_of_somebody_else_says_is_a_line():
    assert one_line(ValueError("  two\n\tlines \r\n")) == "two lines"
    assert one_line(KeyError("a")) == "'a'"
    assert one_line(ValueError()) == ""


def test_an_error_that_cannot_say_what_it_is_says_nothing():
    class Broken(ValueError):
        def __str__(self):
            raise KeyError("also broken")

    assert one_line(Broken()) == ""
