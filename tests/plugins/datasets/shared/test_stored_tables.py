"""Parquet files and folders of ``save_to_disk``, read without a network."""

from io import BytesIO

import pytest
from PIL import Image as Pictures

from ecoflap.plugins.datasets.image import Image
from ecoflap.plugins.datasets.image_question_answer import ImageQuestionAnswer
from ecoflap.plugins.datasets.image_text import ImageText

datasets = pytest.importorskip("datasets")


def png(shade):
    file = BytesIO()
    Pictures.new("RGB", (4, 3), (shade, 0, 0)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": f"{shade}.png"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(params=["file", "folder", "data", "saved", "splits", "dataset", "saved dataset"])
def stored(request, tmp_path):
    """Stores a table in one of the ways there are; gives what to read it with."""

    def store(table):
        folder = tmp_path / "stored"
        if request.param in ("saved", "saved dataset"):
            table.save_to_disk(folder)
        elif request.param == "splits":
            datasets.DatasetDict({"train": table.select([0]), "test": table}).save_to_disk(folder)
        else:
            inside = folder / "data" if request.param == "data" else folder
            inside.mkdir(parents=True)
            table.to_parquet(inside / "test-00000-of-00001.parquet")
        file = folder / "test-00000-of-00001.parquet" if request.param == "file" else folder
        given = {"dataset": str(file)} if request.param.endswith("dataset") else {"path": file}
        return {**given, "split": "test", "samples": None, "order": "first"}

    return store


def test_classes(stored, read):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["tench", "shark"])})
    table = datasets.Dataset.from_dict({"image": [png(0), png(1), png(2)], "label": [1, 0, 1]}, features=features)
    data = Image(**stored(table))
    assert data.classes() == ("tench", "shark")
    assert [sample.label for sample in read(data)] == [1, 0, 1]
    assert [sample.image.getpixel((0, 0))[0] for sample in read(data)] == [0, 1, 2]
    assert [sample.image_id for sample in read(data)] == [None] * 3  # names of embedded images are base names alone
    assert {file.suffix for file in data.files()} & {".parquet", ".arrow"}


def vqa_table():
    """As VQAv2 is at the hub: answers are a list of objects, or an object of lists."""
    ten = [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n, answer in enumerate("ab cdefghi")]
    record = {"answer": datasets.Value("string"), "answer_confidence": datasets.Value("string"),
              "answer_id": datasets.Value("int64")}  # fmt: skip
    columns = {
        "image": datasets.Image(), "question": datasets.Value("string"), "question_id": datasets.Value("int64"),
        "image_id": datasets.Value("int64"), "answer_type": datasets.Value("string"),
    }  # fmt: skip
    rows = {
        "image": [png(3)],
        "question": ["Which?"],
        "question_id": [42000],
        "image_id": [42],
        "answer_type": ["other"],
    }
    of_objects = datasets.Features({**columns, "answers": [record]})
    of_lists = datasets.Features({**columns, "answers": {key: datasets.List(value) for key, value in record.items()}})
    lists = {key: [one[key] for one in ten] for key in record}
    return [
        datasets.Dataset.from_dict({**rows, "answers": [ten]}, features=of_objects),
        datasets.Dataset.from_dict({**rows, "answers": [lists]}, features=of_lists),
    ]


@pytest.mark.parametrize("way", [0, 1])
def test_ten_answers(way, stored, read):
    (sample,) = read(ImageQuestionAnswer(**stored(vqa_table()[way])))
    assert sample.answers == ("a", "b", "", *"cdefghi")
    assert (sample.question, sample.id, sample.image_id, sample.kind) == ("Which?", 42000, 42, "other")


def test_lists_of_captions(stored, read):
    table = datasets.Dataset.from_dict({"image": [png(4)], "caption": [["a cat", "a mat"]], "filename": ["x.jpg"]})
    data = ImageText(**stored(table.cast_column("image", datasets.Image())), columns={"image_id": "filename"})
    (sample,) = read(data)
    assert (sample.text, sample.texts, sample.image_id) == ("a cat", ("a cat", "a mat"), "x.jpg")


def test_labels_that_are_words(stored, read, tmp_path):
    table = datasets.Dataset.from_dict({"image": [png(0)] * 3, "label": ["dog", "cat", "dog"]})
    given = stored(table.cast_column("image", datasets.Image()))
    assert [sample.label for sample in read(Image(**given))] == [1, 0, 1]
    (tmp_path / "names.txt").write_text("ant\ncat\ndog\n")
    data = Image(**given, names=tmp_path / "names.txt")
    assert ([sample.label for sample in read(data)], data.classes()) == ([2, 1, 2], ("ant", "cat", "dog"))


def test_a_column_that_may_be_meant_for_the_labels_is_noted(stored, noted):
    table = datasets.Dataset.from_dict({"image": [png(0)], "lable": [1]})
    (said,) = noted(Image(**{**stored(table.cast_column("image", datasets.Image())), "samples": 1}))
    assert said.endswith(
        "has no column 'label', and no classes are read. Did you mean 'lable'? Name it in columns: {label: …}."
    )


@pytest.mark.parametrize("stored", ["splits"], indirect=True)
def test_a_split_that_was_not_saved(stored, told):
    data = ImageText(**{**stored(datasets.Dataset.from_dict({"image": [png(0)], "text": ["x"]})), "split": "tset"})
    (said,) = told(data)
    assert said.endswith("has no split 'tset'. Did you mean 'test'? Known: train, test.")


@pytest.mark.parametrize("stored", ["folder"], indirect=True)
def test_what_is_wrong_is_said_before_a_run(stored, told):
    table = datasets.Dataset.from_dict({"image": ["gone.png"], "title": ["x"]})
    (said,) = told(ImageText(**stored(table)))
    assert "has no column 'text' or 'caption'. Known: image, title." in said
