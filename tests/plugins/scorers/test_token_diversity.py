"""Token diversity against cosines of all pairs, one after the other, in float64."""

from dataclasses import replace
from itertools import combinations, product
from statistics import fmean

import pytest
import torch
from plan_contexts import context
from table import GENERIC_ROWS, ROWS

from ecoflap import Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.errors import EcoflapError, ModelError
from ecoflap.plugins.scorers import token_diversity
from ecoflap.plugins.scorers.token_diversity import TokenDiversity, ecoflap_register_scorers

MODELS = {**ROWS, **GENERIC_ROWS}


class Looking(LlamaAdapter):
    """Takes tokens below 30 for those of images."""

    def tokens(self, model, batch, tower, call=0):
        kinds = 1 + (batch["input_ids"] < 30).to(torch.int8)
        return kinds * batch["attention_mask"].to(torch.int8)


def batches_of(count, seed=5):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    drawn = (torch.randint(3, 60, (2, 9), generator=generator) for _ in range(count))
    return [{"input_ids": ids, "attention_mask": mask} for ids in drawn]


def distance(a, b):
    return 1 - float(torch.cosine_similarity(a.double(), b.double(), dim=0))


def slowly(model, adapter, batches, name):
    """s of one layer, by a plain forward of the whole model."""
    module = model.get_submodule(name.removesuffix(".weight"))
    terms = {"v": [], "l": [], "vl": []}
    for batch in batches:
        outputs = []
        handle = module.register_forward_hook(lambda _, args, output, seen=outputs: seen.append(output))
        with torch.no_grad():
            adapter.loss(model, batch)
        handle.remove()
        for given, kinds in zip(outputs[0], adapter.tokens(model, batch, "language"), strict=True):
            images, text = ([y for y, kind in zip(given, kinds.tolist(), strict=True) if kind == one] for one in (2, 1))
            for term, pairs in (
                ("v", combinations(images, 2)),
                ("l", combinations(text, 2)),
                ("vl", product(images, text)),
            ):
                found = [distance(*pair) for pair in pairs]
                terms[term] += [fmean(found)] if found else []
    return fmean(fmean(term) for term in terms.values() if term)


def test_is_offered():
    assert ecoflap_register_scorers() == {"token_diversity": TokenDiversity}
    assert TokenDiversity() == TokenDiversity(samples=128)


@pytest.mark.parametrize("adapter", [Looking(), LlamaAdapter()], ids=["both kinds", "text"])
def test_is_the_mean_distance_of_all_pairs(pico_llama, adapter):
    model, batches = pico_llama(), batches_of(2)
    replay = Replay(model, adapter, batches)
    layers = [layer for _, layer in replay.anatomy.layers()]
    scores = dict(TokenDiversity()(replay, layers))
    assert list(scores) == [layer.name for layer in layers]
    for name, score in scores.items():
        assert score == pytest.approx(slowly(model, adapter, batches, name), rel=1e-4)


def test_outputs_that_are_all_alike_have_none(pico_llama):
    model = pico_llama()
    alike = {"input_ids": torch.full((1, 6), 7), "attention_mask": torch.ones(1, 6, dtype=torch.int64)}
    replay = Replay(model, LlamaAdapter(), [alike])
    scores = dict(TokenDiversity()(replay, replay.anatomy.layers_of[replay.blocks[0].name]))
    assert scores["model.layers.0.self_attn.v_proj.weight"] == pytest.approx(0, abs=1e-5)


def test_a_sample_of_one_token_says_nothing(pico_llama):
    adapter = LlamaAdapter()
    layer = adapter.layers(adapter.towers(pico_llama())[0].blocks[0])[0]
    terms = token_diversity._Terms()
    token_diversity._add(terms, layer, torch.ones(2, 3, 4), torch.tensor([[1, 0, 0], [2, 0, 0]], dtype=torch.int8))
    with pytest.raises(ModelError, match=r"model\.layers\.0\..*: no calibration sample has two tokens"):
        terms.mean(layer)
    token_diversity._add(terms, layer, torch.eye(3)[None], torch.tensor([[1, 0, 2]], dtype=torch.int8))
    assert terms.mean(layer) == pytest.approx(1.0)  # one of each kind, at right angles


@pytest.mark.parametrize("name", [name for name in ("llava", "blip2_t5", "t5", "mixtral", "gpt2") if name in MODELS])
def test_of_families_every_layer_is_scored_or_refused_by_the_plan(name):
    """A LLaVA's vision tower has no positions that are told, and an expert sees some: their towers are to be kept."""
    family = MODELS[name]
    model, adapter = family.build(), family.adapter()
    replay = Replay(model, adapter, [adapter.collate(model, family.samples(2))])
    problems = list(TokenDiversity().problems(context(None, replay.anatomy)))
    kept = {"llava": {"vision"}, "mixtral": {"language"}}.get(name, set())
    assert bool(problems) == bool(kept)
    assert all(problem.startswith("it looks at what a layer gives for each token") for problem in problems)
    others = replace(replay.anatomy, towers=tuple(one for one in replay.anatomy.towers if one.name not in kept))
    asked = replace(context(None, replay.anatomy), list_scored=lambda: others)
    assert not list(TokenDiversity().problems(asked))
    layers = [layer for block, layer in replay.anatomy.layers() if block.tower not in kept]
    scores = dict(TokenDiversity()(replay, layers))
    assert set(scores) == {layer.name for layer in layers}
    assert all(0 <= score <= 2 for score in scores.values())


def test_parameters_that_cannot_be():
    with pytest.raises(EcoflapError, match="samples is 0"):
        TokenDiversity(samples=0)
