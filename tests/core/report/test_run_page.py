"""The page of a run: well-formed, with the numbers, and there whether or not anything can be drawn."""

import json

import broken_matplotlib
import pytest
from html_page import Page
from made_report import made_report

from ecoflap.core.record.report import Report
from ecoflap.core.report.drawings import NO_MATPLOTLIB, obstacle
from ecoflap.core.report.run_page import page, write_page

pytestmark = pytest.mark.usefixtures("drawing")
needs_matplotlib = pytest.mark.skipif(obstacle() is not None, reason="needs matplotlib")


def made(**changes):
    return Report.model_validate_json(json.dumps({**made_report(score="zeroth_order"), **changes}))


def test_the_page_is_well_formed_needs_nothing_and_has_the_numbers():
    text = page("run", made())
    read = Page(text)
    assert text.startswith("<!doctype html>\n")
    assert not [value for name, value in read.attributes if name in ("src", "href") and not value.startswith("#")]
    assert "://" not in text
    assert text.count("url(") == text.count("url(#")
    for said in ("50.0000 %", "of 400", "200 weights", "5 ± 0.5", "9 tokens", "v.1", "zeroth_order", "600 B", "2.0 s"):
        assert said in read.text
    assert "smaller is better" in read.text


def test_the_page_escapes_what_it_is_told():
    text = page("<b>run</b>", made(warnings=["<script>alert(1)</script> & so on"], towers={"<i>": 0.5}))
    assert "<script>" not in text
    assert "<b>" not in text
    assert "<i>" not in text
    assert "<script>alert(1)</script> & so on" in Page(text).text


def test_a_section_without_content_is_left_out():
    assert "Exports" not in page("run", made())
    text = page("run", made(measures={"dense": {}, "pruned": {}}))
    assert "Before and after" not in text
    assert "<h2>Warnings</h2>\n<p>none</p>" in text


@needs_matplotlib
def test_the_page_draws_blocks_and_folds_the_recipe():
    text = page("run", made())
    assert text.count("<svg") == 1
    for said in ("pruned in %", "score", "language", "vision"):
        assert said in text[text.index("<svg") : text.index("</svg>")]
    recipe = text[text.index("<details>") :]
    assert "granularity: block" in recipe
    assert text == page("run", made())


def test_numbers_stand_to_the_right_in_their_columns():
    text = page("run", made())
    assert '<th>group</th><th class="right">sparsity</th>' in text
    assert '<td class="right">60.00 %</td>' in text


def without_drawings(text):
    """What a page says of drawings that it does not have; all else of it is there."""
    read = Page(text)
    assert "<svg" not in text
    assert "<figure" not in text
    assert all(said in read.text for said in ("v.1", "50.0000 %", "granularity: block"))
    return read.text


def test_without_matplotlib_the_page_says_so_and_keeps_its_tables(monkeypatch):
    broken_matplotlib.absent(monkeypatch)
    assert obstacle()
    assert NO_MATPLOTLIB in without_drawings(page("run", made()))


def test_with_a_matplotlib_that_raises_at_import_the_page_says_why(monkeypatch, tmp_path):
    broken_matplotlib.raising_at_import(monkeypatch, tmp_path)
    assert obstacle()
    said = "There are no drawings, because matplotlib cannot be imported: RuntimeError: <numpy> is of another version"
    assert said in without_drawings(page("run", made()))


@needs_matplotlib
def test_with_a_figure_that_cannot_be_saved_the_page_says_why(monkeypatch):
    broken_matplotlib.raising_when_saved(monkeypatch)
    said = "There are no drawings, because drawing failed: OSError: no <font> was found"
    assert said in without_drawings(page("run", made()))


def test_the_page_is_named_after_its_folder(tmp_path):
    folder = tmp_path / "my-run"
    folder.mkdir()
    assert write_page(folder, made()) == folder / "report.html"
    assert "<title>my-run</title>" in (folder / "report.html").read_text()
