"""What adapters embed, compare, match and sort, against the model's own forward."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pico_blip2
import pico_clip
import pico_vit
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ecoflap.adapters.clip import ClipAdapter
from ecoflap.adapters.shared.embeddings import cosines, unit_vectors
from ecoflap.core.contracts.abilities import Classifies, Compares, offers
from ecoflap.core.contracts.records import Sample

GIVEN = ("pixel_values", "input_ids", "attention_mask")


def compared(adapter: Any, model: Any, samples: Sequence[Sample], size: int = 2) -> Tensor:
    """In batches of images and of one text, as an evaluator may have it."""
    with torch.no_grad():
        images = [adapter.embed_images(model, samples[at : at + size]) for at in range(0, len(samples), size)]
        texts = [adapter.embed_texts(model, [str(sample.text)]) for sample in samples]
        return adapter.similarity(model, torch.cat(images), torch.cat(texts))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_similarities_are_those_of_the_models_forward(kind: str):
    family, samples = pico_clip.FAMILIES[kind], pico_clip.pairs(5)
    model, adapter = family.build(), family.adapter()
    batch = adapter.collate(model, samples)
    with torch.no_grad():
        theirs = model(**{name: batch[name] for name in GIVEN if name in batch}).logits_per_image
    torch.testing.assert_close(compared(adapter, model, samples), theirs, rtol=1e-4, atol=1e-5)
    assert offers(adapter, Compares)


@pytest.mark.parametrize("name", ["pico-clip", "pico-custom", "pico-eva", "pico-siglip"])
def test_similarities_are_those_of_open_clip(name: str):
    pytest.importorskip("open_clip", reason="pip install 'ecoflap[clip]'")
    import pico_open_clip

    model, adapter, samples = pico_open_clip.build(name), pico_open_clip.adapter_for(name), pico_open_clip.pairs(5)
    batch = adapter.collate(model, samples)
    with torch.no_grad():
        theirs = model.get_logits(batch["image"], batch["text"])[0]
    torch.testing.assert_close(compared(adapter, model, samples), theirs, rtol=1e-4, atol=1e-5)
    narrow = model.bfloat16()
    assert compared(adapter, narrow, samples).dtype == torch.float32


def test_similarities_and_matches_are_those_of_blip_2():
    model, adapter, samples = pico_blip2.build_retrieval(None), pico_blip2.retrieval_adapter(), pico_blip2.captions(4)
    given = {name: adapter.collate(model, samples)[name] for name in GIVEN}
    with torch.no_grad():
        theirs = model(**given).logits_per_image
        torch.testing.assert_close(compared(adapter, model, samples), theirs, rtol=1e-4, atol=1e-5)
        for sample, pixels in zip(samples, given["pixel_values"], strict=True):
            repeated = pixels.expand_as(given["pixel_values"])
            both = model(**{**given, "pixel_values": repeated}, use_image_text_matching_head=True).logits_per_image
            found = adapter.match(model, sample, [str(one.text) for one in samples])
            torch.testing.assert_close(found, both[:, 1], rtol=1e-4, atol=1e-5)
            assert float(found.std()) > 1e-4
    assert model.query_tokens.std() > 0


@pytest.mark.parametrize("family", ["vit_classifier", "deit_teacher"])
def test_logits_are_those_of_the_models_forward(family: str):
    row = pico_vit.FAMILIES[family]
    model, adapter, samples = row.build(), row.adapter(), pico_vit.labelled(3)
    with torch.no_grad():
        theirs = model(pixel_values=adapter.collate(model, samples)["pixel_values"]).logits
        torch.testing.assert_close(adapter.logits(model, samples), theirs)
    assert adapter.refuses(model, Classifies) is None
    assert "ViTModel has no classifier" in adapter.refuses(pico_vit.build(), Classifies)


def test_logits_of_timm_are_the_heads_or_cosines_with_a_classifier(tmp_path: Path):
    pytest.importorskip("timm", minversion="1", reason="pip install 'ecoflap[clip]'")
    import pico_timm

    from ecoflap.adapters.eva_vit import EvaVitAdapter

    samples, (model, bare) = pico_timm.pictures(3), (pico_timm.classifying(), pico_timm.fused())
    adapter = pico_timm.adapter_for(pico_timm.classifying)
    pixels = torch.stack([adapter.processor(sample.image) for sample in samples])
    texts = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    save_file({"texts": texts}, tmp_path / "texts.safetensors")
    zero_shot = EvaVitAdapter(classifier=tmp_path / "texts.safetensors")
    zero_shot.processor = adapter.processor
    with torch.no_grad():
        torch.testing.assert_close(adapter.logits(model, samples), model(pixels))
        seen = bare(pixels).double()
        by_hand = (seen @ texts.double().T) / seen.norm(dim=1)[:, None] / texts.double().norm(dim=1)
        torch.testing.assert_close(zero_shot.logits(bare, samples), by_hand.float())
    assert adapter.refuses(model, Classifies) is None is zero_shot.refuses(bare, Classifies)
    assert "no head, and no classifier" in adapter.refuses(bare, Classifies)


def test_a_vision_tower_of_clip_sorts_by_a_classifier_and_compares_with_nothing(tmp_path: Path):
    texts = torch.randn(4, 24, generator=torch.Generator().manual_seed(1))
    save_file({"texts": texts}, tmp_path / "texts.safetensors")
    model, adapter, samples = pico_clip.vision(), ClipAdapter(tmp_path / "texts.safetensors"), pico_clip.pictures(3)
    adapter.processor = pico_clip.image_processor()
    with torch.no_grad():
        seen = model(pixel_values=adapter.collate(model, samples)["pixel_values"]).image_embeds.double()
        by_hand = (seen @ texts.double().T) / seen.norm(dim=1)[:, None] / texts.double().norm(dim=1)
        torch.testing.assert_close(adapter.logits(model, samples), by_hand.float())
    assert adapter.refuses(model, Classifies) is None
    assert "vision tower alone" in str(adapter.refuses(model, Compares))
    assert "no classifier is given" in str(ClipAdapter().refuses(model, Classifies))
    assert "The evaluator zero_shot takes one" in str(adapter.refuses(pico_clip.clip(), Classifies))
    assert adapter.refuses(pico_clip.clip(), Compares) is None


def test_a_vector_of_zeros_is_like_everything_alike():
    vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert unit_vectors(vectors.bfloat16()).tolist() == [[0.0, 0.0], pytest.approx([0.6, 0.8])]
    found = cosines(vectors, torch.tensor([[1.0, 0.0], [0.0, -2.0]]))
    assert found.tolist() == [[0.0, 0.0], pytest.approx([0.6, -0.8])]
