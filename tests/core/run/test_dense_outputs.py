"""What evaluators remember of the dense model, over a whole run: kept, sealed, handed back, taken over, asked anew."""

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from killing import in_a_fork
from sealed_by_hand import read_lines, write_lines

import ecoflap
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.events import StageStarted
from ecoflap.core.contracts.protocols import Dataset, ignore
from ecoflap.core.contracts.records import Measure
from ecoflap.core.errors import EcoflapError, FormatError, RunError
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.record.evaluations import Evaluation
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.remembered import check_remembered
from ecoflap.core.sealing.sealed import open_sealed
from ecoflap.core.sweep.request import SweepRequest
from ecoflap.core.sweep.sweep import sweep
from ecoflap.core.verifying.verify import verify
from ecoflap.plugins.datasets.text import Text
from ecoflap.plugins.evaluators.agreement import Agreement
from ecoflap.plugins.evaluators.kl import Kl


@pytest.fixture(scope="module")
def text(pico):
    return {
        "use": "text", "path": str(pico / "text.jsonl"), "sequence_length": 16, "samples": 3, "portion": [0.7, 1],
        "order": "spread",
    }  # fmt: skip


@pytest.fixture(scope="module")
def comparing(pico, text):
    """A recipe whose evaluators all look at 45 predicted words, and of which two compare; keywords replace its keys."""

    def comparing(**keys):
        return {
            "version": 1,
            "model": str(pico / "model"),
            "calibration": {**text, "portion": [0, 0.7], "batch_size": 3},
            "sparsity": 0.5,
            "score": {"use": "magnitude"},
            "prune": "wanda",
            "evaluate": [
                {"use": "perplexity", "data": text},
                {"use": "kl", "data": text, "positions": 4},
                {"use": "agreement", "data": text},
            ],
            **keys,
        }

    return comparing


def files(folder):
    return sorted((folder / "dense").iterdir())


def found(folder):
    """All that must be the same however often a run was cut off: what was measured, and remembered."""
    remembered = {path.name: path.read_bytes() for path in files(folder)}
    return {json.dumps(line, sort_keys=True) for line in read_lines(folder / "evaluations.jsonl")}, remembered


def test_a_run_measures_what_two_models_in_memory_give(comparing, text, pico, pico_llama, pico_tokenizer, tmp_path):
    as_it_is = {"source": str(pico / "model"), "compute": "model"}
    run = ecoflap.run(comparing(model=as_it_is), folder=tmp_path / "run")
    adapter, dense = LlamaAdapter(), pico_llama(dtype=torch.bfloat16)
    adapter.processor = pico_tokenizer
    data = Text(Path(text["path"]), sequence_length=16, samples=3, portion=(0.7, 1.0), order="spread")
    with torch.no_grad():
        for name, evaluator in (("kl", Kl(data, 4)), ("agreement", Agreement(data))):
            remembered = evaluator.remember(dense, adapter, ignore)
            measure = evaluator(run.model, adapter, ignore, remembered)[name]
            recorded = run.report.measures.pruned[name]
            assert (recorded.value, recorded.n) == (measure.value, measure.n)
            assert recorded.standard_error == measure.standard_error
    assert run.report.measures.pruned["kl"].value > 1e-3
    assert (run.report.measures.pruned["kl"].n, run.report.measures.pruned["agreement"].n) == (3 * 4, 3 * 15)


def test_of_the_dense_model_there_is_no_measure_and_tables_say_so(comparing, tmp_path, ecoflap_command):
    run = ecoflap.run(comparing(), folder=tmp_path / "run")
    assert list(run.report.measures.dense) == ["perplexity"]
    assert list(run.report.measures.pruned) == ["perplexity", "kl", "agreement"]
    code, out, _ = ecoflap_command("compare", tmp_path / "run", "--out", tmp_path / "compared")
    assert code == 0
    assert "kl pruned" in out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "agreement" in page


@pytest.fixture(scope="module")
def finished(comparing, tmp_path_factory):
    return ecoflap.run(comparing(), folder=tmp_path_factory.mktemp("finished") / "run").folder


@pytest.fixture
def unbroken(finished, tmp_path):
    """A copy of a finished run, for a test to do with as it likes."""
    return shutil.copytree(finished, tmp_path / "unbroken")


@pytest.mark.parametrize(
    "point",
    [
        "event:StageFinished evaluate dense:1",
        "rename:KL:after",
        "event:StageFinished evaluate dense:3",
        "event:StageFinished evaluate pruned:2",
        *(
            pytest.param(point, marks=pytest.mark.slow)
            for point in (
                "rename:KL:before",
                "rename:AGREEMENT:after",
                "rename:run/model:after",
                "rename:report.json:before",
            )
        ),
    ],
)
def test_a_run_that_is_killed_between_goes_on_to_the_same_bits(finished, comparing, killer, lasting, tmp_path, point):
    agreement, kl = (f"dense/{path.name}" for path in files(finished))
    point = point.replace("KL", kl).replace("AGREEMENT", agreement)
    folder = tmp_path / "run"
    assert in_a_fork(killer(point), lambda: ecoflap.run(comparing(), folder=folder)) == -signal.SIGKILL
    assert not (folder / "report.json").exists()
    ecoflap.run(comparing(), folder=folder)
    assert found(folder) == found(finished)
    assert lasting(folder) == lasting(finished)
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]


def stages(heard_by, recipe, folder):
    heard = []
    ecoflap.run(recipe, folder=folder, registry=heard_by(heard.append))
    return [event.stage for event in heard if isinstance(event, StageStarted)]


@pytest.fixture
def half_done(comparing, killer, tmp_path):
    """A run whose pruned model is there and was not evaluated."""
    folder = tmp_path / "run"
    in_a_fork(killer("rename:run/model:after"), lambda: ecoflap.run(comparing(), folder=folder))
    assert len(read_lines(folder / "evaluations.jsonl")) == 3
    return folder


def test_what_was_deleted_is_asked_for_again(half_done, finished, comparing, heard_by):
    files(half_done)[1].unlink()
    done = stages(heard_by, comparing(), half_done)
    assert done == ["load", "evaluate dense", "load", *["evaluate pruned"] * 3]
    lines, remembered = found(half_done)
    assert (lines, remembered) == found(finished)  # twice asked, twice the same


def test_of_a_finished_run_it_may_be_deleted(unbroken, comparing, heard_by):
    shutil.rmtree(unbroken / "dense")
    assert stages(heard_by, comparing(), unbroken) == ["load"]
    verify(unbroken)


@pytest.mark.parametrize("damage", ["a bit", pytest.param("its end", marks=pytest.mark.slow), "another"])
def test_what_was_edited_or_cut_off_is_refused_by_name(half_done, comparing, damage):
    agreement, kl = files(half_done)
    whole = kl.read_bytes()
    changed = {"a bit": bytes([*whole[:-9], whole[-9] ^ 1, *whole[-8:]]), "its end": whole[:-40]}
    kl.write_bytes(changed.get(damage) or agreement.read_bytes())
    with pytest.raises(FormatError, match=rf"dense/{kl.name}.*\. Restore the file, or delete it and run again: the de"):
        ecoflap.run(comparing(), folder=half_done)
    kl.unlink()
    assert "kl" in ecoflap.run(comparing(), folder=half_done).report.measures.pruned


@pytest.mark.parametrize("damage", ["a bit", "its end", "another", "added"])
def test_verify_reads_it_through(unbroken, damage):
    agreement, kl = files(unbroken)
    whole = kl.read_bytes()
    changed = {"a bit": bytes([*whole[:-9], whole[-9] ^ 1, *whole[-8:]]), "its end": whole[:-40]}
    if damage == "added":
        (unbroken / "dense" / "notes.txt").write_text("mine")
        seen = verify(unbroken)
        assert {agreement, kl} <= set(seen.files)
        assert seen.strangers == [unbroken / "dense" / "notes.txt"]
        return
    kl.write_bytes(changed.get(damage) or agreement.read_bytes())
    with pytest.raises(FormatError, match=f"dense/{kl.name}"):
        verify(unbroken)


def test_a_changed_evaluator_remembers_anew_beside_what_there_is(unbroken, comparing, text, heard_by):
    lines, remembered = found(unbroken)
    changed = comparing(evaluate={"use": "kl", "data": text, "positions": 5})
    assert stages(heard_by, changed, unbroken) == ["load", "evaluate dense", "load", "evaluate pruned"]
    after, files_after = found(unbroken)
    assert lines < after
    assert remembered.items() < files_after.items()
    assert stages(heard_by, comparing(), unbroken) == ["load"]


def test_another_run_takes_it_over_with_the_dense_evaluation(unbroken, comparing, heard_by, tmp_path):
    remembered = found(unbroken)[1]
    alone = ecoflap.run(comparing(sparsity=0.7), folder=tmp_path / "alone").report.measures
    recipe = comparing(sparsity=0.7, reuse=[str(unbroken)])
    assert "evaluate dense" not in stages(heard_by, recipe, tmp_path / "second")
    assert found(tmp_path / "second")[1] == remembered
    assert RunFolder(tmp_path / "second").taken_over() == ["dense evaluation", "scores"]
    shutil.rmtree(unbroken)
    second = ecoflap.run(comparing(sparsity=0.7), folder=tmp_path / "second")
    assert second.report.measures == alone
    verify(tmp_path / "second")


def test_what_another_run_has_deleted_is_asked_for_anew_and_what_is_damaged_there_is_refused(
    unbroken, comparing, heard_by, tmp_path
):
    remembered, (agreement, kl) = found(unbroken)[1], files(unbroken)
    agreement.unlink()
    recipe = comparing(sparsity=0.7, reuse=[str(unbroken)])
    assert stages(heard_by, recipe, tmp_path / "second").count("evaluate dense") == 1
    assert found(tmp_path / "second")[1] == remembered
    kl.write_bytes(kl.read_bytes()[:-8])
    with pytest.raises(FormatError, match=f"unbroken/dense/{kl.name} is truncated"):
        ecoflap.run(comparing(sparsity=0.6, reuse=[str(unbroken)]), folder=tmp_path / "third")


def test_a_sweep_asks_the_dense_model_once(comparing, heard_by, tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(comparing()))
    (tmp_path / "sweep.yaml").write_text(
        json.dumps({"version": 1, "recipe": "recipe.yaml", "grid": {"sparsity": [0.2, 0.5, 0.8]}})
    )
    heard = []
    done = sweep(SweepRequest(tmp_path / "sweep.yaml", folder=tmp_path / "s"), registry=heard_by(heard.append))
    asked = [event for event in heard if isinstance(event, StageStarted) and event.stage == "evaluate dense"]
    assert len(asked) == 3  # once for each evaluator
    measured = [ecoflap.read_report(path / "report.json").measures.pruned["kl"].value for path in done.finished]
    assert measured == sorted(measured)
    for path in done.finished:
        assert found(path)[1] == found(done.finished[0])[1]
        verify(path)


@dataclass(frozen=True)
class Drift:
    """An evaluator of somebody else: how far the mean loss of the pruned model is from the dense model's."""

    data: Dataset

    def _losses(self, model, adapter, note):
        samples = self.data(adapter, model, note)
        return torch.stack([adapter.loss(model, adapter.collate(model, [sample])) for sample in samples])

    def remember(self, model, adapter, note):
        note("remembered")
        return {"losses": self._losses(model, adapter, note)}

    def __call__(self, model, adapter, note, dense):
        rise = self._losses(model, adapter, note) - dense["losses"]
        return {"drift": Measure(float(rise.mean()), len(rise), float(rise.std()) / len(rise) ** 0.5, "samples")}


def test_an_evaluator_of_somebody_else_compares(comparing, text, tmp_path):
    evaluate = [{"use": Drift, "data": text}, {"use": "loss", "data": text, "batch_size": 1}]
    run = ecoflap.run(comparing(evaluate=evaluate), folder=tmp_path / "run")
    drift, loss = run.report.measures.pruned["drift"], run.report.measures.pruned["loss"]
    assert drift.value == pytest.approx(loss.value - run.report.measures.dense["loss"].value, rel=1e-4)
    assert [line for line in run.report.warnings if line.endswith("remembered")] == [
        f"{Drift.__module__}:Drift: remembered"
    ]
    (file,) = files(run.folder)
    with open_sealed(file, "ecoflap.remembered") as inside:
        assert list(inside.hashes) == ["losses"]


def test_an_import_path_longer_than_a_file_system_takes_is_cut(comparing, text, tmp_path):
    named = type("Drift" * 60, (Drift,), {})
    (file,) = files(ecoflap.run(comparing(evaluate={"use": named, "data": text}), folder=tmp_path / "run").folder)
    assert len(file.name) < 150
    assert file.name.startswith("Drift")


def test_one_that_answers_with_no_tensors_is_named_and_leaves_nothing(comparing, text, tmp_path):
    class Wrong(Drift):
        def remember(self, model, adapter, note):
            return {"losses": [1.0]}

    with pytest.raises(
        EcoflapError, match=r"Wrong, asked for its remember, answered \{'losses': \[1\.0\]\}, and is to answer Map"
    ):
        ecoflap.run(comparing(evaluate={"use": Wrong, "data": text}), folder=tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ({"__call__": lambda self, model, adapter, note: {}},
         r"its __call__ takes \(model, adapter, note\), and is called with \(model, adapter, note, dense\)"),
        ({"remember": lambda self, model: {}},
         r"its remember takes \(model\), and is called with \(model, adapter, note\)"),
        ({"remember": 3}, "its member remember should be a method, not 3"),
    ],
    ids=["call", "remember", "value"],
)  # fmt: skip
def test_one_that_cannot_be_called_as_it_will_be_is_refused_with_the_recipe(comparing, text, tmp_path, member, said):
    odd = type("Odd", (Drift,), member)
    with pytest.raises(EcoflapError, match=said):
        ecoflap.run(comparing(evaluate={"use": odd, "data": text}), folder=tmp_path / "run")


def test_lines_that_lost_what_is_remembered_have_it_asked_for_again(half_done, finished, comparing, heard_by):
    """As lines are that an evaluator left before it compared."""
    lines = read_lines(half_done / "evaluations.jsonl")
    write_lines(half_done / "evaluations.jsonl", [{**line, "remembered": {}} for line in lines])
    assert stages(heard_by, comparing(), half_done).count("evaluate dense") == 2
    assert found(half_done)[1] == found(finished)[1]


def test_without_a_dense_evaluation_nothing_is_compared(comparing, tmp_path):
    recipe = parse_recipe(comparing(), registry=ecoflap.load_registry())
    with pytest.raises(RunError, match=r"has no line of what kl found of the dense model. Evaluate it first"):
        Evaluation(recipe.evaluate[1]).run(tmp_path / "lines", "pruned", torch.nn.Identity(), LlamaAdapter(), ignore)


def test_the_seal_in_the_line_is_that_of_the_file(finished):
    lines = [line for line in read_lines(finished / "evaluations.jsonl") if "remembered" in line]
    assert [line["stage"] for line in lines] == ["dense", "dense"]
    for line in lines:
        ((name, seal),) = line["remembered"].items()
        assert name.startswith(f"{line['evaluator']['use']}-")
        check_remembered(finished / "dense" / name, seal)
