"""The report of a run: what it holds, and that nothing else is taken for one."""

import json

import pytest
from made_report import made_report
from sealed_by_hand import read_sealed, write_sealed

import ecoflap
from ecoflap.core.cli.run_table import run_table
from ecoflap.core.compare.methods import method_names
from ecoflap.core.errors import RunError
from ecoflap.core.record.report import Report, read_report
from ecoflap.core.run.plan_trials import PlanTrials

KEYS = [
    "version", "finished", "recipe", "parameters", "prunable", "kept", "kept_zeros", "sparsity", "towers", "groups",
    "blocks", "measures", "bytes", "stages", "warnings", "machine", "versions", "exports", "lines", "refined",
    "tokens", "seal",
]  # fmt: skip


@pytest.fixture
def run(copied_run):
    return copied_run


def test_the_report_holds_what_the_files_do(run):
    report = json.loads((run.folder / "report.json").read_text())
    assert list(report) == KEYS
    assert (report["version"], report["prunable"], report["kept"], report["sparsity"]) == (1, 23040, 11520, 0.5)
    assert report["kept_zeros"] == 0
    assert report["parameters"] == sum(p.numel() for p in run.model.parameters())
    assert json.dumps(report["recipe"]) == json.dumps(run.recipe.plain())  # also in the order of its keys
    weights = run.folder / "model" / "model.safetensors"
    packed = run.folder / "exports" / "safetensors" / "model.packed.safetensors"
    assert report["bytes"] == {"model": weights.stat().st_size, "safetensors": packed.stat().st_size}
    stages = [
        "load",
        "check",
        "evaluate dense",
        "score",
        "allocate",
        "prune",
        "save",
        "evaluate pruned",
        "export safetensors",
    ]
    assert [stage["stage"] for stage in report["stages"]] == stages
    assert all(stage["peak_memory"] > 1e7 for stage in report["stages"])
    assert report["machine"]["device"] in ("cpu", "cuda")
    assert {"python", "torch", "transformers", "ecoflap"} <= report["versions"].keys()
    assert list(report["groups"]) == [f"model.layers.{i}" for i in range(3)]


def test_the_file_is_read_as_the_report_that_was_written(run):
    path = run.folder / "report.json"
    report = read_report(path)
    assert report == run.report
    assert json.loads(report.dump()) == read_sealed(path)
    assert report.method == "zeroth_order → ecoflap → wanda"
    assert (report.recipe.seed, report.recipe.prune.use, report.scored_unit) == (0, "wanda", "block")
    assert report.sparsities_by_tower() == {"language": [block.sparsity for block in report.blocks.values()]}
    assert report.scores_by_tower() == {"language": [group.score for group in report.groups.values()]}
    assert report.export_bytes == {"safetensors": report.exports["safetensors"].bytes.stored}


def test_an_export_is_held_to_what_its_own_files_would_be_dense():
    """Two files that each hold all weights are twice the model, and no larger than dense ones for that."""
    sizes = {"model": 1000, "deflated": 900, "dense": 2100, "stored": 1470}
    manifest = {"version": 1, "exporter": "onnx", "run": None, "files": {}, "bytes": sizes, "tensors": [], "checks": []}
    plain = {**made_report(), "exports": {"onnx": {**manifest, "notes": [], "versions": {}}}}
    plain["bytes"] |= {"onnx": 1470}
    report = Report.model_validate_json(json.dumps(plain))
    (*_, shown) = run_table(report)
    assert shown.rows == [("model", "1.0 kB (1.00×)"), ("safetensors", "600 B (0.60×)"), ("onnx", "1.5 kB (0.70×)")]


def test_a_report_cannot_be_changed(run):
    with pytest.raises(ValueError, match="frozen"):
        run.report.sparsity = 0.9


def test_a_scorer_that_nothing_asked_is_no_part_of_the_method(plain, tmp_path):
    report = ecoflap.run(plain(allocate="uniform", evaluate=None, export=None), folder=tmp_path / "run").report
    assert report.recipe.score.use == "zeroth_order"
    assert not report.is_scored
    assert not report.looked_at_scores
    assert (report.allocation, report.method) == ("uniform", "uniform → wanda")
    assert report.scores_by_tower() == {}


@pytest.mark.parametrize(
    ("refine", "own", "named"),
    [
        ({"use": "reconstruct", "steps": 1}, None, "reconstruct"),
        ({"use": "reconstruct", "steps": 1}, [], ""),
        ([], {"use": "reconstruct", "steps": 1}, "reconstruct"),
        ([{"use": "distill", "steps": 1}], {"use": "reconstruct", "steps": 1}, "reconstruct → distill"),
    ],
)
def test_refiners_that_ran_are_the_methods_and_no_others(plain, tmp_path, refine, own, named):
    """A tower that has refiners of its own takes none of the blocks' that stand under refine."""
    towers = {} if own is None else {"language": {"refine": own}}
    recipe = plain(score=None, allocate="uniform", refine=refine, towers=towers, evaluate=None, export=None)
    report = ecoflap.run(recipe, folder=tmp_path / "run").report
    assert report.method == " → ".join(filter(None, ["uniform", "wanda", named]))


@pytest.mark.parametrize("rule", [{"use": "ecoflap", "max_sparsity": 0.5}, {"use": "ecoflap", "max_sparsity": 0.9}])
def test_a_method_is_called_alike_whichever_candidate_was_taken(plain, tmp_path, monkeypatch, rule):
    """A mean over the seeds in which one of them won would be chosen by what came out."""
    names = []
    for taken in (min, max):
        monkeypatch.setattr(PlanTrials, "_taken", lambda self, found, taken=taken: taken(found, key=_is_uniform))
        recipe = plain(allocate={"use": "best_of", "of": ["uniform", rule]}, evaluate=None, export=None)
        names.append(ecoflap.run(recipe, folder=tmp_path / taken.__name__).report)
    assert [report.is_scored for report in names] == [True, False]
    assert {report.method for report in names} == {"zeroth_order → best_of → wanda"}
    assert len(set(method_names(["", ""], names, [{}, {}]))) == 1


def _is_uniform(label):
    return label.startswith("uniform")


def test_evaluators_with_one_name_are_numbered(plain, tmp_path):
    evaluate = plain()["evaluate"]
    other = {**evaluate, "data": {**evaluate["data"], "samples": 3}}
    measures = ecoflap.run(plain(evaluate=[evaluate, other]), folder=tmp_path / "run").report.measures
    for found in (measures.dense, measures.pruned):
        assert list(found) == ["perplexity", "perplexity (2)"]
        assert [measure.n for measure in found.values()] == [30, 45]


def test_the_report_has_each_block_whatever_the_groups_are(run, plain, tmp_path):
    layers = plain(score={"use": "zeroth_order", "samples": 2, "granularity": "layer"})
    other = ecoflap.run(layers, folder=tmp_path / "layers")
    for report in (run.report, other.report):
        assert list(report.blocks) == [f"model.layers.{i}" for i in range(3)]
        assert {block.tower for block in report.blocks.values()} == {"language"}
        assert sum(block.size for block in report.blocks.values()) == 23040
        assert sum(block.keep for block in report.blocks.values()) == 11520
    assert len(other.report.groups) == 21


def changed(data, place, value):
    """The data with a value at a dotted place; without the key for ``None``."""
    path = place.replace("v.0", "v:0").split(".")  # a block's name has a dot
    *path, last = [key.replace(":", ".") for key in path]
    inside = data
    for key in path:
        inside = inside[int(key) if isinstance(inside, list) else key]
    if value is None:
        del inside[last]
    else:
        inside[last] = value
    return data


EDITS = [
    ("version", 2, "version: Input should be 1"),
    ("blocks", None, "blocks: Field required"),
    ("exports", None, "exports: Field required"),
    ("sparse", 0.5, "sparse: no such key is known here"),
    ("measures.after", {}, "measures.after: no such key is known here"),
    ("measures.dense.ppl.n", None, "measures.dense.ppl.n: Field required"),
    ("parameters", "500", "parameters: Input should be a valid integer"),
    ("parameters", -1, "parameters: Input should be greater than or equal to 0"),
    ("towers.language", "half", "towers.language: Input should be a valid number"),
    ("recipe.prune.use", 3, "recipe.prune.use: Input should be a valid string"),
    ("recipe.prnue", {}, "recipe: no such key is known here: prnue"),
    ("stages.0.seconds", -1.0, "stages.0.seconds: Input should be greater than or equal to 0"),
    ("exports.onnx", {"version": 1}, "exports.onnx.files: Field required"),
    ("sparsity", 1.5, "sparsity: Input should be less than or equal to 1"),
    ("sparsity", 0.6, "sparsity is 0.6, but kept is 200 of 400 prunable weights"),
    ("kept", 199, "sparsity is 0.5, but kept is 199 of 400 prunable weights"),
    ("groups.v.0.keep", 41, "groups keep 201 of 400 weights, but kept is 200 of 400"),
    ("blocks.v.0.size", 99, "blocks keep 200 of 399 weights, but kept is 200 of 400"),
]


@pytest.mark.parametrize(("place", "value", "said"), EDITS)
def test_what_was_edited_is_refused_with_its_place(tmp_path, place, value, said):
    path = tmp_path / "report.json"
    write_sealed(path, changed(made_report(), place, value))
    with pytest.raises(RunError) as caught:
        read_report(path)
    assert said in str(caught.value)
    assert all(problem.startswith(f"{path}: ") for problem in caught.value.problems)
    way_out = ". Restore it; or delete it and run its recipe again, which writes the report anew."
    assert all(problem.endswith(way_out) for problem in caught.value.problems)


def test_a_made_up_report_is_one(tmp_path):
    write_sealed(tmp_path / "report.json", made_report(score="zeroth_order"))
    assert read_report(tmp_path / "report.json").method == "zeroth_order → ecoflap → wanda"


@pytest.mark.parametrize(
    ("text", "said"), [('{"a"\n}', "Invalid JSON"), ("[]", "Invalid JSON"), ('{"version": NaN}', "version")]
)
def test_a_file_that_is_no_report_is_refused(tmp_path, text, said):
    write_sealed(tmp_path / "report.json", text)
    with pytest.raises(RunError, match=said) as caught:
        read_report(tmp_path / "report.json")
    assert str(tmp_path / "report.json") in str(caught.value)
    with pytest.raises(RunError, match=r"none\.json cannot be read: No such file"):
        read_report(tmp_path / "none.json")


def test_of_a_file_of_another_kind_not_every_key_is_told(tmp_path):
    write_sealed(tmp_path / "report.json", {"version": 1, "runs": []})
    with pytest.raises(RunError) as caught:
        read_report(tmp_path / "report.json")
    assert len(caught.value.problems) == 6
    assert caught.value.problems[-1].startswith(f"{tmp_path / 'report.json'}: and 14 more places are wrong")


def test_a_report_that_was_spoilt_is_refused_and_written_anew_where_it_is_gone(run, plain):
    path = run.folder / "report.json"
    path.write_text("spoilt")
    with pytest.raises(RunError, match=r"report\.json: its last line should hold a seal.*delete it and run its recipe"):
        ecoflap.run(plain(), folder=run.folder)
    path.unlink()
    ecoflap.run(plain(), folder=run.folder)
    assert isinstance(read_report(path), Report)


def test_lines_that_a_report_knows_cannot_go(run, plain):
    path = run.folder / "evaluations.jsonl"
    *lines, _ = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines))
    for use in (
        lambda: ecoflap.run(plain(), folder=run.folder),
        lambda: ecoflap.export_run(run.folder, "hugging_face"),
    ):
        with pytest.raises(RunError, match=r"evaluations\.jsonl: its last lines are gone, which report\.json knows"):
            use()
    (run.folder / "report.json").unlink()
    assert ecoflap.run(plain(), folder=run.folder).report.measures == run.report.measures
