"""The BLIP-2 in the box as it ships: it reads what it was trained on, and it has learnt something."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5", reason="its tokenizer is stored as 5 stores it")

BOX = Path(__file__).parents[2] / "examples" / "box"
FOLDER, DATA = BOX / "blip2", BOX / "data"


@pytest.fixture(scope="module")
def model() -> Any:
    return transformers.Blip2ForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return transformers.AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BOX)
    return import_module("train_blip2")


def validation(kind: str, count: int) -> list[tuple[Any, str, str]]:
    """Picture, question and answer of the first questions of a type."""
    from PIL import Image

    asked = json.loads((DATA / "validation_questions.json").read_text(encoding="utf-8"))["questions"]
    answered = json.loads((DATA / "validation_annotations.json").read_text(encoding="utf-8"))["annotations"]
    found = [
        (row["image_id"], row["question"], answer["multiple_choice_answer"])
        for row, answer in zip(asked, answered, strict=True)
        if answer["question_type"] == kind
    ]
    files = DATA / "images"
    return [
        (Image.open(files / f"{image:012d}.png").convert("RGB"), question, answer)
        for image, question, answer in found[:count]
    ]


def test_it_is_small_and_in_half_precision(model: Any):
    assert sum(parameter.numel() for parameter in model.parameters()) < 4_000_000
    assert (FOLDER / "model.safetensors").stat().st_size < 8_000_000


def test_its_head_is_its_own(model: Any):
    text = model.language_model
    assert not torch.equal(text.lm_head.weight, text.shared.weight)


def test_the_processor_knows_the_image_token(model: Any, processor: Any):
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_index
    assert processor.num_query_tokens == model.config.num_query_tokens


def test_the_tokenizer_gives_every_answer_back(processor: Any):
    for name in (DATA / "classes.txt").read_text(encoding="utf-8").splitlines():
        ids = processor.tokenizer(name)["input_ids"]
        assert processor.tokenizer.decode(ids, skip_special_tokens=True).strip() == name
        assert processor.tokenizer.unk_token_id not in ids


def test_training_saw_the_pixels_that_the_processor_makes(processor: Any, script: Any):
    split = script.read_split(DATA, "validation")
    pictures = [picture for picture, _, _ in validation("emoji kind unseen", 3)]
    made = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
    places = [place for place in range(len(split.sources)) if split.answer(place, "emoji kind unseen")][:3]
    torch.testing.assert_close(script.normalized(split.pixels[places] / 255), made, rtol=0, atol=1e-6)


@torch.no_grad()
def test_training_looked_once_at_what_the_model_looks_at_each_time(model: Any, processor: Any, script: Any):
    """Two questions of one picture, and padding."""
    picture = validation("emoji kind seen", 1)[0][0]
    batch = processor(
        images=[picture] * 2, text=["what is this?", "is this about food?"], padding=True, return_tensors="pt"
    )
    said = torch.tensor([[0, 5, 6], [0, 7, 8]])
    wanted = model(**batch, decoder_input_ids=said).logits
    _, queries = script.seen(model, batch["pixel_values"][:1])
    ids = batch["input_ids"][:, model.config.num_query_tokens :]
    read = script.read_by_text(model, queries[[0, 0]], ids)
    torch.testing.assert_close(
        model.language_model(**read, decoder_input_ids=said).logits, wanted, rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
@pytest.mark.parametrize(("kind", "least"), [("easy colour", 0.9), ("easy shape", 0.9), ("emoji kind seen", 0.25)])
def test_it_has_learnt_to_look(kind: str, least: float, model: Any, processor: Any):
    """Without the picture a third of the shapes, a ninth of the colours and an eighth of the kinds are right."""
    pictures, questions, answers = zip(*validation(kind, 60), strict=True)
    batch = processor(images=list(pictures), text=list(questions), padding=True, return_tensors="pt")
    tokens = model.generate(**batch, max_new_tokens=12, do_sample=False)
    said = [text.strip() for text in processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    assert sum(one == other for one, other in zip(said, answers, strict=True)) >= least * len(answers)
