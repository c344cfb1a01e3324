"""CLIP and SigLIP of transformers: their own losses, texts of unequal lengths, and a vision tower with a classifier."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pico_clip import (
    END,
    LENGTH,
    WORDS,
    clip,
    clip_adapter,
    image_processor,
    pairs,
    pictures,
    processor,
    siglip,
    siglip_adapter,
    tokenizer,
    vision,
    vision_adapter,
)  # fmt: skip
from safetensors.torch import save_file
from torch import Tensor

import ecoflap
from ecoflap.adapters.clip import ClipAdapter
from ecoflap.adapters.siglip import SiglipAdapter
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, ModelError
from ecoflap.core.model.anatomy import Anatomy, Source
from ecoflap.core.model.source import in_memory, open_source

LONG = Sample(image=pictures(1)[0].image, text=" ".join(WORDS[10:40]))


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """Of four classes."""
    file = tmp_path / "classes.safetensors"
    save_file({"text": torch.randn(4, 24, generator=torch.Generator().manual_seed(1))}, file)
    return file


def by_number(count: int) -> list[Sample]:
    return [Sample(image=sample.image, label=number % 4) for number, sample in enumerate(pictures(count))]


@pytest.mark.parametrize("count", [2, 5])
def test_the_loss_of_pairs_is_transformers_own(count: int):
    model, adapter = clip(), clip_adapter()
    batch = adapter.collate(model, pairs(count))
    given = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    with torch.no_grad():
        theirs = model(**given, return_loss=True).loss
        torch.testing.assert_close(adapter.loss(model, batch).float(), theirs, rtol=1e-6, atol=0)


def test_a_vision_tower_alone_has_logits_by_a_classifier(classifier: Path):
    assert str(vision_adapter().why_no_logits(vision())).startswith("without a classifier it is the inner product")
    assert ClipAdapter(classifier).why_no_logits(vision()) is None


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_loss_of_siglip_is_transformers_own(count: int):
    model, adapter = siglip(), siglip_adapter()
    batch = adapter.collate(model, pairs(count))
    with torch.no_grad():
        theirs = model(**batch, return_loss=True).loss
        torch.testing.assert_close(adapter.loss(model, batch).float(), theirs, rtol=1e-6, atol=0)


def test_one_pair_is_refused_by_the_loss_and_before_any_work(tmp_path: Path):
    model, adapter = clip(), clip_adapter()
    with pytest.raises(DataError, match="at least two pairs"):
        adapter.loss(model, adapter.collate(model, pairs(1)))
    for size, told in ((1, "batch_size is 1"), (2, "leaves one of 5 samples over")):
        recipe = {
            "version": 1, "sparsity": 0.5, "prune": "wanda",
            "calibration": {"use": "table:Samples", "row": "clip", "samples": 5, "batch_size": size},
        }  # fmt: skip
        with pytest.raises(ecoflap.EcoflapError, match=f"calibration.*{told}"):
            ecoflap.run(recipe, model=model, processor=adapter.processor, folder=tmp_path / "pair", allow_code=True)
        alone = tmp_path / f"alone-{size}"
        done = ecoflap.run(recipe, model=vision(), processor=adapter.processor, folder=alone, allow_code=True)
        assert done.plan.keep
    assert not (tmp_path / "pair").exists()


def test_padding_changes_no_text():
    model, adapter = clip(), clip_adapter()
    together = adapter.collate(model, pairs(4))
    assert together["attention_mask"].sum(1).unique().numel() > 2
    with torch.no_grad():
        embeds = model(**{name: together[name] for name in ("pixel_values", "input_ids", "attention_mask")}).text_embeds
        for row, sample in zip(embeds, pairs(4), strict=True):
            alone = adapter.collate(model, [sample])
            assert bool(alone["attention_mask"].all())
            own = model(**{name: alone[name] for name in ("pixel_values", "input_ids", "attention_mask")}).text_embeds
            torch.testing.assert_close(row, own[0], rtol=1e-5, atol=1e-6)


def test_siglip_reads_padding_as_text():
    """The text is read off the last position, so that a shorter padding is another text."""
    model, adapter = siglip(), siglip_adapter()
    batch = adapter.collate(model, pairs(3))
    assert batch["input_ids"].shape == (3, LENGTH)
    assert bool((adapter.tokens(model, batch, "text") == 1).all())
    with torch.no_grad():
        shorter = model(pixel_values=batch["pixel_values"], input_ids=batch["input_ids"][:, :-2]).text_embeds
        assert not torch.allclose(shorter, model(**batch).text_embeds, atol=1e-3)


def test_siglip_pads_to_the_models_length_whatever_its_tokenizer_says():
    model, longer, adapter = siglip(), siglip(length=2 * LENGTH), siglip_adapter()
    adapter.processor.tokenizer.model_max_length = 10**30
    assert adapter.collate(model, pairs(1))["input_ids"].shape[1] == LENGTH
    assert adapter.collate(longer, pairs(1))["input_ids"].shape[1] == 2 * LENGTH
    assert adapter.collate(model, [*pairs(1), LONG])["input_ids"].shape[1] == LENGTH


def test_tokens_of_both_towers():
    model, adapter = clip(), clip_adapter()
    batch = adapter.collate(model, pairs(3))
    seen = adapter.tokens(model, batch, "vision")
    assert seen.dtype == torch.int8
    assert seen.tolist() == [[2] * 17] * 3
    assert adapter.tokens(siglip(), batch, "vision").shape == (3, 16)
    assert torch.equal(adapter.tokens(model, batch, "text"), batch["attention_mask"].to(torch.int8))
    assert (adapter.max_length(model), adapter.max_length(vision())) == (LENGTH, None)


def test_long_texts_are_cut_and_keep_their_end():
    batch = clip_adapter().collate(clip(), [LONG, *pairs(1)])
    assert batch["input_ids"].shape == (2, LENGTH)
    assert int(batch["input_ids"][0, -1]) == END


def test_texts_the_model_would_misread_are_refused():
    model, adapter = clip(), clip_adapter()
    batch = dict(adapter.collate(model, pairs(2)))
    with pytest.raises(DataError, match=f"does not end with the token {END}"):
        adapter.loss(model, {**batch, "input_ids": batch["input_ids"].masked_fill(batch["input_ids"] == END, 5)})
    adapter.processor.tokenizer.model_max_length = 10**30
    with pytest.raises(DataError, match=f"has 32 tokens, and the model reads {LENGTH}: set model_max_length: {LENGTH}"):
        adapter.loss(model, adapter.collate(model, [LONG, *pairs(1)]))


def test_says_which_texts_are_missing():
    model, adapter = clip(), clip_adapter()
    with pytest.raises(DataError, match="1 of 3 samples have no text"):
        adapter.collate(model, [*pairs(2), *pictures(1)])
    with pytest.raises(DataError, match=r"samples have no text\. Calibrate it on a dataset of images with texts"):
        adapter.loss(model, adapter.collate(model, pictures(2)))
    with pytest.raises(DataError, match="each sample needs an image and a text"):
        siglip_adapter().collate(siglip(), pictures(2))
    adapter.processor.tokenizer.pad_token = None
    with pytest.raises(DataError, match="has no padding token"):
        adapter.collate(model, pairs(2))


def test_a_pair_without_tokenizer_is_told_of_it():
    model, adapter = clip(), vision_adapter()
    with pytest.raises(DataError, match="has no tokenizer"):
        adapter.loss(model, adapter.collate(model, pairs(2)))


def test_a_vision_tower_has_a_projection_with_a_gradient():
    model, adapter = vision(), vision_adapter()
    adapter.loss(model, adapter.collate(model, by_number(3))).backward()
    for _, layer in Anatomy.of(adapter.towers(model), adapter.layers, ["visual_projection"]).layers():
        assert layer.weight.grad is not None
        assert float(layer.weight.grad.norm()) > 1e-7, layer.name


def test_zero_shot_cross_entropy_by_hand(classifier: Path):
    model, adapter = vision(), ClipAdapter(classifier)
    adapter.processor = image_processor()
    batch = adapter.collate(model, by_number(5))
    from safetensors.torch import load_file

    with torch.no_grad():
        features = vision().double()(pixel_values=batch["pixel_values"].double()).image_embeds
        texts = load_file(classifier)["text"].double()
        cosines = (features @ texts.T) / features.norm(dim=1)[:, None] / texts.norm(dim=1)
        expected = -cosines.log_softmax(1)[torch.arange(5), batch["labels"]].mean()
        assert float(adapter.loss(model, batch)) == pytest.approx(float(expected), rel=1e-6)
        with pytest.raises(DataError, match="a classifier is given, and the images have no label"):
            adapter.loss(model, adapter.collate(model, pictures(2)))


def test_a_recipe_gives_the_classifier(classifier: Path, tmp_path: Path):
    recipe = {
        "version": 1, "sparsity": 0.5, "prune": "wanda", "score": {"use": "zeroth_order", "samples": 2},
        "model": {"adapter": {"use": "clip", "classifier": str(classifier)}},
        "calibration": {"use": "table:Samples", "row": "vit_classifier", "samples": 4, "batch_size": 2},
    }  # fmt: skip
    with pytest.raises(ecoflap.EcoflapError, match="classifier is for a vision tower alone"):
        ecoflap.run(recipe, model=clip(), processor=processor(), folder=tmp_path / "pair", allow_code=True)
    calibration = {**recipe["calibration"], "samples": 5}  # type: ignore[dict-item]
    five = {**recipe, "calibration": calibration, "score": {"use": "zeroth_order", "samples": 5}}
    with pytest.raises(ecoflap.EcoflapError, match=r"labels \[4\], and the model knows classes 0 to 3"):
        ecoflap.run(five, model=vision(), processor=image_processor(), folder=tmp_path / "five", allow_code=True)
    done = ecoflap.run(recipe, model=vision(), processor=image_processor(), folder=tmp_path / "run", allow_code=True)
    assert done.plan.keep * 2 == done.plan.size


@pytest.mark.parametrize(
    ("held", "told"),
    [
        (None, "is not there; a zero-shot classifier is a safetensors file of one tensor"),
        (b"no tensors", "cannot be read"),
        ({}, "holds none"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)}, r"holds a \(2, 3\) torch.float32, b"),
        ({"a": torch.zeros(6)}, r"holds a \(6,\)"),
        ({"a": torch.zeros(2, 3, dtype=torch.int64)}, "torch.int64"),
        ({"a": torch.full((2, 3), float("nan"))}, "NaN or infinite"),
    ],
)
def test_another_file_is_no_classifier(held: bytes | dict[str, Tensor] | None, told: str, tmp_path: Path):
    file = tmp_path / "classes.safetensors"
    if isinstance(held, bytes):
        file.write_bytes(held)
    elif held is not None:
        save_file(held, file)
    with pytest.raises(DataError, match=told):
        ClipAdapter(file)


def test_a_classifier_of_another_model_is_refused(tmp_path: Path):
    save_file({"a": torch.zeros(4, 30)}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"have 30 features, and the model's images have 24"):
        ClipAdapter(tmp_path / "a.safetensors").load(in_memory(vision()), None, "cpu")


@pytest.mark.parametrize("config", [
    {}, {"model_type": "unknown"}, {"model_type": "clip", "architectures": ["CLIPForImageClassification"]},
    {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"]}, {"model_type": "clip_text_model"},
])  # fmt: skip
def test_does_not_claim_others(config: dict[str, Any]):
    assert not ClipAdapter().matches(Source("x", config=config))
    assert not SiglipAdapter().matches(Source("x", config=config))


def test_claims_by_type_class_and_structure():
    assert ClipAdapter().matches(Source("x", config={"model_type": "clip"}))
    assert SiglipAdapter().matches(Source("x", config={"model_type": "siglip"}))
    for model, adapter in ((clip(), ClipAdapter()), (vision(), ClipAdapter()), (siglip(), SiglipAdapter())):
        assert adapter.matches(Source("mine", model=model))
        assert adapter.matches(in_memory(model))
        assert not adapter.matches(Source("mine", model=torch.nn.Linear(2, 2)))
    assert not ClipAdapter().matches(Source("mine", model=siglip()))
    assert not SiglipAdapter().matches(Source("mine", model=clip()))


@pytest.mark.parametrize("kind", ["clip", "vision", "siglip"])
def test_loads_a_folder_with_its_processor(kind: str, tmp_path: Path):
    model, adapter = {
        "clip": (clip(), clip_adapter()),
        "vision": (vision(), vision_adapter()),
        "siglip": (siglip(), siglip_adapter()),
    }[kind]
    adapter.save(model, tmp_path)
    source = open_source(str(tmp_path), tmp_path)
    read = type(adapter)()
    assert read.matches(source)
    assert all(parameter.is_meta for parameter in read.load(source, None, "meta").parameters())
    assert read.processor is None
    again = read.load(source, None, "cpu")
    assert type(again) is type(model)
    samples = pairs(3)
    batch, theirs = adapter.collate(model, samples), read.collate(again, samples)
    assert batch.keys() == theirs.keys()
    torch.testing.assert_close(theirs["pixel_values"], batch["pixel_values"])
    with torch.no_grad():
        torch.testing.assert_close(read.loss(again, batch), adapter.loss(model, batch), rtol=0, atol=0)


def test_the_tokenizer_of_these_tests_is_like_clips():
    ids = tokenizer()("a picture")["input_ids"]
    assert (ids[0], ids[-1]) == (1, END)
    assert processor().tokenizer("a picture")["input_ids"] == ids
