"""The report as data, table and page."""

import json
from html.parser import HTMLParser

import pytest

import ecoflap
from ecoflap.core.report.run_page import NO_DRAWINGS, page
from ecoflap.core.text.numbers import bytes_text, measure_text, time_text

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

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

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
    assert not [value for name, value in read.attributes if name in ("src", "href") and not value.startswith("#")]
    assert "://" not in text
    assert text.count("url(") == text.count("url(#")
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


def test_the_report_has_each_block_whatever_the_groups_are(run, plain, tmp_path):
    layers = plain(score={"use": "zeroth_order", "samples": 2, "granularity": "layer"})
    other = ecoflap.run(layers, folder=tmp_path / "layers")
    for report in (run.report, other.report):
        assert list(report["blocks"]) == [f"model.layers.{i}" for i in range(3)]
        assert {block["tower"] for block in report["blocks"].values()} == {"language"}
        assert sum(block["size"] for block in report["blocks"].values()) == 23040
        assert sum(block["keep"] for block in report["blocks"].values()) == 11520
    assert len(other.report["groups"]) == 21


def test_the_page_draws_blocks_and_folds_the_recipe(run):
    text = page("run", run.report)
    assert text.count("<svg") == 1
    for said in ("pruned in %", "score", "language"):
        assert said in text[text.index("<svg") : text.index("</svg>")]
    recipe = text[text.index("<details>") :]
    assert "granularity: block" in recipe
    assert text == page("run", run.report)


def test_without_matplotlib_the_page_says_so_and_keeps_its_tables(run, monkeypatch):
    monkeypatch.setattr("ecoflap.core.report.run_page.can_draw", lambda: False)
    text = page("run", run.report)
    assert "<svg" not in text
    assert NO_DRAWINGS in Page(text).text
    assert "model.layers.2" in text


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
