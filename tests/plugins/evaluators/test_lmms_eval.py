"""LMMs-Lab's harness on the questions in the box: the accuracy is that of ``vqa``, and what it cannot be asked for."""

import ssl
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from box_tasks import make_tasks, model_in_the_box, vqa
from plan_contexts import context

from ecoflap.adapters.clip import ClipAdapter
from ecoflap.core.contracts.protocols import Evaluator, ignore
from ecoflap.core.errors import DataError, EcoflapError, ModelError
from ecoflap.plugins.evaluators.lmms_eval import LmmsEval


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("lmms_eval", reason="pip install 'ecoflap[lmms]', in an environment of its own")
    script = make_tasks(monkeypatch)
    folder: Path = script.write(tmp_path, script.rows_of("test", 60))[1]
    return folder


def test_is_an_evaluator():
    assert isinstance(LmmsEval(("box_vqa",)), Evaluator)


def test_the_box_answers_as_vqa_says(tasks: Path):
    model, adapter = model_in_the_box()
    torch.manual_seed(3)
    states = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    found = LmmsEval(("box_vqa",), tasks, batch_size=32)(model, adapter, ignore)
    assert states == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert "__reduce__" not in vars(ssl.SSLContext)
    from lmms_eval import evaluator

    assert not getattr(getattr(evaluator, "_enable_reentrant_filelocks", None), "_patched", False)
    expected, (name, measure) = vqa(model, adapter, 60), *found.items()
    assert 0.2 < expected.value < 1
    assert (name, measure.value, measure.n) == ("box_vqa exact_match", pytest.approx(expected.value), 60)
    assert measure.standard_error == pytest.approx((measure.value * (1 - measure.value) / 59) ** 0.5, rel=1e-3)


def test_a_limit(tasks: Path):
    found = LmmsEval(("box_vqa",), tasks, limit=7)(*model_in_the_box(), ignore)
    assert found["box_vqa exact_match"].n == 7


def test_unknown_tasks_are_told_with_the_nearest(tasks: Path, monkeypatch: pytest.MonkeyPatch):
    import lmms_eval.tasks

    # looking through the thousands that the harness has takes a quarter of a minute
    monkeypatch.setattr(lmms_eval.tasks.TaskManager.__init__, "__defaults__", ("INFO", None, False, None))
    assert [*LmmsEval(("box_vqa",), tasks).problems(context())] == []
    (told,) = LmmsEval(("box_vga",), tasks).problems(context())
    assert "the harness knows no 'box_vga'" in told
    assert "Did you mean 'box_vqa'?" in told


def test_data_that_are_not_there(tasks: Path):
    (tasks.parent / "questions.jsonl").unlink()
    with pytest.raises(DataError, match=r"questions\.jsonl.* Data of its tasks come from the Hugging Face hub"):
        LmmsEval(("box_vqa",), tasks)(*model_in_the_box(), ignore)


def test_a_model_that_makes_no_texts(tasks: Path):
    with pytest.raises(ModelError, match="lmms_eval needs a model that can make texts: ClipAdapter has none"):
        LmmsEval(("box_vqa",), tasks)(torch.nn.Identity(), ClipAdapter(), ignore)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("return [doc['image']]", "shows something else than images"),
        ("from PIL import Image\n    return [Image.new('RGB', (8, 8))] * 2", "shows 2 images at once"),
    ],
)
def test_tasks_that_show_something_else(code: str, told: str, tasks: Path):
    script = tasks / "box_vqa.py"
    script.write_text(script.read_text().replace("def pictures(doc):", f"def pictures(doc):\n    {code}"))
    with pytest.raises(DataError, match=told):
        LmmsEval(("box_vqa",), tasks, limit=2)(*model_in_the_box(), ignore)


def test_the_harness_or_a_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ecoflap.plugins.evaluators.harness.tasks.find_spec", lambda name: name)
    assert "is no folder" in next(LmmsEval(("box_vqa",), tmp_path / "none").problems(context()))
    monkeypatch.setattr("ecoflap.plugins.evaluators.harness.tasks.find_spec", lambda name: None)
    (told,) = LmmsEval(("box_vqa",)).problems(context())
    assert told == "lmms_eval needs LMMs-Lab's harness: pip install 'ecoflap[lmms]', best in an environment of its own."
    with pytest.raises(DataError, match="pip install"):
        LmmsEval(("box_vqa",))(torch.nn.Identity(), ClipAdapter(), ignore)


@pytest.mark.parametrize("wrong", [{"tasks": ()}, {"limit": 0}, {"batch_size": 0}])
def test_settings_that_cannot_be(wrong: dict[str, Any]):
    with pytest.raises(EcoflapError, match=next(iter(wrong))):
        LmmsEval(**{"tasks": ("box_vqa",), **wrong})
