"""Retrieval by vectors made by hand, and against a plain definition that looks at one pair after the other."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pico_blip2
import pico_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from plan_contexts import context
from table import ROWS
from torch import Tensor, nn

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.adapters.vit import VitAdapter
from ecoflap.core.contracts.protocols import Evaluator, ignore
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, EcoflapError, ModelError, RecipeError
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.record.evaluations import Evaluation
from ecoflap.core.registry.registry import load_registry
from ecoflap.plugins.evaluators.retrieval import Retrieval
from ecoflap.plugins.evaluators.shared import retrieval_rows

needs_clip = pytest.mark.skipif("clip" not in ROWS, reason="transformers here is too old for it")

MODEL = nn.Linear(1, 1)
BLANK = Image.new("RGB", (2, 2))


@dataclass(frozen=True)
class Given:
    """Hands out what it was given."""

    samples: tuple[Sample, ...]

    def __call__(self, adapter: Any, model: Any, note: Any) -> Iterator[Sample]:
        yield from self.samples


@dataclass
class Vectors(VitAdapter):
    """Embeds by a table, and notes what it is shown. Of an adapter it has the rest, which nothing asks for."""

    images: dict[Any, list[float]]
    texts: dict[str, list[float]]
    seen: list[Any] = field(default_factory=list)
    read: list[str] = field(default_factory=list)
    processor: Any = None

    def embed_images(self, model: nn.Module, samples: Sequence[Sample]) -> Tensor:
        self.seen += [sample.image_id for sample in samples]
        return torch.tensor([self.images[sample.image_id] for sample in samples])

    def embed_texts(self, model: nn.Module, texts: Sequence[str]) -> Tensor:
        self.read += texts
        return torch.tensor([self.texts[text] for text in texts])

    def similarity(self, model: nn.Module, images: Tensor, texts: Tensor) -> Tensor:
        return images @ texts.T


@dataclass
class Matches(Vectors):
    """With a matching head that is a table too."""

    matches: dict[tuple[Any, str], float] = field(default_factory=dict)
    asked: list[tuple[Any, str]] = field(default_factory=list)

    def match(self, model: nn.Module, sample: Sample, texts: Sequence[str]) -> Tensor:
        self.asked += [(sample.image_id, text) for text in texts]
        return torch.tensor([self.matches[sample.image_id, text] for text in texts])


def image(number: Any, *texts: str) -> Sample:
    return Sample(image=BLANK, image_id=number, texts=texts, text=texts[0])


def by_definition(similarity: list[list[float]], owners: list[int], k: int) -> tuple[float, float]:
    """TR@k and IR@k where no two similarities are equal: sort, cut off, look."""
    images, texts = range(len(similarity)), range(len(owners))
    found = [
        any(owners[t] == i for t in sorted(texts, key=lambda t: -similarity[i][t])[:k]) for i in images
    ]  # fmt: skip
    seen = [owners[t] in sorted(images, key=lambda i: -similarity[i][t])[:k] for t in texts]
    return sum(found) / len(found), sum(seen) / len(seen)


def test_is_an_evaluator():
    assert isinstance(Retrieval(Given(())), Evaluator)


def test_by_hand():
    """a: its second caption is the nearest text. b: a text of c is nearer. c: its own is nearest.

    Of the captions, all find their image but b's, to which c is nearer.
    """
    adapter = Vectors(
        {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [0.6, 0.8]},
        {"a1": [0.8, 0.6], "a2": [1.0, -0.1], "b1": [0.5, 0.7], "c1": [0.55, 0.9]},
    )
    data = Given((image("a", "a1", "a2"), image("b", "b1"), image("c", "c1")))
    found = Retrieval(data, batch_size=2)(MODEL, adapter, ignore)
    assert found.keys() == {"TR@1", "IR@1"}
    similarity = [[0.8, 1.0, 0.5, 0.55], [0.6, -0.1, 0.7, 0.9], [0.96, 0.52, 0.86, 1.05]]
    assert by_definition(similarity, [0, 0, 1, 2], 1) == (2 / 3, 0.5)
    assert found["TR@1"].value == pytest.approx(2 / 3)
    assert (found["TR@1"].n, found["TR@1"].unit, found["TR@1"].larger_is_better) == (3, "images", True)
    assert found["TR@1"].standard_error == pytest.approx(math.sqrt(2 / 3 * 1 / 3 / 2))
    # a1 is nearer to c, a2 is found, b1 is nearer to c, c1 is found: 1, 0 and 1 of 2, 1 and 1 captions
    assert (found["IR@1"].value, found["IR@1"].n, found["IR@1"].unit) == (0.5, 4, "captions")
    apart = [(0 - 0.5) + (1 - 0.5), 0 - 0.5, 1 - 0.5]
    assert found["IR@1"].standard_error == pytest.approx(math.sqrt(3 / 2 * sum(x * x for x in apart)) / 4)


@settings(max_examples=25)
@given(st.integers(11, 16), st.integers(0, 2**32))
def test_against_the_definition_in_slices_of_any_size(images: int, seed: int):
    random = Random(seed)
    captions = [[f"{number} {place}" for place in range(random.randint(1, 3))] for number in range(images)]
    owners = [number for number, own in enumerate(captions) for _ in own]
    spread = random.sample(range(1, 10_000), images * len(owners))
    similarity = [[float(spread.pop()) for _ in owners] for _ in range(images)]
    texts = [text for own in captions for text in own]
    adapter = Vectors(
        {number: [float(number == place) for place in range(images)] for number in range(images)},
        {text: [row[place] for row in similarity] for place, text in enumerate(texts)},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval_rows, "CELLS", random.choice([1, 40, 10**6]))
        data = Given(tuple(image(n, *own) for n, own in enumerate(captions)))
        found = Retrieval(data, batch_size=5)(MODEL, adapter, ignore)
    for k in (1, 5, 10):
        expected = by_definition(similarity, owners, k)
        assert (found[f"TR@{k}"].value, found[f"IR@{k}"].value) == pytest.approx(expected)


def test_an_image_in_several_samples_is_one_image():
    vectors = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    apart = (image("a", "x"), image("b", "z"), image("a", "y"), image("a", "x"))
    rows, whole = Vectors(vectors, TEXTS), Vectors(vectors, TEXTS)
    notes: list[str] = []
    together = Retrieval(Given((image("a", "x", "y"), image("b", "z"))))(MODEL, whole, notes.append)
    assert notes == []
    assert Retrieval(Given(apart))(MODEL, rows, notes.append) == together
    assert rows.seen == whole.seen == ["a", "b"]
    assert notes == ["2 of 4 samples have an image that came before, and add their captions to it."]


TEXTS = {"x": [1.0, 0.2], "y": [0.9, 0.1], "z": [0.2, 1.0]}


def test_without_names_the_same_picture_is_one_image():
    red, blue = (Image.new("RGB", (2, 2), colour) for colour in ("red", "blue"))
    samples = tuple(Sample(image=one.copy(), text=text) for one, text in ((red, "x"), (blue, "z"), (red, "y")))
    adapter = Vectors({None: [1.0, 0.0]}, TEXTS)
    found = Retrieval(Given(samples))(MODEL, adapter, ignore)
    assert (found["TR@1"].n, found["IR@1"].n) == (2, 3)


def test_a_caption_of_two_images_is_read_once_and_shares_its_hit():
    """Of both images it is the nearest text, and equally near; each is told from the other by nothing."""
    adapter = Vectors({"a": [1.0, 0.0], "b": [1.0, 0.0]}, {"same": [1.0, 0.0]})
    found = Retrieval(Given((image("a", "same"), image("b", "same"))))(MODEL, adapter, ignore)
    assert adapter.read == ["same"]
    assert (found["TR@1"].value, found["IR@1"].value) == (0.5, 0.5)


def test_or_is_right_for_both():
    """c has a caption of its own; that of a and b is asked twice, and finds either."""
    vectors = {"a": [1.0, 0.0], "b": [0.9, 0.0], "c": [0.0, 1.0]}
    adapter = Vectors(vectors, {"same": [1.0, 0.0], "own": [0.2, 1.0], "other": [0.0, 0.9]})
    data = Given((image("a", "same"), image("b", "same", "other"), image("c", "own")))
    found, strict = Retrieval(data, shared=True)(MODEL, adapter, ignore), Retrieval(data)(MODEL, adapter, ignore)
    assert (found["TR@1"].value, found["IR@1"].value) == (1.0, 0.75)
    assert (strict["TR@1"].value, strict["IR@1"].value) == (pytest.approx(2 / 3), 0.5)


def test_texts_and_images_are_embedded_no_more_than_a_batch_at_a_time():
    held: list[int] = []

    class Counted(Vectors):
        def embed_texts(self, model: nn.Module, texts: Sequence[str]) -> Tensor:
            held.append(len(texts))
            assert not torch.is_grad_enabled()
            return super().embed_texts(model, texts)

        def embed_images(self, model: nn.Module, samples: Sequence[Sample]) -> Tensor:
            held.append(len(samples))
            return super().embed_images(model, samples)

    adapter = Counted({n: [1.0, n] for n in range(5)}, {f"t{n}": [n, 1.0] for n in range(5)})
    Retrieval(Given(tuple(image(n, f"t{n}") for n in range(5))), batch_size=2)(MODEL, adapter, ignore)
    assert held == [2, 2, 1, 2, 2, 1]


def table(similarity: list[list[float]]) -> tuple[dict[Any, list[float]], dict[str, list[float]]]:
    """Vectors of images 0, 1, … and texts t0, t1, … that are so similar."""
    size = len(similarity)
    images: dict[Any, list[float]] = {n: [float(n == place) for place in range(size)] for n in range(size)}
    return images, {f"t{place}": [row[place] for row in similarity] for place in range(len(similarity[0]))}


def test_reranking_puts_the_nearest_in_the_order_of_both():
    """By the matching head all is right; but of three pairs image and text are the least similar of eleven.

    To image 0 its text is so too: the similarity of others rises with their number.
    """
    similarity = [[0.1 * place + 0.001 * (n + 1) for place in range(11)] for n in range(11)]
    for n in range(11):
        similarity[n][n] = -1.0 if n in (2, 5, 7) else 0.1 * n + 0.0055
    matches = {(n, f"t{place}"): 5.0 * (n == place) - 0.01 * place for n in range(11) for place in range(11)}
    adapter = Matches(*table(similarity), matches=matches)
    data = Given(tuple(image(n, f"t{n}") for n in range(11)))
    assert Retrieval(data)(MODEL, adapter, ignore)["TR@1"].value < 0.2
    found = Retrieval(data, rerank=10)(MODEL, adapter, ignore)
    assert [round(11 * found[name].value) for name in ("TR@1", "TR@10", "IR@1", "IR@10")] == [7, 7, 8, 8]
    assert len(set(adapter.asked)) == len(adapter.asked) > 80


@needs_clip
def test_reranking_by_blip_2_is_similarity_plus_match():
    model, adapter = pico_blip2.build_retrieval(), pico_blip2.retrieval_adapter()
    samples = tuple(pico_blip2.captions(11))
    found = Retrieval(Given(samples), rerank=128, batch_size=4)(model, adapter, ignore)
    texts = [str(sample.text) for sample in samples]
    with torch.no_grad():
        near = adapter.similarity(model, adapter.embed_images(model, samples), adapter.embed_texts(model, texts))
        scores = near + torch.stack([adapter.match(model, sample, texts) for sample in samples])
    for k in (1, 5, 10):
        expected = by_definition(scores.tolist(), list(range(11)), k)
        assert (found[f"TR@{k}"].value, found[f"IR@{k}"].value) == pytest.approx(expected)


@needs_clip
def test_of_clip_against_its_own_forward():
    family = pico_clip.FAMILIES["clip"]
    model, adapter, samples = family.build(), family.adapter(), tuple(family.samples(12))
    batch = adapter.collate(model, samples)
    with torch.no_grad():
        scores = model(**{n: batch[n] for n in ("pixel_values", "input_ids", "attention_mask")}).logits_per_image
    found = Retrieval(Given(samples), batch_size=5)(model, adapter, ignore)
    for k in (1, 5, 10):
        expected = by_definition(scores.tolist(), list(range(12)), k)
        assert (found[f"TR@{k}"].value, found[f"IR@{k}"].value) == pytest.approx(expected)


@needs_clip
def test_as_a_recipe_has_it_with_a_row_for_each_caption(tmp_path: Path):
    """The line of a run holds it, and its data are files."""
    family, registry = pico_clip.FAMILIES["clip"], load_registry()
    rows = []
    for number, sample in enumerate(family.samples(6)):
        sample.image.save(tmp_path / f"{number}.png")
        rows += [{"image": f"{number}.png", "text": text} for text in (sample.text, f"{sample.text} w3")]
    (tmp_path / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"use": "image_text", "path": str(tmp_path), "samples": None}
    recipe: dict[str, Any] = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude"}
    recipe["evaluate"] = {"use": "retrieval", "data": data}
    read = parse_recipe(recipe, registry=registry, in_memory=True)
    (part,) = prepare(read, registry, family.build(), pico_clip.processor()).recipe.evaluate
    evaluator = Evaluation(part)
    notes: list[str] = []
    evaluator.run(tmp_path / "evaluations.jsonl", "dense", family.build(), family.adapter(), notes.append)
    assert notes == ["6 of 12 samples have an image that came before, and add their captions to it."]
    line = evaluator.line(tmp_path / "evaluations.jsonl", "dense")
    assert line is not None
    counts = {name: measure["n"] for name, measure in line["measures"].items()}
    assert counts == {"TR@1": 6, "TR@5": 6, "TR@10": 6, "IR@1": 12, "IR@5": 12}


@pytest.mark.parametrize(
    ("samples", "told"),
    [
        ((), "holds no image"),
        ((image("a", "x"),), "holds one image, and nothing to tell it from"),
        ((image("a", "x"), Sample(text="x")), "sample 1 of its data has no image"),
        ((Sample(image=BLANK, question="x"),), "sample 0 of its data has no caption.*image_text without prefix"),
    ],
)
def test_data_it_cannot_use(samples: tuple[Sample, ...], told: str):
    with pytest.raises(DataError, match=told):
        Retrieval(Given(samples))(MODEL, Vectors({"a": [1.0, 0.0]}, TEXTS), ignore)


def test_models_it_cannot_use():
    samples = Given((image("a", "x"), image("b", "y")))
    broken = Vectors({"a": [math.nan, 0.0], "b": [0.0, 1.0]}, TEXTS)
    with pytest.raises(ModelError, match="embeddings are not finite"):
        Retrieval(samples)(MODEL, broken, ignore)
    with pytest.raises(ModelError, match=r"rerank needs a model that can match images with texts.*Vectors has none"):
        Retrieval(samples, rerank=128)(MODEL, broken, ignore)
    with pytest.raises(ModelError, match="needs a model that can compare images with texts: LlamaAdapter has none"):
        Retrieval(samples)(MODEL, LlamaAdapter(), ignore)
    with pytest.raises(ModelError, match="it is a vision tower alone"):
        Retrieval(samples)(pico_clip.vision(), pico_clip.vision_adapter(), ignore)


@needs_clip
def test_a_plan_says_that_a_model_has_nothing_to_rerank_by(tmp_path: Path):
    family, registry = pico_clip.FAMILIES["clip"], load_registry()
    (tmp_path / "index.jsonl").write_text("".join(json.dumps({"image": f"{n}.png", "text": n}) + "\n" for n in "ab"))
    for name in "ab":
        BLANK.save(tmp_path / f"{name}.png")
    data = {"use": "image_text", "path": str(tmp_path), "samples": None}
    recipe: dict[str, Any] = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude"}
    recipe["evaluate"] = {"use": "retrieval", "data": data, "rerank": 128}
    read = parse_recipe(recipe, registry=registry, in_memory=True)
    with pytest.raises(RecipeError) as error:
        prepare(read, registry, family.build(), pico_clip.processor(), planning=True)
    assert error.value.problems == (
        "evaluate.0: retrieval: rerank needs a model that can match images with texts, such as BLIP-2 for retrieval: "
        "ClipAdapter has none. Leave rerank out.",
    )


@needs_clip
def test_a_model_with_a_matching_head_has_no_problem_with_rerank():
    there = context(adapter=pico_blip2.retrieval_adapter(), model=pico_blip2.build_retrieval())
    assert list(Retrieval(Given(()), rerank=128).problems(there)) == []


def test_data_that_change_between_two_readings_are_told():
    class Once(Given):
        def __call__(self, adapter: Any, model: Any, note: Any) -> Iterator[Sample]:
            yield from (image("a", "x"), image("b", "y")) if not adapter.seen else (image("a", "x"),)

    vectors = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    adapter = Matches(vectors, TEXTS, matches={(n, t): 0.0 for n in "ab" for t in "xy"})
    with pytest.raises(DataError, match="1 of 2 images were not there on a second reading"):
        Retrieval(Once(()), rerank=10)(MODEL, adapter, ignore)


def test_what_the_data_note_is_told_once_though_they_are_read_twice():
    class Noting(Given):
        def __call__(self, adapter: Any, model: Any, note: Any) -> Iterator[Sample]:
            yield from self.samples
            note("3 rows were passed over")

    notes: list[str] = []
    data = Noting((image("a", "x"), image("b", "y")))
    matches = {(n, t): 0.0 for n in "ab" for t in "xy"}
    Retrieval(data, rerank=10)(MODEL, Matches({"a": [1.0, 0.0], "b": [0.0, 1.0]}, TEXTS, matches=matches), notes.append)
    assert notes == ["3 rows were passed over"]


@pytest.mark.parametrize("wrong", [{"rerank": 5}, {"batch_size": 0}])
def test_settings_that_cannot_be(wrong: dict[str, int]):
    with pytest.raises(EcoflapError, match=next(iter(wrong))):
        Retrieval(Given(()), **wrong)
