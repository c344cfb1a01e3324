"""Templates: what is filled in is escaped, and what is missing is an error."""

import pytest
from jinja2 import UndefinedError

from ecoflap.core.text.templates import render


@pytest.fixture
def template(tmp_path):
    (tmp_path / "part.j2").write_text("({{ text }})\n")
    (tmp_path / "page.j2").write_text('{% for text in texts %}\n{% include "part.j2" %}\n{% endfor %}\n')
    return tmp_path / "page.j2"


def test_it_is_filled_in_with_what_is_escaped(template):
    assert render(template, {"texts": ["a", "<b> & 'c'"]}) == "(a)\n(&lt;b&gt; &amp; &#39;c&#39;)\n"


def test_a_value_that_is_missing_is_an_error(template):
    with pytest.raises(UndefinedError, match="texts"):
        render(template, {"text": "a"})


def test_a_template_may_name_those_of_another_folder(template, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "page.j2").write_text('{% include "part.j2" %}')
    assert render(tmp_path / "own" / "page.j2", {"text": "a"}, tmp_path) == "(a)\n"
