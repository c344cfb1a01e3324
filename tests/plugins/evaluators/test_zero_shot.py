"""Zero-shot classification against open_clip, and by hand; templates, class names and what they lack."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pico_clip
import pytest
import torch
import torch.nn.functional as F
from labelled import Given, labelled
from plan_contexts import context
from table import ROWS
from transformers_version import is_before

from ecoflap.core.contracts.protocols import Evaluator, ignore
from ecoflap.core.errors import DataError, ModelError, RecipeError
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry
from ecoflap.plugins.datasets.image import Image
from ecoflap.plugins.evaluators.zero_shot import ZeroShot

needs_clip = pytest.mark.skipif("clip" not in ROWS, reason="transformers here is too old for it")

USE = "zero_shot"
NAMES = tuple(pico_clip.WORDS[10:17])
TEMPLATES = ("a picture of {}", "{} w0 w1 of")


def of_recipe(processor: Any = None, **keys: Any) -> None:
    registry = load_registry(allow_code=True)
    recipe: dict[str, Any] = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude"}
    recipe["evaluate"] = [{"use": USE, "data": {"use": "labelled:Given"}, **keys}]
    prepare(parse_recipe(recipe, registry=registry, in_memory=True), registry, pico_clip.clip(), processor)


def test_is_an_evaluator():
    assert isinstance(ZeroShot(Given()), Evaluator)


@needs_clip
def test_by_hand():
    """One text and one image at a time, in float64."""
    if is_before("4.52"):
        pytest.skip("there CLIP's mask cannot be made in float64")
    model, adapter, samples = pico_clip.clip(), pico_clip.clip_adapter(), labelled([n % 7 for n in range(9)])
    exact = pico_clip.clip().double()
    with torch.no_grad():
        weights = []
        for name in NAMES:
            read = [adapter.processor.tokenizer(t.format(name), return_tensors="pt") for t in TEMPLATES]
            made = [exact.text_projection(exact.text_model(one.input_ids).pooler_output)[0] for one in read]
            weights.append(F.normalize(torch.stack([one / one.norm() for one in made]).mean(0), dim=0))
        pixels = adapter.collate(model, samples)["pixel_values"].double()
        seen = exact.visual_projection(exact.vision_model(pixels).pooler_output)
        order = (seen @ torch.stack(weights).T).argsort(1, descending=True)
    labels = torch.tensor([sample.label for sample in samples])
    right = order == labels[:, None]
    found = ZeroShot(Given(samples, NAMES), templates=TEMPLATES, batch_size=4)(model, adapter, ignore)
    assert found.keys() == {"zero-shot top-1", "zero-shot top-5"}
    assert found["zero-shot top-1"].value == pytest.approx(float(right[:, :1].any(1).double().mean()))
    assert found["zero-shot top-5"].value == pytest.approx(float(right[:, :5].any(1).double().mean()))
    assert 0 < found["zero-shot top-5"].value < 1
    top = found["zero-shot top-5"]
    assert (top.n, top.unit, top.larger_is_better) == (9, "images", True)
    assert top.standard_error == pytest.approx((top.value * (1 - top.value) / 8) ** 0.5)


@pytest.mark.parametrize("name", ["pico-clip", "pico-siglip"])
def test_the_classifier_is_open_clips_own(name: str):
    open_clip = pytest.importorskip("open_clip", reason="pip install 'ecoflap[clip]'")
    import pico_open_clip

    model, adapter = pico_open_clip.build(name), pico_open_clip.adapter_for(name)
    names, templates = tuple(f"word{n}" for n in range(6)), ("word9 {} word8", "{}", "word7 word3 {}")
    theirs = open_clip.build_zero_shot_classifier(model, pico_open_clip.Tokenizer(), names, templates)
    ours = ZeroShot(Given(), names, templates, batch_size=5).classifier(model, adapter)
    torch.testing.assert_close(ours, theirs.T, rtol=1e-4, atol=1e-5)


def test_the_named_sets_are_open_clips():
    metadata = pytest.importorskip("open_clip.zero_shot_metadata", reason="pip install 'ecoflap[clip]'")
    whole = ZeroShot(Given(), "openai_imagenet", "openai_imagenet")
    assert (len(whole._names()), len(whole._sentences())) == (1000, 80)
    for sentence, make in zip(whole._sentences(), metadata.OPENAI_IMAGENET_TEMPLATES, strict=True):
        assert sentence.replace("{}", "tench") == make("tench")
    assert ZeroShot(Given(), NAMES, "simple_imagenet")._sentences()[0] == "itap of a {}."


def test_names_come_from_the_data_a_list_or_a_file(tmp_path: Path):
    (tmp_path / "names.txt").write_text("red panda\n\npolar_bear \n")
    assert ZeroShot(Given(names=("red_panda", "bear")))._names() == ("red panda", "bear")
    assert ZeroShot(Given(), ("red_panda", "bear"))._names() == ("red_panda", "bear")
    assert ZeroShot(Given(), tmp_path / "names.txt")._names() == ("red panda", "polar_bear")
    assert ZeroShot(Given(), NAMES).templates == ("a photo of a {}.",)
    # as the dataset reads its names from such files
    (tmp_path / "mapping.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    assert ZeroShot(Given(), tmp_path / "mapping.txt")._names() == ("tench, Tinca tinca", "goldfish")
    (tmp_path / "names.json").write_text('["cat",\n "dog"]')
    assert ZeroShot(Given(), tmp_path / "names.json")._names() == ("cat", "dog")


@needs_clip
def test_among_five_classes_only_the_first_is_told():
    found = ZeroShot(Given(labelled([0, 1, 2]), NAMES[:5]))(pico_clip.clip(), pico_clip.clip_adapter(), ignore)
    assert found.keys() == {"zero-shot top-1"}


@needs_clip
@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([], "zero_shot: its data holds no image"),
        ([1, None], "1 of 2 images have no label"),
        ([1, 7], r"has the labels 7, and there are classes 0 to 6"),
    ],
)
def test_data_it_cannot_use(labels: list[int | None], told: str):
    with pytest.raises(DataError, match=told):
        ZeroShot(Given(labelled(labels), NAMES))(pico_clip.clip(), pico_clip.clip_adapter(), ignore)


def test_models_it_cannot_use():
    with pytest.raises(ModelError, match="zero_shot needs a model that can compare images with texts: it is a vision"):
        ZeroShot(Given(labelled([1]), NAMES))(pico_clip.vision(), pico_clip.vision_adapter(), ignore)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({}, "the data does not know what its classes are called. Give classes"),
        ({"classes": "missing.txt"}, "zero_shot: classes: .*missing.txt cannot be read"),
        ({"classes": ["cat"]}, "there are 1 classes; at least two"),
        ({"classes": ["n01440764", "n01443537"]}, "numbers of WordNet .n01440764 …., which say nothing"),
        ({"data": {"use": "labelled:Given", "names": ["a", "b"]}, "classes": ["a", "b", "c"]},
         "the data has 2 classes .a, b., and classes names 3"),
        ({"classes": ["a", "b"], "templates": ["a photo of a cat"]}, "'a photo of a cat' has no {}"),
        ({"classes": ["a", "b"], "templates": []}, "templates: there are none"),
        ({"classes": ["a", "b"], "templates": "imagenet"}, "templates"),
        ({"classes": ["a", "b"], "batch_size": 0}, "batch_size is 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_by_the_plan(keys: dict[str, Any], told: str):
    with pytest.raises(RecipeError, match=rf"evaluate\.0.*{told}"):
        of_recipe(**keys)


@needs_clip
def test_what_is_right_is_not_talked_about(tmp_path: Path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    for folder, sample in zip("ab", pico_clip.pictures(2), strict=True):
        (tmp_path / "seen" / folder).mkdir(parents=True)
        sample.image.save(tmp_path / "seen" / folder / "0.png")
    data = {"use": "image", "path": str(tmp_path / "seen"), "samples": None}
    of_recipe(pico_clip.processor(), data=data, classes=str(tmp_path / "names.txt"), templates=["{}", "a {}"])


@needs_clip
def test_folders_give_the_names(tmp_path: Path):
    for folder, sample in zip(("w3_of", "w4_a"), pico_clip.pictures(2), strict=True):
        (tmp_path / folder).mkdir()
        sample.image.save(tmp_path / folder / "0.png")
    evaluator = ZeroShot(Image(path=tmp_path, samples=None))
    assert evaluator._names() == ("w3 of", "w4 a")
    found = evaluator(pico_clip.clip(), pico_clip.clip_adapter(), ignore)
    assert (found["zero-shot top-1"].n, [*found]) == (2, ["zero-shot top-1"])


def test_named_sets_without_open_clip(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ecoflap.plugins.evaluators.shared.class_prompts.find_spec", lambda name: None)
    (told,) = ZeroShot(Given(), NAMES, "openai_imagenet").problems(context())
    assert told.endswith("are open_clip's: pip install 'ecoflap[clip]', or write them out.")


def test_the_data_say_themselves_what_is_wrong_with_them_and_all_else_is_said(monkeypatch: pytest.MonkeyPatch):
    @dataclass(frozen=True)
    class Broken(Given):
        def classes(self) -> tuple[str, ...] | None:
            raise DataError("zero_shot: is what this error begins with")

    def odd(name: str) -> tuple[str, ...]:
        raise DataError("odd", "and even")

    assert list(ZeroShot(Broken(), NAMES).problems(context())) == []
    monkeypatch.setattr("ecoflap.plugins.evaluators.zero_shot.templates_named", odd)
    told = [*ZeroShot(Broken(), ("cat",), "openai_imagenet").problems(context())]
    assert told == ["odd", "and even", "zero_shot: there are 1 classes; at least two are needed."]


def test_nothing_is_fetched_for_a_plan():
    @dataclass(frozen=True)
    class Far(Given):
        def classes(self) -> tuple[str, ...] | None:
            raise AssertionError("the network was asked")

    assert list(ZeroShot(Far(fetches=True)).problems(context())) == []
    (told,) = ZeroShot(Far(fetches=True), ("cat",)).problems(context())
    assert told == "zero_shot: there are 1 classes; at least two are needed."
