"""Runs side by side: names, means over seeds, what differs; as data, table, CSV and page. Most reports are made up."""

import csv
import json
from io import StringIO

import broken_matplotlib
import pytest
from html_page import Page
from made_report import measure
from sealed_by_hand import edit_sealed, read_sealed, write_sealed

import ecoflap
from ecoflap.core.compare.comparison import compared
from ecoflap.core.compare.data import as_csv, as_data
from ecoflap.core.compare.differences import what_differs
from ecoflap.core.compare.drawings import chapters
from ecoflap.core.compare.methods import distinct_names, flat, varying
from ecoflap.core.compare.page import comparison_page, refuse_strangers, write_comparison
from ecoflap.core.compare.table import markdown, notes, rows, tower_rows
from ecoflap.core.errors import RunError
from ecoflap.core.report.drawings import NO_MATPLOTLIB, obstacle
from ecoflap.core.sealing.sealed_lines import append_line
from ecoflap.core.sweep.runs import record_runs

pytestmark = pytest.mark.usefixtures("drawing")


def test_seeds_of_one_method_are_a_mean_with_its_standard_deviation(made):
    runs = [made(f"s{seed}", seed=seed, pruned={"ppl": measure(v)}) for seed, v in enumerate([5.0, 6.0, 10.0])]
    data = as_data(compared([*runs, made("other", sparsity=0.7)]))
    first, second = data["groups"]
    assert (first["method"], first["sparsity"], first["metric"]) == ("uniform → wanda", 0.5, "ppl")
    # by hand: mean 21/3 = 7; ((-2)² + (-1)² + 3²) / 2 = 7
    assert (first["n_seeds"], first["mean"], first["min"], first["max"]) == (3, 7.0, 5.0, 10.0)
    assert first["sd"] == pytest.approx(7**0.5)
    assert (second["n_seeds"], second["sd"]) == (1, None)
    assert data["dense"]["ppl"] == {**measure(4.0), "min": 4.0, "max": 4.0}
    assert [run["seed"] for run in data["runs"]] == [0, 1, 2, 0]
    assert data["runs"][0]["blocks"] == {"vision": [0.6, 0.4], "language": [0.5]}
    assert data["runs"][0]["peak_memory"] == 50
    json.dumps(data, allow_nan=False)


def test_a_seed_made_twice_counts_once(made):
    values = {"first": (0, 5.0), "again": (0, 7.0), "other": (1, 9.0)}
    runs = [made(name, seed=seed, pruned={"ppl": measure(value)}) for name, (seed, value) in values.items()]
    comparison = compared(runs)
    (group,) = as_data(comparison)["groups"]
    # by hand: the first seed's mean is 6, the mean of 6 and 9 is 7.5, and (1.5² + 1.5²) / 1 = 4.5
    assert (group["n_seeds"], group["mean"], group["min"], group["max"]) == (2, 7.5, 6.0, 9.0)
    assert group["sd"] == pytest.approx(4.5**0.5)
    assert rows(comparison)[1]["seeds"] == "2"
    assert "Of the same seeds, and counted once: first, again" in list(notes(comparison))


def test_runs_of_the_same_seeds_alone_are_a_row_each(made):
    comparison = compared([made("first", pruned={"acc": measure(0.5)}), made("again")])
    assert [row["run"] for row in rows(comparison)] == ["first", "again"]
    assert {group["metric"]: group["sd"] for group in as_data(comparison)["groups"]} == {"acc": None, "ppl": None}
    assert list(notes(comparison))[:2] == ["Measures: value ± standard error.", "Of the same seeds: first, again"]
    comparison_page(comparison, "two")


def test_seeds_of_parts_tell_runs_apart(made):
    runs = [made(name, calibration={"use": "text", "seed": seed}) for seed, name in enumerate("ab")]
    assert [row["seeds"] for row in rows(compared(runs))[1:]] == ["2"]


def test_exports_which_may_be_made_days_later_count_for_no_time_and_no_memory(made):
    path = made("a", seconds=3.0)  # loading takes one more
    late = {"stage": "export onnx", "seconds": 1000.0, "peak_memory": 1000}
    edit_sealed(path / "report.json", lambda report: {**report, "stages": [*report["stages"], late]})
    comparison = compared([path])
    (row,) = rows(comparison)
    assert (row["time"], row["peak memory"]) == ("4.0 s", "50 B")
    (time,) = (chapter.drawings[0].svg for chapter in chapters(comparison) if chapter.title == "Time and memory")
    assert "time of a run in seconds" in time
    assert "onnx" not in time


def test_a_measure_may_be_called_like_another_column(made):
    runs = [made(name, seed=seed, pruned={"time": measure(3.0)}) for seed, name in enumerate("ab")]
    dense, group = rows(compared(runs))
    assert group["time (measure)"].startswith("3")
    assert dense["time (measure)"] == "–"
    assert group["time"] != group["time (measure)"]


def test_towers_by_method_are_means_over_seeds(made):
    paths = [made("a"), made("b", seed=1)]
    report = read_sealed(paths[1] / "report.json")
    report["towers"] = {"vision": 0.7, "language": 0.4}
    write_sealed(paths[1] / "report.json", report)
    (row,) = tower_rows(compared(paths))
    assert row == {"method": "uniform → wanda", "sparsity": "50.00 %", "vision": "60.00 %", "language": "45.00 %"}


def test_a_single_tower_needs_no_table(made):
    path = made("a")
    edit_sealed(path / "report.json", lambda report: {**report, "towers": {"language": 0.5}})
    assert tower_rows(compared([path])) == []


def test_unlike_runs_are_never_one_method(made):
    found = compared(
        [
            made("a"),
            made("b", prune={"use": "wanda", "compare": "layer"}),
            made("c", prune={"use": "magnitude"}),
            made("d", score="zeroth_order"),
            made("e", sparsity="2:4"),
            made("f", model={"source": "other"}),
        ]
    )
    assert [run.method for run in found.runs] == [
        "uniform → wanda (model.source=m, prune.compare=row)",
        "uniform → wanda (model.source=m, prune.compare=layer)",
        "uniform → magnitude",
        "zeroth_order → ecoflap → wanda",
        "uniform → wanda 2:4",
        "uniform → wanda (model.source=other, prune.compare=row)",
    ]
    assert len(found.groups) == 6


def test_a_run_named_in_several_ways_is_one(made, monkeypatch):
    path = made("a")
    monkeypatch.chdir(path.parent)
    assert len(compared(["a", path, path.parent / "a" / ".." / "a"]).runs) == 1


def test_where_calibration_data_are_kept_makes_no_method(made):
    data = {"use": "text", "path": "corpus.txt", "samples": 4, "sequence_length": 16}
    paths = [made(name, calibration={**data, "keep": keep}) for name, keep in (("a", "memory"), ("b", "disk"))]
    assert {run.method for run in compared(paths).runs} == {"uniform → wanda"}


def test_a_score_that_nothing_looked_at_makes_no_method(made):
    paths = [made("a"), made("b", seed=1)]
    report = read_sealed(paths[1] / "report.json")
    report["recipe"]["score"] = {"use": "zeroth_order", "samples": 4, "granularity": "block"}
    write_sealed(paths[1] / "report.json", report)
    found = compared(paths)
    assert {run.method for run in found.runs} == {"uniform → wanda"}
    assert what_differs(found) == {}


def test_what_else_differs_is_told_but_not_seeds_and_sparsities(made):
    paths = [
        made("a", seed=1, sparsity=0.6),
        made("b", calibration={"use": "text", "seed": 0, "samples": 8}),
        made("c", fingerprints={"model": "b"}),
    ]
    told = what_differs(compared(paths[:2]))
    assert told == {
        "calibration.samples": {
            "not set": ["uniform → wanda (calibration.samples=not set)"],
            "8": ["uniform → wanda (calibration.samples=8)"],
        },
    }
    told = what_differs(compared([paths[2], made("d", fingerprints={"model": "a"})]))
    assert list(told) == ["contents of the model"]
    assert sorted(told["contents of the model"].values()) == [["c"], ["d"]]
    assert what_differs(compared(paths[:1])) == {}


def evaluated(folder, digest, evaluator):
    """Write down on which files a run was evaluated."""
    for stage in ("dense", "pruned"):
        line = {"stage": stage, "evaluator": evaluator, "files": {"data.text": digest}, "measures": {}}
        append_line(folder / "evaluations.jsonl", line)
    return folder


def test_no_mean_is_taken_over_other_evaluation_data_of_one_name(made):
    evaluator = {"use": "perplexity", "data": {"use": "text", "path": "/data/eval.txt", "seed": 0}}
    runs = [
        evaluated(made(f"s{seed}", seed=seed, evaluate=[evaluator]), digest, evaluator)
        for seed, digest in enumerate(["one", "one", "other"])
    ]
    like = compared(runs[:2])
    assert [len(group.runs) for group in like.groups] == [2]
    assert what_differs(like) == {}
    unlike = compared(runs)
    assert [[run.name for run in group.runs] for group in unlike.groups] == [["s0", "s1"], ["s2"]]
    told = what_differs(unlike)
    assert list(told) == ["contents of the data of evaluate.0 (perplexity)"]
    assert sorted(told["contents of the data of evaluate.0 (perplexity)"].values()) == [["s0", "s1"], ["s2"]]


def test_other_data_of_other_evaluators_are_nothing_new(made):
    paths = []
    for name in ("a", "b"):
        evaluator = {"use": "perplexity", "data": {"use": "text", "path": f"/data/{name}.txt"}}
        paths.append(evaluated(made(name, evaluate=[evaluator]), name, evaluator))
    assert list(what_differs(compared(paths))) == ["evaluate.0.data.path"]


def test_no_mean_is_taken_over_other_models_of_one_name(made):
    runs = [made(f"s{seed}", seed=seed, fingerprints={"model": model}) for seed, model in enumerate("aab")]
    assert [[run.name for run in group.runs] for group in compared(runs).groups] == [["s0", "s1"], ["s2"]]


def test_calibration_data_that_a_seed_draws_make_no_method(made):
    runs = [made(f"s{seed}", seed=seed, fingerprints={"model": "a", "calibration data": seed}) for seed in range(2)]
    assert [len(group.runs) for group in compared(runs).groups] == [2]


@pytest.mark.parametrize(("models", "is_told"), [("aa", True), ("ab", False), ((None, None), False)])
def test_seeds_that_change_nothing_are_told(made, models, is_told):
    runs = [
        made(f"s{seed}", seed=seed, fingerprints={"model": "m", "pruned model": model and {"masks.safetensors": model}})
        for seed, model in enumerate(models)
    ]
    said = "Of other seeds, and the same model bit for bit, so that ± says nothing: s0, s1"
    assert (said in list(notes(compared(runs)))) == is_told


def test_parts_that_were_exchanged_hide_their_parameters():
    one, other = (
        flat({"prune": {"use": "wanda", "compare": "row"}}),
        flat({"prune": {"use": "sparsegpt", "damping": 1}}),
    )
    assert varying([one, other]) == ["prune.use"]
    assert flat({"a": [{"b": 1}, None], "c": {}}) == {"a.0.b": 1}
    assert distinct_names(["x", "x", "y"], [{"k": 1}, {"k": 2}, {"k": 2}]) == ["x (k=1)", "x (k=2)", "y"]


def test_a_time_without_what_was_taken_over_is_as_measured_and_marked(made):
    scores, both = ("scores",), ("scores", "dense evaluation")
    first = made("a", score="zeroth_order", seconds=3.0)
    second = made("b", score="zeroth_order", prune={"use": "magnitude"}, taken_over=both)
    third = made("c", score="zeroth_order", sparsity=0.6, taken_over=scores)
    found = compared([first, second, third])
    assert [(run.seconds, run.peak_memory, run.taken_over) for run in found.runs] == [
        (9.0, 90, ()), (8.0, 90, both), (8.0, 90, scores),
    ]  # fmt: skip
    assert [row["time"] for row in rows(found)] == ["9.0 s", "8.0 s †", "8.0 s †"]
    assert [row["peak memory"] for row in rows(found)] == ["90 B", "90 B †", "90 B †"]
    said = "†: as measured, without what these took over from another run: scores (b, c); dense evaluation (b)."
    assert said in list(notes(found))
    assert said in Page(comparison_page(found, "t")).text
    data = as_data(found)["runs"]
    assert [(run["seconds"], run["taken_over"]) for run in data] == [(9.0, []), (8.0, list(both)), (8.0, ["scores"])]
    assert "seconds_alone" not in data[0]
    assert [line["taken over"] for line in csv.DictReader(StringIO(as_csv(found)))] == ["", ", ".join(both), "scores"]


def test_of_several_seeds_it_is_said_how_many_took_something_over(made):
    runs = [made(f"s{seed}", seed=seed, taken_over=["dense evaluation"] * (1 if seed else 0)) for seed in range(3)]
    found = compared([*runs, made("other", prune={"use": "magnitude"})])
    assert [row["time"] for row in rows(found)] == ["–", "3.0 s †", "3.0 s"]
    (said,) = (note for note in notes(found) if note.startswith("†"))
    assert said.endswith("another run: dense evaluation (uniform → wanda: 2 of 3 runs).")


def test_nothing_is_said_where_nothing_was_taken_over(made):
    assert not [note for note in notes(compared([made("a"), made("b", seed=1)])) if "†" in note]


def test_the_table_has_a_row_a_group_and_one_for_the_dense_model(made):
    runs = [made(f"s{seed}", seed=seed, pruned={"ppl": measure(v)}) for seed, v in enumerate([5.0, 7.0])]
    found = compared(runs)
    dense, pruned = rows(found)
    assert (dense["method"], dense["ppl"], dense["model"]) == ("dense", "4", "1.0 kB")
    assert (pruned["method"], pruned["seeds"], pruned["ppl"]) == ("uniform → wanda", "2", "6 ± 1.4")
    assert pruned["safetensors"] == "600 B (0.60×)"
    assert list(notes(found)) == ["Measures: mean ± standard deviation over seeds."]
    for run in runs:  # an export of two files that each hold all weights
        report = read_sealed(run / "report.json")
        sizes = {"model": 1000, "deflated": None, "dense": 2000, "stored": 600}
        manifest = {"exporter": "onnx", "run": None, "files": {}, "bytes": sizes, "tensors": [], "checks": []}
        write_sealed(
            run / "report.json", {**report, "exports": {"safetensors": {**manifest, "notes": [], "versions": {}}}}
        )
    assert rows(compared(runs))[1]["safetensors"] == "600 B (0.30×)"
    (alone,) = rows(compared(runs[:1]))
    assert (alone["run"], alone["ppl dense"], alone["ppl pruned"]) == ("s0", "4 ± 0.5", "5 ± 0.5")


def test_a_measure_that_some_runs_lack_leaves_a_gap(made, tmp_path):
    found = compared([made("a", pruned={"acc": measure(0.5, larger=True)}), made("b", prune={"use": "magnitude"})])
    first, second = rows(found)
    assert (first["ppl pruned"], second["acc pruned"], second["acc dense"]) == ("–", "–", "–")
    assert as_data(found)["dense"]["acc"] is None
    page = write_comparison(found, tmp_path / "out", "t").read_text()
    assert "acc (larger is better)" in page
    assert "ppl (smaller is better)" in page


def test_the_csv_has_plain_numbers(made):
    found = compared([made("a", seed=3), made("b", prune={"use": "magnitude"})])
    first, second = csv.DictReader(StringIO(as_csv(found)))
    assert (first["run"], first["seed"], first["ppl"], first["ppl dense"]) == ("a", "3", "5.0", "4.0")
    assert (first["bytes of safetensors"], first["sparsity of vision"]) == ("600", "0.5")
    assert second["method"] == "uniform → magnitude"


def test_a_measure_of_another_columns_name_has_a_column_of_its_own(made):
    found = compared([made("a", sparsity=0.5, pruned={"sparsity": measure(7.0), "seconds": measure(8.0)})])
    (line,) = csv.DictReader(StringIO(as_csv(found)))
    assert (line["sparsity"], line["sparsity (measure)"]) == ("0.5", "7.0")
    assert (line["seconds (measure)"], line["seconds n"]) == ("8.0", str(measure(8.0)["n"]))
    assert line["seconds"] != "8.0"


def test_the_page_needs_nothing_and_shows_each_run(made):
    paths = [made(f"s{i}", seed=i % 2, sparsity=[0.5, 0.5, 0.7][i], score="zeroth_order") for i in range(3)]
    text = comparison_page(compared([*paths, made("<b>&", prune={"use": "magnitude"})]), "a <title>")
    assert "://" not in text
    assert "<b>" not in text
    assert "a &lt;title&gt;" in text
    assert text.count("<details>") == 4
    assert text.count("<svg") == 1 + 2 + 1 + 2 + 1  # a measure, two sparsities, scores, time and memory, bytes
    assert text == comparison_page(compared([*paths, paths[0].parent / "<b>&"]), "a <title>")
    for name in ("measure0", "blocks0", "blocks1", "scores", "time", "memory", "bytes"):
        assert f'id="{name}-' in text


@pytest.mark.skipif(obstacle() is not None, reason="needs matplotlib")
@pytest.mark.parametrize(
    ("other", "label"),
    [
        ({"towers": {"language": "keep"}}, "towers.language=keep"),
        ({"calibration": {"use": "text", "seed": 0, "samples": 8}}, "calibration.samples=8"),
    ],
)
def test_scores_of_other_towers_or_data_are_lines_of_their_own(made, other, label):
    runs = [made("a", score="zeroth_order"), made("b", score="zeroth_order", **other)]
    drawings = {chapter.title: chapter.drawings[0].svg for chapter in chapters(compared(runs))}
    assert f"zeroth_order ({label})" in drawings["Scores by block"]
    assert f"zeroth_order → ecoflap ({label})" in drawings["Sparsity by block"]


@pytest.mark.skipif(obstacle() is not None, reason="needs matplotlib")
def test_scores_of_other_seeds_are_one_line(made):
    runs = [made("a", score="zeroth_order"), made("b", seed=1, score="zeroth_order")]
    drawings = {chapter.title: chapter.drawings[0].svg for chapter in chapters(compared(runs))}
    assert "zeroth_order" not in drawings["Scores by block"]  # a single line needs no legend


@pytest.mark.skipif(obstacle() is not None, reason="needs matplotlib")
@pytest.mark.parametrize(
    ("seconds", "unit"), [(199, "seconds"), (200, "minutes"), (11_999, "minutes"), (12_000, "hours")]
)
def test_times_are_drawn_in_a_unit_that_keeps_them_small(made, seconds, unit):
    found = compared([made("a", seconds=seconds - 1.0)])  # loading takes one
    (time,) = (chapter.drawings[0].svg for chapter in chapters(found) if chapter.title == "Time and memory")
    assert f"time of a run in {unit}" in time


def test_paths_may_be_texts(made, tmp_path):
    found = compared([str(made("a"))])
    assert found == compared([tmp_path / "a"])
    assert write_comparison(found, str(tmp_path / "out"), "t") == tmp_path / "out" / "report.html"


def test_stages_are_drawn_in_the_order_in_which_runs_go_through_them(made):
    text = comparison_page(compared([made("a"), made("b", score="zeroth_order")]), "t")
    stages = text[text.index("time of a run in seconds") :]
    assert stages.index(">load<") < stages.index(">score<") < stages.index(">prune<")


def without_drawings(page):
    """What a page without drawings says; its tables are there."""
    read = Page(page.read_text())
    assert "<svg" not in page.read_text()
    assert "uniform → wanda" in read.text
    assert {path.name for path in page.parent.iterdir()} == {f"report.{kind}" for kind in ("json", "csv", "md", "html")}
    return read.text


def test_without_matplotlib_the_page_has_its_tables(made, monkeypatch, tmp_path):
    broken_matplotlib.absent(monkeypatch)
    assert NO_MATPLOTLIB in without_drawings(write_comparison(compared([made("a")]), tmp_path / "out", "t"))


def test_with_a_broken_matplotlib_the_page_says_why(made, monkeypatch, tmp_path):
    (tmp_path / "lib").mkdir()
    broken_matplotlib.raising_at_import(monkeypatch, tmp_path / "lib")
    said = without_drawings(write_comparison(compared([made("a")]), tmp_path / "out", "t"))
    assert "matplotlib cannot be imported: RuntimeError: <numpy> is of another version" in said


@pytest.mark.skipif(obstacle() is not None, reason="needs matplotlib")
def test_with_a_figure_that_cannot_be_saved_the_page_says_why(made, monkeypatch, tmp_path):
    broken_matplotlib.raising_when_saved(monkeypatch)
    said = without_drawings(write_comparison(compared([made("a")]), tmp_path / "out", "t"))
    assert "drawing failed: OSError: no <font> was found" in said


def test_the_data_are_written_before_the_page(made, monkeypatch, tmp_path):
    monkeypatch.setattr("ecoflap.core.compare.page.comparison_page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_comparison(compared([made("a")]), tmp_path / "out", "t")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.csv", "report.md"}


def test_a_sweep_stands_for_its_finished_runs_under_its_own_names(made, tmp_path):
    made("sweep/one")
    made("sweep/two", prune={"use": "magnitude"})
    entry = {"seed": 0, "grid": {}}
    runs = [{"folder": name, "method": name.upper(), **entry} for name in ("one", "two", "three")]
    record_runs(tmp_path / "sweep", runs)
    found = compared([tmp_path / "sweep", tmp_path / "sweep" / "one"])
    assert [(run.name, run.method) for run in found.runs] == [("one", "ONE"), ("two", "TWO")]
    assert found.unfinished == (tmp_path / "sweep" / "three",)
    assert "Not finished, and left out: three" in list(notes(found))
    record_runs(tmp_path / "empty", runs)
    with pytest.raises(RunError, match=r"one: no run folder"):
        compared([tmp_path / "empty"])


def test_a_report_that_this_version_did_not_write_is_refused(made):
    folder = made("a")
    report = read_sealed(folder / "report.json")
    del report["blocks"]
    write_sealed(folder / "report.json", report)
    with pytest.raises(RunError, match=r"a/report\.json: blocks: Field required\. Restore it; or delete it and run"):
        compared([folder])


def test_a_markdown_cell_cannot_end_its_column():
    head, rule, row = markdown([{"run": "a|b", "method": "m", "time": "1.0 s"}])
    assert row == r"| a\|b | m      | 1.0 s |"
    assert rule == "|:-----|:-------|------:|"
    assert len(head) == len(rule) == len(row)


def test_a_row_a_run_with_the_same_columns(plain, plain_run, tmp_path):
    run = plain_run
    other = ecoflap.run(plain(evaluate=None, export=["hugging_face"]), folder=tmp_path / "other")
    first, second = rows(compared([run.folder, other.folder]))
    assert first.keys() == second.keys()
    assert second["perplexity dense"] == second["safetensors"] == first["hugging_face"] == "–"
    assert second["hugging_face"].endswith("(1.00×)")


def test_what_is_there_already_is_replaced_only_on_demand(made, tmp_path, ecoflap_command):
    path, out = made("a"), tmp_path / "out"
    assert ecoflap_command("compare", path, "--out", out)[0] == 0
    before = (out / "report.html").stat().st_mtime_ns
    code, _, err = ecoflap_command("compare", path, "--out", out)
    assert code == 2
    assert "out has report.json, report.csv, report.md, report.html already: name another folder, or say --over" in err
    assert (out / "report.html").stat().st_mtime_ns == before
    assert ecoflap_command("compare", path, "--out", out, "--overwrite")[0] == 0


def test_without_a_place_that_was_named_only_what_a_comparison_wrote_is_replaced(
    made, tmp_path, ecoflap_command, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path, out = made("a"), tmp_path / "runs" / "comparison"
    for _ in range(2):
        assert ecoflap_command("compare", path)[0] == 0
    for name in ("report.json", "report.csv", "report.md", "report.html"):
        whole = (out / name).read_bytes()
        (out / name).write_bytes(b"mine " + whole)
        code, _, err = ecoflap_command("compare", path)
        assert code == 2
        assert "comparison: a comparison would replace report." in err
        assert name in err
        assert "which changed since. Name another folder with --out, or say --overwrite." in err
        assert (out / name).read_bytes() == b"mine " + whole
        (out / name).write_bytes(whole)
    (out / "report.md").unlink()
    (out / "report.md").symlink_to(tmp_path / "nowhere")
    assert ecoflap_command("compare", path)[0] == 2
    assert ecoflap_command("compare", path, "--overwrite")[0] == 0
    assert ecoflap_command("compare", path)[0] == 0


def test_a_comparison_that_was_cut_off_is_none_of_a_strangers(made, monkeypatch, tmp_path):
    write_comparison(compared([made("a")]), tmp_path / "out", "t")
    other = compared([made("b", sparsity=0.7)])
    for stopped in ("report.csv", "report.md"):
        with monkeypatch.context() as cut_off:
            cut_off.setattr("ecoflap.core.compare.page.write_whole", stopping_at(stopped))
            with pytest.raises(KeyboardInterrupt):
                write_comparison(other, tmp_path / "out", "t")
        refuse_strangers(tmp_path / "out", "")


def stopping_at(name):
    def write(path, data):
        if path.name == name:
            raise KeyboardInterrupt
        path.write_bytes(data)

    return write
