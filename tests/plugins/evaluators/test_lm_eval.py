"""The harness on tasks in a folder: its accuracy by hand, and what it cannot be asked for."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pico_clip
import pico_t5
import pytest
import torch
from plan_contexts import context

pytest.importorskip("lm_eval", reason="pip install 'ecoflap[lm-eval]'")

import lm_eval.tasks

from ecoflap.adapters.clip import ClipAdapter
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.protocols import Adapter, Evaluator, ignore
from ecoflap.core.errors import DataError, EcoflapError, ModelError
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.plugins.evaluators.harness.measures import draws_forgotten
from ecoflap.plugins.evaluators.lm_eval import LmEval

QUESTIONS = [
    {"question": f"the word{n} of", "choices": [f"word{n + 1}", "a is", "with it that"], "answer": n % 3}
    for n in range(7)
]
TASK = {
    "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test",
    "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}  # fmt: skip
GROUP = {
    "group": "both", "task": ["pick", "pick_again"],
    "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}],
}  # fmt: skip


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Two alike, and a group of them; JSON is YAML."""
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    files = {"data_files": {"test": str(tmp_path / "questions.jsonl")}, "cache_dir": str(tmp_path / "cache")}
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name in ("pick", "pick_again"):
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, "dataset_kwargs": files, **TASK}))
    (folder / "both.yaml").write_text(json.dumps(GROUP))
    return folder


@pytest.fixture(autouse=True)
def _only_tasks_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking through the thousands that the harness has takes seconds."""
    monkeypatch.setattr(lm_eval.tasks.TaskManager.__init__, "__defaults__", (None, None, False, None))


def adapted(adapter: Adapter, tokenizer: Any) -> Adapter:
    adapter.processor = tokenizer
    return adapter


def test_is_an_evaluator():
    assert isinstance(LmEval(("pick",)), Evaluator)


def accuracy(score: Callable[[str, str], float]) -> float:
    """Of the choices with the largest likelihood."""
    right = 0
    for row in QUESTIONS:
        scores = [score(str(row["question"]), str(choice)) for choice in row["choices"]]  # type: ignore[attr-defined]
        right += scores.index(max(scores)) == row["answer"]
    return right / len(QUESTIONS)


def test_of_a_decoder_by_hand(tasks: Path, pico_llama: Callable[..., Any], pico_tokenizer: Any):
    model = pico_llama()

    def score(question: str, choice: str) -> float:
        before, ids = pico_tokenizer(question).input_ids, pico_tokenizer(f"{question} {choice}").input_ids
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return sum(float(logs[at - 1, ids[at]]) for at in range(len(before), len(ids)))

    found = LmEval(("pick",), tasks, batch_size=4)(model, adapted(LlamaAdapter(), pico_tokenizer), ignore)
    expected = accuracy(score)
    assert 0 < expected < 1
    assert found["pick acc"].value == pytest.approx(expected)
    assert found["pick acc"].standard_error == pytest.approx((expected * (1 - expected) / 6) ** 0.5)
    assert (found["pick acc"].n, found["pick acc"].unit, found["pick acc"].larger_is_better) == (7, "documents", True)


def test_of_an_encoder_with_a_decoder_by_hand(tasks: Path):
    model, adapter = pico_t5.build(), pico_t5.adapter()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}

    def score(question: str, choice: str) -> float:
        read, said = (torch.tensor([adapter.processor(text).input_ids]) for text in (question, f" {choice}"))
        with torch.no_grad():
            logs = model(input_ids=read, labels=said).logits[0].double().log_softmax(-1)
        # the harness adds no end to a choice
        return sum(float(logs[at, token]) for at, token in enumerate(said[0, :-1].tolist()))

    found = LmEval(("pick",), tasks)(model, adapter, ignore)
    assert found["pick acc"].value == pytest.approx(accuracy(score))
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_a_group_is_told_by_its_own_value(tasks: Path, pico_llama: Callable[..., Any], pico_tokenizer: Any):
    found = LmEval(("both",), tasks, limit=3)(pico_llama(), adapted(LlamaAdapter(), pico_tokenizer), ignore)
    assert [*found] == ["both acc"]
    assert found["both acc"].n == 6


def test_nothing_else_is_changed(tasks: Path, pico_llama: Callable[..., Any], pico_tokenizer: Any):
    """Random states, the tokenizer, and weights that the model's configuration would tie."""
    model, adapter = pico_llama(tied=True), adapted(LlamaAdapter(), pico_tokenizer)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)
    torch.manual_seed(3)
    states = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    first, second = (LmEval(("pick",), tasks, num_fewshot=0, seed=seed)(model, adapter, ignore) for seed in (1, 1))
    assert first == second
    assert states == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert "tie_weights" not in vars(model)
    own = vars(model)["tie_weights"] = lambda: None
    LmEval(("pick",), tasks, num_fewshot=0)(model, adapter, ignore)
    assert vars(model)["tie_weights"] is own


def test_not_even_what_is_random_in_python():
    """Which checks of types draw from too, so that it is looked at without any."""
    before = random.getstate()
    with draws_forgotten():
        random.seed(5)
    assert random.getstate() == before


def test_unknown_tasks_are_told_with_the_nearest(tasks: Path):
    assert [*LmEval(("pick", "both"), tasks).problems(context())] == []
    (told,) = LmEval(("pick", "pick_agian"), tasks).problems(context())
    assert "the harness knows no 'pick_agian'" in told
    assert "Did you mean 'pick_again'?" in told


def test_of_what_it_cannot_be_asked(tasks: Path, monkeypatch: pytest.MonkeyPatch):
    adapter, model = ClipAdapter(), pico_clip.clip()
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers)
    (told,) = LmEval(("pick",), tasks).problems(context(anatomy=anatomy, adapter=adapter, model=model))
    assert "hf-multimodal cannot take this model that looks at images: its configuration names no image_token" in told
    (told,) = LmEval(("pick",), tasks, through="adapter").problems(context(adapter=adapter, model=model))
    assert told == "lm_eval: through: adapter needs a model that can make texts: ClipAdapter has none."
    assert "is no folder" in next(LmEval(("pick",), tasks / "none").problems(context()))
    monkeypatch.setattr("ecoflap.plugins.evaluators.harness.tasks.find_spec", lambda name: None)
    assert [*LmEval(("pick",)).problems(context())] == [
        "lm_eval needs EleutherAI's harness: pip install 'ecoflap[lm-eval]'."
    ]  # fmt: skip


def test_a_plan_says_that_there_is_no_tokenizer_where_that_is_known(tasks: Path, pico_tokenizer: Any):
    evaluator, known = LmEval(("pick",), tasks), replace(context(), knows_processor=True)
    assert [*evaluator.problems(context())] == []
    (told,) = evaluator.problems(known)
    assert told.startswith("lm_eval needs the model's tokenizer: put it beside the model")
    known.adapter.processor = pico_tokenizer
    assert [*evaluator.problems(known)] == []


def test_a_model_without_tokenizer_and_data_that_are_not_there(
    tasks: Path, pico_llama: Callable[..., Any], pico_tokenizer: Any
):
    with pytest.raises(ModelError, match="lm_eval needs the model's tokenizer"):
        LmEval(("pick",), tasks)(pico_llama(), LlamaAdapter(), ignore)
    (tasks.parent / "questions.jsonl").unlink()
    with pytest.raises(DataError, match=r"questions\.jsonl.* Data of its tasks come from the Hugging Face hub"):
        LmEval(("pick",), tasks)(pico_llama(), adapted(LlamaAdapter(), pico_tokenizer), ignore)
    with pytest.raises(DataError, match="knows no 'none'"):
        LmEval(("none",), tasks)(pico_llama(), LlamaAdapter(), ignore)


def test_a_hub_that_does_not_answer_is_not_asked_again_and_again(
    tasks: Path, pico_llama: Callable[..., Any], pico_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants

    seen: list[bool] = []

    def evaluate(**_: Any) -> None:
        seen.append(constants.HF_HUB_OFFLINE)
        raise OSError("no hub")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("ecoflap.core.model.hub.is_reachable", lambda: False)
    monkeypatch.setattr(lm_eval, "simple_evaluate", evaluate)
    with pytest.raises(DataError, match="lm_eval: no hub"):
        LmEval(("pick",), tasks)(pico_llama(), adapted(LlamaAdapter(), pico_tokenizer), ignore)
    assert seen == [True]
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("wrong", [{"tasks": ()}, {"limit": 0}, {"num_fewshot": -1}, {"batch_size": 0}])
def test_settings_that_cannot_be(wrong: dict[str, Any]):
    with pytest.raises(EcoflapError, match=next(iter(wrong))):
        LmEval(**{"tasks": ("pick",), **wrong})
