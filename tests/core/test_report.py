"""The report as data, table and page."""

import json
from html.parser import HTMLParser

import pytest

import ecoflap
from ecoflap.core.figures import bytes_text, measure_text, time_text
from ecoflap.core.report import comparison, markdown
from ecoflap.core.report_page import page

VOID = {"meta", "br", "hr", "img", "link"}


class Page(HTMLParser):
    """Refuses elements that are not closed where they should be; collects text and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.attributes = [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + " "


@pytest.fixture
def run(plain, tmp_path):
    return ecoflap.run(plain(), folder=tmp_path / "run")


def test_the_report_holds_what_the_files_do(run):
    report = json.loads((run.folder / "report.json").read_text())
    assert (report["prunable"], report["kept"], report["sparsity"]) == (23040, 11520, 0.5)
    assert report["kept_zeros"] == 0
    assert report["parameters"] == sum(p.numel() for p in run.model.parameters())
    weights = run.folder / "model" / "model.safetensors"
    packed = run.folder / "exports" / "safetensors" / "model.packed.safetensors"
    assert report["bytes"] == {"model": weights.stat().st_size, "safetensors": packed.stat().st_size}
    stages = ["load", "evaluate dense", "score", "allocate", "prune", "save", "evaluate pruned", "export safetensors"]
    assert [stage["stage"] for stage in report["stages"]] == stages
    assert all(stage["peak_memory"] > 1e7 for stage in report["stages"])
    assert report["machine"]["device"] in ("cpu", "cuda")
    assert {"python", "torch", "transformers", "ecoflap"} <= report["versions"].keys()
    assert list(report["groups"]) == [f"model.layers.{i}" for i in range(3)]


def test_the_page_is_well_formed_needs_nothing_and_has_the_numbers(run):
    text = (run.folder / "report.html").read_text()
    read = Page(text)
    assert not [value for name, value in read.attributes if name in ("src", "href")]
    assert "://" not in text
    assert "url(" not in text
    perplexity = run.report["measures"]["pruned"]["perplexity"]
    for number in ("50.0000 %", "23,040", "11,520", measure_text(perplexity), "model.layers.2", "zeroth_order"):
        assert number in read.text


def test_the_page_escapes_what_it_is_told(run):
    report = {**run.report, "warnings": ["<script>alert(1)</script> & so on"]}
    text = page("<b>run</b>", report)
    assert "<script>" not in text
    assert "<b>" not in text
    assert "<script>alert(1)</script> & so on" in Page(text).text


def test_evaluators_with_one_name_are_numbered(plain, tmp_path):
    evaluate = plain()["evaluate"]
    other = {**evaluate, "data": {**evaluate["data"], "samples": 3}}
    run = ecoflap.run(plain(evaluate=[evaluate, other]), folder=tmp_path / "run")
    for stage in ("dense", "pruned"):
        measures = run.report["measures"][stage]
        assert list(measures) == ["perplexity", "perplexity (2)"]
        assert [measure["n"] for measure in measures.values()] == [30, 45]


def test_a_markdown_cell_cannot_end_its_column():
    head, rule, row = markdown([{"run": "a|b", "method": "m", "time": "1.0 s"}])
    assert row == r"| a\|b | m      | 1.0 s |"
    assert rule == "|:-----|:-------|------:|"
    assert len(head) == len(rule) == len(row)


def test_a_row_a_run_with_the_same_columns(run, plain, tmp_path):
    other = ecoflap.run(plain(evaluate=None, export=["hugging_face"]), folder=tmp_path / "other")
    rows = comparison([run.folder, other.folder])
    assert rows[0].keys() == rows[1].keys()
    assert rows[1]["perplexity dense"] == rows[1]["safetensors"] == rows[0]["hugging_face"] == "–"
    assert rows[1]["hugging_face"].endswith("(1.00×)")


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


def test_a_measure_without_an_error():
    assert measure_text({"value": 12.3456, "standard_error": None}) == "12.35"
    assert measure_text({"value": 12.3456, "standard_error": 0.123}) == "12.35 ± 0.12"
    assert measure_text(None) == "–"
