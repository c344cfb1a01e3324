"""Evaluators that share their data among processes: each measures what one process does, to the last bit."""

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pico_blip2
import pico_clip
import pico_vit
import pytest
from labelled import Given as GivenLabels
from labelled import labelled
from several import several
from speaking import Given, Parrot
from table import ROWS
from torch import nn

from ecoflap.core.contracts.protocols import ignore
from ecoflap.core.contracts.records import Sample
from ecoflap.core.ranks.ranks import Ranks
from ecoflap.plugins.evaluators.agreement import Agreement
from ecoflap.plugins.evaluators.caption import Caption
from ecoflap.plugins.evaluators.classification import Classification
from ecoflap.plugins.evaluators.kl import Kl
from ecoflap.plugins.evaluators.retrieval import Retrieval
from ecoflap.plugins.evaluators.vqa import Vqa
from ecoflap.plugins.evaluators.zero_shot import ZeroShot

needs_clip = pytest.mark.skipif("clip" not in ROWS, reason="transformers here is too old for it")


def vqa() -> tuple[Any, nn.Module, Any]:
    samples = [Sample(question=f"q{n}", answers=(f"w{n}",), kind="ab"[n % 2]) for n in range(7)]
    lines = {f"q{n}": f"w{n % 5}" + "…" * (n % 3 == 0) for n in range(7)} | {"q6": ""}
    return Vqa(Given(samples), prompt="{}", batch_size=2, by="kind"), nn.Identity(), Parrot(lines)


def caption() -> tuple[Any, nn.Module, Any]:
    pytest.importorskip("pycocoevalcap", reason="pip install 'ecoflap[caption]'")
    samples = [Sample(texts=(f"a cat of {n}", "the cat"), text="the cat", image_id=n // 2) for n in range(7)]
    return Caption(Given(samples), batch_size=3), nn.Identity(), Parrot({"a photo of": "the cat sleeps"})


def classification() -> tuple[Any, nn.Module, Any]:
    samples = GivenLabels(labelled([n % 8 for n in range(11)]))
    model = pico_vit.build("vit", pico_vit.CLASSIFIER, num_labels=8)
    return Classification(samples, batch_size=2), model, pico_vit.adapter()


def zero_shot() -> tuple[Any, nn.Module, Any]:
    samples = GivenLabels(labelled([n % 7 for n in range(9)]), tuple(pico_clip.WORDS[10:17]))
    return ZeroShot(samples, batch_size=2), pico_clip.clip(), pico_clip.clip_adapter()


def retrieval() -> tuple[Any, nn.Module, Any]:
    samples = Given(tuple(pico_blip2.captions(11)))
    return Retrieval(samples, rerank=10, batch_size=4), pico_blip2.build_retrieval(), pico_blip2.retrieval_adapter()


@pytest.mark.parametrize(
    ("make", "asked"),
    [
        (vqa, {"generate": 2}),
        (caption, {"generate": 2}),
        pytest.param(classification, {"logits": 3}, marks=needs_clip),
        pytest.param(zero_shot, {"embed_images": 3}, marks=needs_clip),
        pytest.param(retrieval, {"embed_images": 2, "match": 18}, marks=needs_clip),
    ],
)
def test_two_processes_measure_what_one_does_and_share_the_work(make: Any, asked: dict[str, int], tmp_path: Path):
    evaluator, model, adapter = make()
    alone = {name: asdict(measure) for name, measure in evaluator(model, adapter, ignore).items()}
    assert len(alone) >= 2

    def together(ranks: Ranks) -> None:
        evaluator, model, adapter = make()
        calls = dict.fromkeys(asked, 0)

        def counted(name: str) -> None:
            call = getattr(adapter, name)

            def counting(*arguments: Any) -> Any:
                calls[name] += 1
                return call(*arguments)

            object.__setattr__(adapter, name, counting)

        for name in asked:
            counted(name)
        measures = evaluator.dealt(model, adapter, ignore, ranks)
        found = {name: asdict(measure) for name, measure in measures.items()}
        (tmp_path / f"{ranks.rank}.json").write_text(json.dumps([found, calls]))

    assert several(2, together, tmp_path) == [(0, "")] * 2
    (first, of_first), (second, of_second) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second == json.loads(json.dumps(alone))
    assert of_first == asked
    assert all(0 < of_second[name] <= count for name, count in asked.items())


def kl() -> Any:
    return Kl(GivenLabels(labelled([n % 8 for n in range(9)])), batch_size=2)


def agreement() -> Any:
    return Agreement(GivenLabels(labelled([n % 8 for n in range(9)])), batch_size=2)


@needs_clip
@pytest.mark.parametrize("make", [kl, agreement])
def test_two_processes_hold_a_model_against_the_dense_one(make: Any, tmp_path: Path):
    """Each looks at its batches of the pruned model; what is remembered of the dense one both read."""
    adapter, dense = pico_vit.adapter(), pico_vit.build("vit", pico_vit.CLASSIFIER, num_labels=8)
    remembered = make().remember(dense, adapter, ignore)
    pruned = copy.deepcopy(dense)
    for weight in pruned.parameters():
        weight.data[weight.abs() < weight.abs().median()] = 0
    alone = {name: asdict(measure) for name, measure in make()(pruned, adapter, ignore, remembered).items()}

    def together(ranks: Ranks) -> None:
        adapter, losses = pico_vit.adapter(), []
        loss = adapter.loss
        object.__setattr__(adapter, "loss", lambda *given: losses.append(None) or loss(*given))
        measures = make().dealt(pruned, adapter, ignore, ranks, remembered)
        found = {name: asdict(measure) for name, measure in measures.items()}
        (tmp_path / f"{ranks.rank}.json").write_text(json.dumps([found, len(losses)]))

    assert several(2, together, tmp_path) == [(0, "")] * 2
    (first, of_first), (second, of_second) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second == json.loads(json.dumps(alone))
    assert all(measure["value"] > 0 for measure in alone.values())
    assert (of_first, of_second) == (3, 2)
