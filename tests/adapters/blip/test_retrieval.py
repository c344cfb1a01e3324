"""The BLIP that compares: its loss by hand, its scores against its own forward, and what its statistics are of."""

from pathlib import Path
from typing import Any

import pico_blip
import pytest
import torch
import torch.nn.functional as F
from column_norms import column_norms
from pico_blip import RETRIEVAL

from ecoflap import Replay
from ecoflap.adapters.blip.retrieval import BlipRetrievalAdapter
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, RecipeError
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry

SAMPLES = pico_blip.captions(3)
TEXTS = [str(sample.text) for sample in SAMPLES]
OUTSIDE = {"vision_proj", "text_proj", "itm_head"}


@pytest.fixture
def adapter() -> Any:
    return pico_blip.adapter(RETRIEVAL)


@pytest.fixture(scope="module")
def model() -> Any:
    return pico_blip.build(RETRIEVAL)


def test_is_an_adapter():
    assert isinstance(BlipRetrievalAdapter(), Adapter)


def own_scores(model: Any, adapter: Any, is_match: bool) -> torch.Tensor:
    """By the model's own forward in float64, of one image with one text at a time."""
    exact = type(model)(model.config).double().eval()
    exact.load_state_dict(model.state_dict())
    rows = []
    for sample in SAMPLES:
        row = []
        for text in TEXTS:
            inputs = adapter.processor(images=sample.image, text=text, return_tensors="pt")
            inputs["pixel_values"] = inputs["pixel_values"].double()
            with torch.no_grad():
                row.append(exact(**inputs, use_itm_head=is_match).itm_score[0])
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_loss_is_contrast_and_match_by_hand(adapter: Any, model: Any):
    cosines, logs = own_scores(model, adapter, False)[..., 0], own_scores(model, adapter, True).log_softmax(-1)
    targets = torch.arange(3)
    contrast = (F.cross_entropy(cosines, targets) + F.cross_entropy(cosines.T, targets)) / 2
    true, false = [logs[i, i, 1] for i in range(3)], [logs[i, (i + 1) % 3, 0] for i in range(3)]
    match = -(sum(true) + 2 * sum(false)) / 9
    with torch.no_grad():
        loss = adapter.loss(model, adapter.collate(model, SAMPLES))
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(float(contrast + match), rel=1e-6)


def test_similarities_and_matches_are_its_own(adapter: Any, model: Any):
    with torch.no_grad():
        found = adapter.similarity(model, adapter.embed_images(model, SAMPLES), adapter.embed_texts(model, TEXTS))
        matches = torch.stack([adapter.match(model, sample, TEXTS) for sample in SAMPLES])
    torch.testing.assert_close(found.double(), own_scores(model, adapter, False)[..., 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(matches.double(), own_scores(model, adapter, True)[..., 1], rtol=1e-5, atol=1e-6)


def test_statistics_are_of_true_pairs_alone(adapter: Any, model: Any):
    """A text is read twice, alone and with its image; cross-attention is fed each image once."""
    batch = adapter.collate(model, SAMPLES)
    replay = Replay(model, adapter, [batch], anatomy=Anatomy.of(adapter.towers(model), adapter.layers, OUTSIDE))
    patches, text = 3 * 5, int(batch["attention_mask"].sum())
    for index, block in enumerate(replay.blocks):
        for name, statistic in column_norms(replay, index).items():
            expected = {"vision": patches, "text": 2 * text}.get(block.tower, 3)
            if "crossattention" in name:
                expected = patches if ".key" in name or ".value" in name else text
            assert statistic.tokens == expected, name
        replay.advance(index)


def test_a_single_pair_is_refused(adapter: Any, model: Any):
    with pytest.raises(DataError, match="at least two pairs"):
        adapter.loss(model, adapter.collate(model, SAMPLES[:1]))


def test_a_recipe_with_batches_of_one_pair_is_refused_in_plan(adapter: Any, model: Any):
    text = "version: 1\nmodel: m\ncalibration: {use: text, samples: 8, batch_size: 1}\nsparsity: 0.5\nprune: wanda\n"
    registry = load_registry()
    recipe = parse_recipe(text, registry=registry, file=Path("r.yaml"))
    with pytest.raises(RecipeError, match=r"calibration\.batch_size is 1, but a contrastive loss"):
        prepare(recipe, registry, model, adapter.processor)


@pytest.mark.parametrize(
    ("sample", "problem"),
    [
        (Sample(image=SAMPLES[0].image), "compares images with texts: sample 1 of a batch has no text"),
        (Sample(text="a"), "1 of 2 samples have none"),
        (Sample(image=SAMPLES[0].image, text="w1 " * 39), "a text has 41 tokens, and the model reads 40"),
    ],
)
def test_collate_says_what_is_missing(sample: Sample, problem: str, adapter: Any, model: Any):
    with pytest.raises(DataError, match=problem):
        adapter.collate(model, [SAMPLES[0], sample])
