"""Runs side by side: names, means over seeds, what differs; as data, table, CSV and page. Most reports are made up."""

import csv
import json
from io import StringIO

import pytest

import ecoflap
from ecoflap.core.compare.comparison import as_data, compared, flat, told_apart, varying, what_differs
from ecoflap.core.compare.page import comparison_page, write_comparison
from ecoflap.core.compare.table import as_csv, markdown, notes, rows, tower_rows
from ecoflap.core.errors import RunError
from ecoflap.core.report.run_page import NO_DRAWINGS
from ecoflap.core.sweep.runs import record_runs

BLOCKS = {
    "v.0": {"tower": "vision", "size": 100, "keep": 40},
    "v.1": {"tower": "vision", "size": 100, "keep": 60},
    "l.0": {"tower": "language", "size": 200, "keep": 100},
}


def measure(value, larger=False):
    return {"value": value, "n": 9, "standard_error": 0.5, "unit": "tokens", "larger_is_better": larger}


@pytest.fixture
def made(tmp_path):
    """Write the folder of a finished run."""

    def made(name, *, sparsity=0.5, seed=0, pruned=None, score=None, seconds=2.0, fingerprints=None, **keys):
        recipe = {
            "version": 1, "seed": seed, "model": {"source": "m"}, "calibration": {"use": "text", "seed": seed},
            "sparsity": sparsity, "allocate": {"use": "ecoflap" if score else "uniform"},
            "prune": {"use": "wanda", "compare": "row"}, "evaluate": [{"use": "perplexity"}], **keys,
        }  # fmt: skip
        if score:
            recipe["score"] = {"use": score, "samples": 4, "granularity": "block"}
        scores = {"v.0": 3.0, "v.1": 1.0, "l.0": 2.0} if score else dict.fromkeys(BLOCKS)
        stages = [
            ("load", 1.0, 10),
            *([("score", 5.0, 90)] if score and not keys.get("reuse") else []),
            ("prune", seconds, 50),
        ]
        report = {
            "recipe": recipe, "sparsity": 0.5 if isinstance(sparsity, str) else sparsity, "prunable": 400,
            "towers": {"vision": 0.5, "language": 0.5}, "blocks": BLOCKS,
            "groups": {n: {**BLOCKS[n], "score": s, "standard_error": None} for n, s in scores.items()},
            "measures": {"dense": {"ppl": measure(4.0)}, "pruned": pruned or {"ppl": measure(5.0)}},
            "bytes": {"model": 1000, "safetensors": 600},
            "stages": [{"stage": n, "seconds": s, "peak_memory": p} for n, s, p in stages],
            "machine": {"device": "cpu"}, "versions": {"torch": "2.6"},
        }  # fmt: skip
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(json.dumps(recipe))
        (folder / "report.json").write_text(json.dumps(report))
        (folder / "fingerprints.json").write_text(json.dumps(fingerprints or {"model": "a"}))
        return folder

    return made


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


def test_towers_by_method_are_means_over_seeds(made):
    paths = [made("a"), made("b", seed=1)]
    report = json.loads((paths[1] / "report.json").read_text())
    report["towers"] = {"vision": 0.7, "language": 0.4}
    (paths[1] / "report.json").write_text(json.dumps(report))
    (row,) = tower_rows(compared(paths))
    assert row == {"method": "uniform → wanda", "sparsity": "50.00 %", "vision": "60.00 %", "language": "45.00 %"}


def test_a_single_tower_needs_no_table(made):
    path = made("a")
    report = json.loads((path / "report.json").read_text())
    (path / "report.json").write_text(json.dumps({**report, "towers": {"language": 0.5}}))
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


def test_a_score_that_nothing_looked_at_makes_no_method(made):
    paths = [made("a"), made("b", seed=1)]
    report = json.loads((paths[1] / "report.json").read_text())
    report["recipe"]["score"] = {"use": "zeroth_order", "samples": 4}
    (paths[1] / "report.json").write_text(json.dumps(report))
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


def test_parts_that_were_exchanged_hide_their_parameters():
    one, other = (
        flat({"prune": {"use": "wanda", "compare": "row"}}),
        flat({"prune": {"use": "sparsegpt", "damping": 1}}),
    )
    assert varying([one, other]) == ["prune.use"]
    assert flat({"a": [{"b": 1}, None], "c": {}}) == {"a.0.b": 1}
    assert told_apart(["x", "x", "y"], [{"k": 1}, {"k": 2}, {"k": 2}]) == ["x (k=1)", "x (k=2)", "y"]


def test_what_was_taken_over_counts_as_it_did_where_it_was_computed(made):
    found = compared([made("a", score="zeroth_order"), made("b", score="zeroth_order", reuse=["a"], seconds=3.0)])
    assert [run.seconds for run in found.runs] == [8.0, 9.0]
    assert [run.peak_memory for run in found.runs] == [90, 90]
    assert [run.took_over for run in found.runs] == [False, True]
    data = as_data(found)["runs"][1]
    assert (data["seconds"], data["seconds_alone"]) == (4.0, 9.0)
    alone = compared([made("c", score="zeroth_order", seed=5, reuse=["gone"])])
    assert alone.runs[0].seconds == 3.0


def test_the_table_has_a_row_a_group_and_one_for_the_dense_model(made):
    runs = [made(f"s{seed}", seed=seed, pruned={"ppl": measure(v)}) for seed, v in enumerate([5.0, 7.0])]
    found = compared(runs)
    dense, pruned = rows(found)
    assert (dense["method"], dense["ppl"], dense["model"]) == ("dense", "4", "1.0 kB")
    assert (pruned["method"], pruned["seeds"], pruned["ppl"]) == ("uniform → wanda", "2", "6 ± 1.4")
    assert pruned["safetensors"] == "600 B (0.60×)"
    assert list(notes(found)) == ["Measures: mean ± standard deviation over seeds."]
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


def test_stages_are_drawn_in_the_order_in_which_runs_go_through_them(made):
    text = comparison_page(compared([made("a"), made("b", score="zeroth_order")]), "t")
    stages = text[text.index("time of a run in seconds") :]
    assert stages.index(">load<") < stages.index(">score<") < stages.index(">prune<")


def test_without_matplotlib_the_page_has_its_tables(made, monkeypatch):
    monkeypatch.setattr("ecoflap.core.compare.page.can_draw", lambda: False)
    text = comparison_page(compared([made("a")]), "t")
    assert "<svg" not in text
    assert NO_DRAWINGS.replace("'", "&#x27;") in text


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


def test_a_report_from_before_it_held_blocks_is_read_with_its_plan(plain, tmp_path):
    run = ecoflap.run(plain(export=None, evaluate=None), folder=tmp_path / "run")
    new = as_data(compared([run.folder]))["runs"][0]["blocks"]
    report = json.loads((run.folder / "report.json").read_text())
    del report["blocks"]
    (run.folder / "report.json").write_text(json.dumps(report))
    assert as_data(compared([run.folder]))["runs"][0]["blocks"] == new
    assert len(new["language"]) == 3


def test_a_markdown_cell_cannot_end_its_column():
    head, rule, row = markdown([{"run": "a|b", "method": "m", "time": "1.0 s"}])
    assert row == r"| a\|b | m      | 1.0 s |"
    assert rule == "|:-----|:-------|------:|"
    assert len(head) == len(rule) == len(row)


def test_a_row_a_run_with_the_same_columns(plain, tmp_path):
    run = ecoflap.run(plain(), folder=tmp_path / "run")
    other = ecoflap.run(plain(evaluate=None, export=["hugging_face"]), folder=tmp_path / "other")
    first, second = rows(compared([run.folder, other.folder]))
    assert first.keys() == second.keys()
    assert second["perplexity dense"] == second["safetensors"] == first["hugging_face"] == "–"
    assert second["hugging_face"].endswith("(1.00×)")
