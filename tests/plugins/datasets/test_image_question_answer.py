"""Questions about images; and here, for all datasets of images, what comes from the ``datasets`` library."""

import sys
from io import BytesIO

import numpy as np
import pico_clip
import pytest
from PIL import Image as Pictures
from plan_contexts import context
from table import ROWS

from ecoflap import load_registry
from ecoflap.core.cli.plan_report import plan_tables
from ecoflap.core.contracts.protocols import Dataset
from ecoflap.core.errors import DataError, RecipeError
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.plugins.datasets.image import Image
from ecoflap.plugins.datasets.image_question_answer import ImageQuestionAnswer
from ecoflap.plugins.datasets.image_text import ImageText
from ecoflap.plugins.evaluators.shared.means import image_of

datasets = pytest.importorskip("datasets")


def test_is_a_dataset(tmp_path):
    assert isinstance(ImageQuestionAnswer(path=tmp_path), Dataset)


@pytest.mark.parametrize(
    ("given", "answers"),
    [
        ({"answers": ["red", " ", "dark red "]}, ("red", "dark red")),
        ({"answers": "red"}, ("red",)),
        ({"answer": "red"}, ("red",)),
        ({"answer": ["red", "red"]}, ("red", "red")),
        ({"answer": 2}, ("2",)),
        ({"answers": [{"answer": "red", "answer_id": 1}, {"answer": "blue", "answer_id": 2}]}, ("red", "blue")),
        ({"answers": ["red"], "answer": "blue"}, ("red",)),
        ({"answers": [{"answer": "red"}, {"answer": " "}, {"answer": None}]}, ("red", "", "")),
        ({"answers": {"answer": ["red", "", "blue"], "answer_id": [1, 2, 3]}}, ("red", "", "blue")),
    ],
)
def test_ways_to_write_answers(given, answers, picture, index, read):
    file = index([{"image": picture("a.png"), "question": " Which colour? ", **given}])
    (sample,) = read(ImageQuestionAnswer(path=file, samples=1))
    assert (sample.text, sample.question, sample.answers, sample.label) == (None, "Which colour?", answers, None)


def test_ids_and_kind(picture, index, read):
    good = {"image": picture("a.png"), "question": "Which?", "answers": ["this"]}
    file = index(
        [{**good, "question_id": 7, "image_id": "x", "answer_type": "other"}, {**good, "question_id": "8"}, good]
    )
    found = read(ImageQuestionAnswer(path=file, samples=None, order="first"))
    assert [(sample.id, sample.image_id, sample.kind) for sample in found] == [
        (7, "x", "other"), ("8", "a.png", None), ("a.png", "a.png", None),
    ]  # fmt: skip


def test_an_image_of_several_questions_is_decoded_once(picture, index, read, monkeypatch):
    decoded = []
    module = sys.modules["ecoflap.plugins.datasets.shared.image_files"]
    monkeypatch.setattr(module, "read_image", lambda file: decoded.append(file.name) or Pictures.new("RGB", (1, 1)))
    names = ["a.png", "a.png", "b.png", "a.png"]
    file = index([{"image": picture(name), "question": "Which?", "answers": ["this"]} for name in names])
    assert len(read(ImageQuestionAnswer(path=file, samples=None, order="first"))) == 4
    assert decoded == ["a.png", "b.png", "a.png"]


def test_csv(tmp_path, picture, read):
    picture("a.png")
    (tmp_path / "index.csv").write_text("image,question,answer\na.png,Which?,this\na.png,Where?,here\n")
    found = read(ImageQuestionAnswer(path=tmp_path, samples=2, order="first"))
    assert [(sample.question, sample.answers) for sample in found] == [("Which?", ("this",)), ("Where?", ("here",))]


def test_questions_and_answers_that_are_empty(picture, index, read, told):
    good = {"image": picture("a.png"), "question": "Which?", "answers": ["this"]}
    file = index([good, {**good, "question": ""}, {**good, "answers": []}, {**good, "answers": [{"answer": ""}]}])
    (said,) = told(ImageQuestionAnswer(path=file, samples=4, order="first"))
    assert said == (
        "image_question_answer: 3 of 4 rows have no question or no answer: index.jsonl:2 (no question); index.jsonl:3 "
        "(no answer); index.jsonl:4 (no answer). Mend them, or set skip: [empty] to pass over such rows."
    )
    assert len(read(ImageQuestionAnswer(path=file, samples=1, skip=True))) == 1


@pytest.mark.parametrize(
    ("given", "said_of"),
    [
        ({"question": ["a?", "b?"]}, "it holds 2 questions"),
        ({"answers": {"text": "x"}}, "its answers is {'text': 'x'}"),
        ({"answers": [None, 1.5]}, "its answers is 1.5"),
        ({"answers": True}, "its answers is True"),
        ({"question_id": [1]}, "its id is [1]"),
        ({"image_id": True}, "its image_id is True"),
    ],
)
def test_what_is_no_question_or_answer(given, said_of, picture, index, told):
    good = {"image": picture("a.png"), "question": "Which?", "answers": ["this"]}
    (said,) = told(ImageQuestionAnswer(path=index([{**good, **given}]), samples=1, skip=True))
    assert f"index.jsonl:1 ({said_of}" in said


def test_columns_that_are_not_there(index, told):
    both = told(ImageQuestionAnswer(path=index([{"image": "a.png", "questions": "x"}])))
    assert "has no column 'question'. Did you mean 'questions'?" in both[0]
    assert "has no column 'answers' or 'answer'. Known: image, questions." in both[1]


def test_a_column_of_videos_is_refused_as_such(index, told):
    (video,) = told(ImageQuestionAnswer(path=index([{"video": "a.mp4", "question": "x", "answer": "y"}])))
    assert video.endswith("Known: video, question, answer. Videos are not read: take frames out of them, as images.")


# --- from the hub


def png(shade, mode="RGB"):
    file = BytesIO()
    Pictures.new(mode, (4, 3), shade).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def hub(monkeypatch):
    """Offers a table, and notes what is asked for."""

    def offer(table):
        asked = []

        def load(name, config, split):
            asked.append((name, config, split))
            if isinstance(table, Exception):
                raise table
            return table

        monkeypatch.setattr(datasets, "load_dataset", load)
        return asked

    return offer


def test_a_dataset_of_pil_images(hub, read):
    pictures = [Pictures.new("RGB", (4, 3), (shade, 0, 0)) for shade in range(5)]
    columns = {"image": pictures, "question": [f"{i}?" for i in range(5)], "answers": [[f"{i}"] for i in range(5)]}
    asked = hub(datasets.Dataset.from_dict({**columns, "other": pictures}))
    found = read(ImageQuestionAnswer(dataset="org/vqa", config="en", split="validation", samples=4))
    assert asked == [("org/vqa", "en", "validation")]
    assert all(sample.question == f"{sample.image.getpixel((0, 0))[0]}?" for sample in found)
    assert all(sample.answers == (sample.question.rstrip("?"),) for sample in found)
    assert list(ImageQuestionAnswer(dataset="org/vqa").problems(context())) == []  # nothing is fetched for a plan


def test_a_dataset_of_bytes_and_paths(hub, read, tmp_path, picture):
    stored = [{"bytes": png(7, "L"), "path": "x.png"}, {"bytes": None, "path": picture("a.png", 8)}]
    hub(datasets.Dataset.from_dict({"image": stored, "caption": ["seven", "eight"]}))
    found = read(ImageText(dataset="org/cc", images=tmp_path, samples=2, order="first"))
    assert [sample.image.getpixel((0, 0)) for sample in found] == [(7, 7, 7), (8, 8, 8)]
    assert [sample.text for sample in found] == ["seven", "eight"]


def test_embedded_images_of_one_base_name_are_told_apart_by_their_pixels(hub, read):
    stored = [{"bytes": png(shade, "L"), "path": "0.png"} for shade in (1, 2, 2)]
    hub(datasets.Dataset.from_dict({"image": stored, "caption": ["one", "two", "too"]}))
    first, second, again = read(ImageText(dataset="org/cc", samples=3, order="first"))
    assert image_of(first, 0) != image_of(second, 1) == image_of(again, 2)


def test_a_dataset_of_paths(hub, read, tmp_path, picture, monkeypatch):
    hub(datasets.Dataset.from_dict({"image": [picture("a.png", 9)], "text": ["nine"]}))
    monkeypatch.chdir(tmp_path)
    assert [sample.image.getpixel((0, 0)) for sample in read(ImageText(dataset="org/cc", samples=1))] == [(9, 9, 9)]


def test_a_dataset_with_classes(hub, read):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": png(0), "path": None}] * 2, "label": ["dog", "cat"]}
    hub(datasets.Dataset.from_dict(rows, features=features))
    assert [sample.label for sample in read(Image(dataset="org/pets", samples=2, order="first"))] == [1, 0]


def test_an_image_folder_of_the_library(read, tmp_path, picture, index, monkeypatch):
    """The real loader, on local files."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"file_name": picture(f"data/{i}.png", i), "text": f"{i}"} for i in range(3)]
    index([{**row, "file_name": row["file_name"].removeprefix("data/")} for row in rows], "data/metadata.jsonl")
    by_library = read(ImageText(dataset=str(tmp_path / "data"), samples=3, order="first"))
    by_index = read(ImageText(path=tmp_path / "data", samples=3, order="first"))
    for found in (by_library, by_index):
        assert [sample.text for sample in found] == ["0", "1", "2"]
        assert [sample.image.getpixel((0, 0))[0] for sample in found] == [0, 1, 2]


def test_broken_images_of_a_dataset_are_named(hub, read):
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    images = [{"bytes": png(0), "path": None}, {"bytes": b"gone", "path": None}, {"bytes": None, "path": " "}, None]
    hub(datasets.Dataset.from_dict({"image": images, "text": ["x"] * 4}, features=features))
    with pytest.raises(DataError) as caught:
        read(ImageText(dataset="org/cc", samples=4, order="first"))
    unreadable, missing = caught.value.problems
    assert "1 of 4 rows have an image that cannot be read: dataset 'org/cc', row 1: no image of a kind" in unreadable
    assert "2 of 4 rows name an image file that is not there: dataset 'org/cc', row 2 (it names none); " in missing


def test_a_dataset_with_other_columns(hub, read):
    hub(datasets.Dataset.from_dict({"image": [png(0)], "title": ["x"]}))
    with pytest.raises(DataError, match=r"dataset 'org/cc' has no column 'text' or 'caption'\. Known: image, title\."):
        read(ImageText(dataset="org/cc"))
    with pytest.raises(DataError, match=r"dataset 'org/cc' has no column 'titel'\. Did you mean 'title'\?"):
        read(ImageText(dataset="org/cc", columns={"text": "titel"}))
    assert len(read(ImageText(dataset="org/cc", columns={"text": "title"}, samples=1))) == 1


@pytest.mark.parametrize("column", [[1], [[1.5]], [True]])
def test_a_column_that_holds_no_images(column, hub, read):
    hub(datasets.Dataset.from_dict({"image": column, "text": ["x"]}))
    with pytest.raises(DataError, match=r"what does not belong there: dataset 'org/cc', row 0 \(the image is"):
        read(ImageText(dataset="org/cc", samples=1))


def test_a_dataset_that_cannot_be_had(hub, read):
    hub(ConnectionError("no network"))
    with pytest.raises(DataError, match=r"^image_text: dataset 'org/cc' cannot be loaded: no network$"):
        read(ImageText(dataset="org/cc"))
    hub(datasets.exceptions.DatasetGenerationError("a broken file"))
    with pytest.raises(DataError, match=r"cannot be loaded: a broken file$"):
        read(ImageText(dataset="org/cc"))
    hub(datasets.Dataset.from_dict({"image": [], "text": []}))
    with pytest.raises(DataError, match=r"^image_text: dataset 'org/cc' holds no rows\.$"):
        read(ImageText(dataset="org/cc"))


# --- in a plan


RECIPE = "version: 1\nmodel: {model}\nsparsity: 0.5\nprune: wanda\ncalibration: {{use: image_text, path: ., {more}}}\n"


def planned(folder, model, more):
    registry = load_registry(installed=False)
    recipe = parse_recipe(RECIPE.format(model=model, more=more), registry=registry, file=folder / "recipe.yaml")
    return plan_tables(recipe, registry)


@pytest.mark.skipif("clip" not in ROWS, reason="transformers here is too old for it")
def test_a_plan_says_how_many_samples_there_are(tmp_path, picture, index):
    index([{"image": picture("a.png"), "text": "x"}] * 6)
    for part in (pico_clip.clip(), pico_clip.processor()):
        part.save_pretrained(tmp_path / "model")
    tables = planned(tmp_path, tmp_path / "model", "samples: 6, batch_size: 2")
    (work,) = (table for table in tables if table.title == "work")
    assert any("6 samples, 2 a batch" in cell for row in work.rows for cell in row)


def test_a_plan_says_what_is_wrong_with_the_data(pico_llama_folder, tmp_path, index):
    index([{"image": "gone.png", "text": "x"}] * 6)
    with pytest.raises(RecipeError, match=r"recipe\.yaml:5:14: calibration: image_text: 6 of 6 rows name an image"):
        planned(tmp_path, pico_llama_folder, "samples: 6")


def test_pixels_survive_the_way_through_a_table(hub, read):
    noise = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    hub(datasets.Dataset.from_dict({"image": [Pictures.fromarray(noise)]}))
    (sample,) = read(Image(dataset="org/noise", samples=1))
    assert (np.asarray(sample.image) == noise).all()
