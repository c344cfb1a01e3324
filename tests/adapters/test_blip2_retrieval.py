from pathlib import Path
from typing import Any

import pico_blip2
import pytest
import torch
import torch.nn.functional as F
from column_norms import column_norms
from torch import Tensor
from transformers_version import is_before

from ecoflap import Replay
from ecoflap.adapters.blip2_retrieval import Blip2RetrievalAdapter
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, RecipeError
from ecoflap.core.model.anatomy import Anatomy, Source
from ecoflap.core.model.source import in_memory, open_source
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry

OUTSIDE = {"vision_projection", "text_projection"}
SAMPLES = pico_blip2.captions(3)


@pytest.fixture
def adapter() -> Blip2RetrievalAdapter:
    return pico_blip2.retrieval_adapter()


def test_is_an_adapter(adapter: Blip2RetrievalAdapter):
    assert isinstance(adapter, Adapter)


@pytest.mark.parametrize(
    ("config", "claimed"),
    [
        ({"model_type": "blip-2", "architectures": ["Blip2ForImageTextRetrieval"]}, True),
        ({"model_type": "blip-2", "architectures": ["Blip2ForConditionalGeneration"]}, False),
        ({"model_type": "blip-2"}, False),
        ({"model_type": "clip"}, False),
    ],
)
def test_claims_by_configuration(config: dict[str, Any], claimed: bool, adapter: Blip2RetrievalAdapter):
    assert adapter.matches(Source("x", config=config)) is claimed


def test_claims_a_model_in_memory_by_its_structure(adapter: Blip2RetrievalAdapter):
    model = pico_blip2.build_retrieval()
    assert adapter.matches(in_memory(model))
    assert adapter.matches(Source("mine", model=model))
    assert not adapter.matches(in_memory(pico_blip2.build()))


def test_anatomy(adapter: Blip2RetrievalAdapter):
    model = pico_blip2.build_retrieval()
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers, OUTSIDE)
    assert [tower.name for tower in anatomy.towers] == ["vision", "qformer", "vision_projection", "text_projection"]
    assert [tower.prunable for tower in anatomy.towers[:2]] == [True, False]
    assert {block.calls for block in anatomy.towers[1].blocks} == {2}
    names = [layer.name for _, layer in anatomy.layers()]
    assert not [name for name in names if "itm_head" in name]
    assert len([name for name in names if name.startswith("qformer.encoder.layer.1.")]) == 8
    assert len([name for name in names if name.startswith("qformer.encoder.layer.2.")]) == 12


def similarities_by_hand(model: Any, samples: list[Sample], adapter: Blip2RetrievalAdapter) -> Tensor:
    """In float64, one image and one text at a time: the nearest query's cosine."""
    exact = type(model)(model.config).double().eval()
    exact.load_state_dict(model.state_dict())
    images, texts = [], []
    with torch.no_grad():
        for sample in samples:
            batch = adapter.collate(model, [sample])
            seen = exact.vision_model(batch["pixel_values"].double()).last_hidden_state
            queries = exact.qformer(query_embeds=exact.query_tokens, encoder_hidden_states=seen).last_hidden_state
            images.append(F.normalize(exact.vision_projection(queries[0]), dim=-1))
            words = exact.embeddings(input_ids=batch["input_ids"])
            read = exact.qformer(query_embeds=words, query_length=0).last_hidden_state
            texts.append(F.normalize(exact.text_projection(read[0, 0]), dim=-1))
    return torch.stack([torch.stack([(image @ text).max() for text in texts]) for image in images])


@pytest.mark.parametrize("image_token", [pico_blip2.IMAGE_TOKEN, None])
def test_loss_is_the_symmetric_info_nce_of_its_similarities(image_token: int | None, adapter: Blip2RetrievalAdapter):
    model = pico_blip2.build_retrieval(image_token)
    scores = similarities_by_hand(model, SAMPLES, adapter)
    targets = torch.arange(len(SAMPLES))
    exact = (F.cross_entropy(scores, targets) + F.cross_entropy(scores.T, targets)) / 2
    with torch.no_grad():
        loss = adapter.loss(model, adapter.collate(model, SAMPLES))
    assert model.config.image_token_index == image_token
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(float(exact), rel=1e-6)
    assert 0.5 < float(loss) < 2


@pytest.mark.skipif(is_before("5"), reason="it reads the places of the image as a part of the text")
def test_its_similarities_are_those_of_the_familys_own_processor(adapter: Blip2RetrievalAdapter):
    model = pico_blip2.build_retrieval()
    batch = adapter.collate(model, SAMPLES)
    theirs = adapter.processor(
        images=[sample.image for sample in SAMPLES], text=[str(sample.text) for sample in SAMPLES], padding=True,
        return_tensors="pt",
    )  # fmt: skip
    assert torch.equal(theirs["pixel_values"], batch["pixel_values"])
    assert torch.equal(theirs["input_ids"][:, pico_blip2.QUERIES :], batch["input_ids"])
    with torch.no_grad():
        scores = model(**theirs).logits_per_image
        terms = [F.cross_entropy(logits, torch.arange(3)) for logits in (scores, scores.T)]
        assert float(adapter.loss(model, batch)) == pytest.approx(float(sum(terms)) / 2, rel=1e-6)


def test_a_single_pair_is_refused(adapter: Blip2RetrievalAdapter):
    model = pico_blip2.build_retrieval()
    with pytest.raises(DataError, match="at least two pairs"):
        adapter.loss(model, adapter.collate(model, SAMPLES[:1]))


def test_a_recipe_with_batches_of_one_pair_is_refused_in_plan(adapter: Blip2RetrievalAdapter):
    text = "version: 1\nmodel: m\ncalibration: {use: text, samples: 8, batch_size: 1}\nsparsity: 0.5\nprune: wanda\n"
    registry = load_registry()
    recipe = parse_recipe(text, registry=registry, file=Path("r.yaml"))
    with pytest.raises(RecipeError, match=r"calibration\.batch_size is 1, but a contrastive loss"):
        prepare(recipe, registry, pico_blip2.build_retrieval(), adapter.processor)


def test_collate_says_what_is_missing(adapter: Blip2RetrievalAdapter):
    model, image = pico_blip2.build_retrieval(), pico_blip2.picture(0)
    for samples, problem in (
        ([Sample(image=image)], "compares images with texts, and there are none"),
        ([*SAMPLES, Sample(image=image)], "1 of 4 samples have no text"),
        ([Sample(text="a")], "1 of 1 samples have none"),
    ):
        with pytest.raises(DataError, match=problem):
            adapter.collate(model, samples)
    with pytest.raises(DataError, match="needs an image processor"):
        Blip2RetrievalAdapter().collate(model, SAMPLES)


def test_the_qformer_reads_the_image_first_and_then_the_text(adapter: Blip2RetrievalAdapter):
    """Seen by module hooks: what each of its matrices is fed, in which order, and how often."""
    model = pico_blip2.build_retrieval()
    batch = adapter.collate(model, SAMPLES)
    fed: dict[str, list[tuple[int, ...]]] = {}
    for name, module in model.qformer.encoder.layer[0].named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, x, y, name=name: fed.setdefault(name, []).append(tuple(x[0].shape)))
    with torch.no_grad():
        adapter.loss(model, batch)
    queries, text, seen = (3, 4, 32), (3, batch["input_ids"].shape[1], 32), (3, 5, 32)
    assert adapter.tokens(model, batch, "qformer", 0).shape == queries[:2]
    assert adapter.tokens(model, batch, "qformer", 1).tolist() == batch["attention_mask"].tolist()
    assert fed["attention.attention.query"] == [queries, text]
    assert fed["crossattention.attention.query"] == [queries]
    assert fed["crossattention.attention.key"] == [seen]
    assert fed["intermediate_query.dense"] == [queries]
    assert fed["intermediate.dense"] == [text]


def test_statistics_count_patches_queries_and_text(adapter: Blip2RetrievalAdapter):
    model = pico_blip2.build_retrieval()
    batch = adapter.collate(model, SAMPLES)
    replay = Replay(model, adapter, [batch], anatomy=Anatomy.of(adapter.towers(model), adapter.layers, OUTSIDE))
    patches, queries, text = 3 * 5, 3 * 4, int(batch["attention_mask"].sum())
    counts = {"attention": queries + text, "crossattention": queries, "intermediate_query": queries}
    counts |= {"output_query": queries, "intermediate": text, "output": text}
    for index, block in enumerate(replay.blocks):
        for name, statistic in column_norms(replay, index).items():
            expected = {"vision": patches, "vision_projection": queries, "text_projection": 3}.get(block.tower)
            if "crossattention.attention.key" in name or "crossattention.attention.value" in name:
                expected = patches
            assert statistic.tokens == (expected or counts[name.split(".")[4]]), name
        replay.advance(index)


def test_max_length(adapter: Blip2RetrievalAdapter):
    assert adapter.max_length(pico_blip2.build_retrieval()) == 64


def test_saves_what_loads_alike(adapter: Blip2RetrievalAdapter, tmp_path: Path):
    model = pico_blip2.build_retrieval()
    batch = adapter.collate(model, SAMPLES)
    adapter.save(model, tmp_path)
    source, other = open_source(str(tmp_path), tmp_path), Blip2RetrievalAdapter()
    assert other.matches(source)
    assert {parameter.device.type for parameter in other.load(source, None, "meta").parameters()} == {"meta"}
    assert other.processor is None
    again = other.load(source, None, "cpu")
    assert other.processor.num_query_tokens == pico_blip2.QUERIES
    for ours, theirs in zip(pico_blip2.similarities(model, batch), pico_blip2.similarities(again, batch), strict=True):
        assert torch.equal(ours, theirs)
    assert other.load(in_memory(model), None, "cpu") is model


@pytest.mark.skipif(is_before("5"), reason="its Q-Former cannot read texts in float16")
def test_float16_keeps_the_qformer_in_float32(adapter: Blip2RetrievalAdapter, tmp_path: Path):
    adapter.save(pico_blip2.build_retrieval(), tmp_path / "wide")
    half = adapter.load(open_source(str(tmp_path / "wide"), tmp_path), torch.float16, "cpu")
    wide = {name.split(".")[0] for name, parameter in half.named_parameters() if parameter.dtype == torch.float32}
    assert wide == {"qformer", "query_tokens"}
    adapter.save(half, tmp_path / "half")
    again = adapter.load(open_source(str(tmp_path / "half"), tmp_path), None, "cpu")
    torch.testing.assert_close(again.state_dict(), half.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        loss, exact = (adapter.loss(model, adapter.collate(model, SAMPLES)) for model in (half, again.float()))
    assert float(loss) == pytest.approx(float(exact), rel=2e-3)
