import os
from pathlib import Path
from typing import Any

import pytest
from plan_contexts import context
from several import several
from speaking import Given, Parrot
from torch import nn

import ecoflap
from ecoflap.core.contracts.abilities import Generates, Generation
from ecoflap.core.contracts.protocols import Evaluator, ignore
from ecoflap.core.contracts.records import Measure, Sample
from ecoflap.core.errors import DataError, EcoflapError
from ecoflap.core.ranks.ranks import Ranks
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.plugins.evaluators import caption
from ecoflap.plugins.evaluators.caption import Caption
from ecoflap.plugins.evaluators.shared import caption_scores

pytest.importorskip("pycocoevalcap", reason="pip install 'ecoflap[caption]'")

MODEL = nn.Identity()
PROMPT = "a photo of"
TWO = [Sample(texts=("A cat sleeps.", "the cat"), text="the cat"), Sample(text="a dog runs")]


class Silent(Parrot):
    """Says one line after the other, whatever it is asked."""

    def __init__(self, *lines: str) -> None:
        super().__init__({})
        self.left = [*lines]

    def generate(self, model: nn.Module, samples: Any, generation: Generation) -> Any:
        self.generation = generation
        self.asked.append([sample.question for sample in samples])
        return [self._said(self.left.pop(0)) for _ in samples]


def test_is_an_evaluator_that_wants_texts():
    assert isinstance(Caption(Given([])), Evaluator)
    assert Caption.wants is Generates


def test_scores_what_is_said_against_all_captions():
    """Rouge and Bleu of texts that are references are 1, however they are written; one of two was broken off."""
    adapter = Silent("the Cat!", "A dog runs…")
    found = Caption(Given(TWO))(MODEL, adapter, ignore)
    assert list(found) == ["cider", "bleu-1", "bleu-2", "bleu-3", "bleu-4", "rouge-l", "caption ended"]
    for name in ("bleu-1", "bleu-2", "rouge-l"):
        assert found[name].value == pytest.approx(1, rel=1e-6)
    assert found["caption ended"].value == 0.5
    # the first image has another reference, with which "the cat" shares a word of two; n-grams of 1 and 2 words
    assert 2.5 < found["cider"].value < 7.5
    assert adapter.asked == [[PROMPT, PROMPT]]
    assert adapter.generation == Generation(30, 8, 5, 1.0)


@pytest.mark.parametrize("said", ["a photo of the cat", "A photo of the cat", "the cat"])
def test_a_prompt_that_is_said_again_does_not_count(said: str):
    found = Caption(Given(TWO), metrics=("rouge",))(MODEL, Silent(said, "a dog runs"), ignore)
    assert found["rouge-l"].value == pytest.approx(1)


def test_a_caption_that_begins_like_the_prompt_is_kept():
    samples = [Sample(text="a photo offers"), Sample(text="a photo of a man")]
    adapter = Silent("a photo offers", "a photo of a photo of a man")
    found = Caption(Given(samples), metrics=("rouge",))(MODEL, adapter, ignore)
    assert found["rouge-l"].value == pytest.approx((1 + (2.44 * 1 / (1 + 1.44 * 1))) / 2, abs=0.1)


def test_without_a_prompt_nothing_is_asked():
    adapter = Silent("the cat", "a dog runs")
    Caption(Given(TWO), prompt="", metrics=("rouge",), batch_size=1)(MODEL, adapter, ignore)
    assert adapter.asked == [[None], [None]]


def test_empty_captions_are_noted():
    notes: list[str] = []
    evaluator = Caption(Given(TWO), metrics=("rouge", "cider"))
    assert evaluator(MODEL, Silent("", "..."), notes.append)["rouge-l"].value == 0
    assert notes == ["2 of 2 captions are empty."]


def test_samples_without_a_caption_are_told_before_the_first_text():
    adapter = Silent()
    with pytest.raises(DataError, match=r"caption: 2 of 4 samples .* no caption with a word in it: number 2, 3\."):
        Caption(Given([*TWO, Sample(text="..."), Sample(question="x")]))(MODEL, adapter, ignore)
    assert adapter.asked == []


def test_what_is_missing_is_told_before_a_run_and_by_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(caption_scores, "find_spec", lambda name: None)
    told = ["scoring captions needs pycocoevalcap: pip install 'ecoflap[caption]'."]
    assert list(Caption(Given(TWO)).problems(context())) == told
    with pytest.raises(DataError, match="caption: scoring captions needs pycocoevalcap"):
        Caption(Given(TWO))(MODEL, Silent(), ignore)


def test_of_several_processes_the_first_alone_scores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    measure = Measure(0.5, 2, 0.25, "captions")

    def score(*given: Any) -> dict[str, Measure]:
        (tmp_path / f"scored by {os.environ['RANK']}").touch()
        return {"spice": measure}

    monkeypatch.setitem(caption.SCORERS, "spice", score)  # type: ignore[arg-type]
    monkeypatch.setattr(caption, "missing_for", lambda metrics: iter(()))

    def together(ranks: Ranks) -> None:
        found = Caption(Given(TWO), metrics=("spice",)).dealt(MODEL, Silent("the cat", "a dog"), ignore, ranks)
        assert found["spice"] == measure

    assert several(2, together, tmp_path) == [(0, "")] * 2
    assert [path.name for path in tmp_path.glob("scored*")] == ["scored by 0"]


def test_every_metric_has_a_scorer():
    assert set(caption_scores.SCORERS) == set(caption_scores.CaptionMetric.__args__)  # type: ignore[attr-defined]
    assert caption.ecoflap_register_evaluators() == {"caption": Caption}


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ({"metrics": []}, "metrics is empty; some of cider, bleu, rouge, spice are needed"),
        ({"metrics": ["meteor"]}, "should be 'cider', 'bleu', 'rouge' or 'spice'"),
        ({"max_new_tokens": 7}, "min_new_tokens is 8; from 0 to max_new_tokens, 7, is possible"),
    ],
)
def test_wrong_parameters_are_told_with_the_recipe(written: dict[str, Any], problem: str):
    use = {"use": "caption", "data": {"use": "image_text", "path": "x"}}
    recipe = {"version": 1, "model": "./m", "sparsity": 0.5, "prune": "magnitude", "evaluate": {**use, **written}}
    with pytest.raises(EcoflapError, match=problem):
        parse_recipe(recipe, registry=ecoflap.load_registry())
