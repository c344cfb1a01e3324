"""The CLIP in the box as it ships: small, read by the toolkit, better than comparing pixels, and trained as it says."""

from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from ecoflap.adapters.clip import ClipAdapter
from ecoflap.core.contracts.protocols import ignore
from ecoflap.core.model.source import open_source
from ecoflap.plugins.datasets.image import Image
from ecoflap.plugins.evaluators.zero_shot import ZeroShot

pytest.importorskip("transformers", minversion="5", reason="its tokenizer is stored as 5 stores it")

BOX = Path(__file__).parents[2] / "examples" / "box"
FOLDER, DATA = BOX / "clip", BOX / "data"


@pytest.fixture(scope="module")
def adapter() -> ClipAdapter:
    return ClipAdapter()


@pytest.fixture(scope="module")
def model(adapter: ClipAdapter) -> Any:
    return adapter.load(open_source(str(FOLDER), BOX), torch.float32, "cpu")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BOX)
    return import_module("train_clip")


def test_it_is_small_and_in_half_precision(model: Any):
    assert sum(parameter.numel() for parameter in model.parameters()) < 4_000_000
    assert (FOLDER / "model.safetensors").stat().st_size < 8_000_000


def test_it_names_emoji_of_the_other_drawing_better_than_pixels_do(model: Any, adapter: ClipAdapter):
    """Of all validation pictures the nearest training picture names 0.290, and the model 0.404."""
    data = Image(path=DATA / "validation_classes.json", images=DATA / "images", samples=128)
    zero_shot = ZeroShot(data, classes=DATA / "classes.txt", templates=("an emoji of {}",), batch_size=128)
    found = zero_shot(model, adapter, ignore)
    assert found["zero-shot top-1"].value > 0.3


def test_training_saw_the_pixels_that_the_processor_makes(adapter: ClipAdapter, model: Any, script: Any):
    pixels, concepts = script.pictures(DATA, "validation", "google")
    images = Image(path=DATA / "validation_classes.json", images=DATA / "images", samples=None, order="first")
    first = next(iter(images(adapter, model, ignore)))
    made = adapter.processor.image_processor(images=first.image, return_tensors="pt")["pixel_values"][0]
    names = (DATA / "classes.txt").read_text("utf-8").splitlines()
    place = [concept.label for concept in concepts].index(names[first.label or 0])
    torch.testing.assert_close(pixels[place].float() / 127.5 - 1, made, rtol=0, atol=1e-6)


def test_the_rate_rises_once_and_falls_in_each_cycle(script: Any):
    start = 0
    for steps in script.CYCLES:
        rates = [script.rate(start + step) for step in range(steps)]
        assert max(rates) == rates[script.WARM_UP] == 1  # the last step of the warm-up is as high
        assert all(one < other for one, other in pairwise(rates[: script.WARM_UP]))
        assert all(one > other for one, other in pairwise(rates[script.WARM_UP :]))
        start += steps
    with pytest.raises(ValueError, match="over"):
        script.rate(start)
