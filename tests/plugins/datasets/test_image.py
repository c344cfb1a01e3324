"""Images alone: folders with and without classes, indexes with labels."""

from pathlib import Path

import pytest

from ecoflap.core.contracts.protocols import Dataset
from ecoflap.plugins.datasets.image import Image


def shades(samples):
    return [sample.image.getpixel((0, 0))[0] for sample in samples]


def test_is_a_dataset(tmp_path):
    assert isinstance(Image(path=tmp_path), Dataset)


def test_a_folder_of_images(tmp_path, picture, read):
    for shade, name in enumerate(["a.png", "b.JPG", "c.webp", "d.bmp"]):
        picture(name, shade)
    picture(".hidden.png")
    picture("sub/e.png")
    (tmp_path / "notes.txt").touch()
    found = read(Image(path=tmp_path, samples=None, order="first"))
    assert shades(found) == [0, 1, 2, 3]
    assert {sample.label for sample in found} == {None}
    assert [(sample.text, sample.question, sample.answers) for sample in found] == [(None, None, ())] * 4


def test_subfolders_are_classes(tmp_path, picture, read):
    for shade, name in enumerate(["cat/1.png", "cat/2.png", "Dog/1.png", "ant/1.png", ".cache/1.png"]):
        picture(name, shade)
    (tmp_path / "readme.txt").touch()
    found = read(Image(path=tmp_path, samples=None, order="first"))
    assert [(sample.label, shade) for sample, shade in zip(found, shades(found), strict=True)] == [
        (0, 2), (1, 3), (2, 0), (2, 1),
    ]  # fmt: skip
    assert {sample.label for sample in read(Image(path=tmp_path, samples=None, labels=False))} == {None}


def test_one_subfolder_is_no_class(tmp_path, picture, read):
    picture("images/1.png")
    assert [sample.label for sample in read(Image(path=tmp_path, samples=1))] == [None]


def test_a_class_without_images(tmp_path, picture, read, told):
    picture("cat/1.png")
    (tmp_path / "dog").mkdir()
    (said,) = told(Image(path=tmp_path, samples=1))
    assert "taken for classes, and 1 of them hold no image: dog. Take them away, or set labels: false." in said
    assert len(read(Image(path=tmp_path, samples=1, labels=False))) == 1


def test_a_folder_with_nothing(tmp_path, told):
    (said,) = told(Image(path=tmp_path))
    assert said.startswith(f"image: the folder {tmp_path} and its subfolders hold no image. Known: .jpg, .jpeg, .png")


def test_images_is_for_an_index(tmp_path, picture, told):
    picture("a.png")
    (said,) = told(Image(path=tmp_path, images=tmp_path, samples=1))
    assert "images is for an index, and the folder" in said


def test_an_index_with_labels(tmp_path, picture, index, read):
    index([{"image": picture("a.png", 5), "label": 3}, {"image": picture("b.png", 6), "label": 0}], "index.json")
    found = read(Image(path=tmp_path, samples=2, order="first"))
    assert [sample.label for sample in found] == [3, 0]
    assert shades(found) == [5, 6]
    assert [sample.label for sample in read(Image(path=tmp_path, samples=2, labels=False))] == [None, None]


def test_labels_in_csv_and_by_another_name(tmp_path, picture, read):
    picture("a.png")
    (tmp_path / "index.csv").write_text("file_name,class\na.png,12\n")
    assert [sample.label for sample in read(Image(path=tmp_path, samples=1, columns={"label": "class"}))] == [12]
    assert [sample.label for sample in read(Image(path=tmp_path, samples=1))] == [None]


@pytest.mark.parametrize("column", ["lable", " label", "labels", "Label"])
def test_a_column_that_may_be_meant_for_the_labels_is_noted(column, tmp_path, picture, index, noted):
    file = index([{"image": picture("a.png"), column: 1}])
    told = f"{file} has no column 'label', and no classes are read. Did you mean {column!r}? "
    assert noted(Image(path=tmp_path, samples=1)) == [told + "Name it in columns: {label: …}."]
    assert noted(Image(path=tmp_path, samples=1, columns={"label": column})) == []
    assert noted(Image(path=tmp_path, samples=1, labels=False)) == []
    index([{"image": "a.png", "label": 1, column: 2}])
    assert noted(Image(path=tmp_path, samples=1)) == []
    others = {"image_width": 1, "image_url": "u", "source": "x", "width": 2, "caption": "c", "class": 3, "split": "s"}
    index([{"image": "a.png", **others}])
    assert noted(Image(path=tmp_path, samples=1)) == []


@pytest.mark.parametrize("label", ["cat", -1, 1.5, None, "", True, [1], 2**63, str(2**63), 10**30, "1" * 30])
def test_labels_that_are_no_class_numbers(label, tmp_path, picture, index, told):
    index([{"image": picture("a.png"), "label": 1}, {"image": "a.png", "label": label}])
    (said,) = told(Image(path=tmp_path, samples=2, skip=True))
    assert said == (
        f"image: 1 of 2 rows hold what does not belong there: index.jsonl:2 (its label is {label!r}, not a class's "
        "number; or set labels: false). Mend them."
    )


def test_a_label_column_that_is_asked_for_and_not_there(tmp_path, picture, index, told):
    index([{"image": picture("a.png"), "klass": 1}])
    (said,) = told(Image(path=tmp_path, columns={"label": "class"}))
    assert said.endswith("has no column 'class'. Did you mean 'klass'? Known: image, klass.")


def test_an_image_that_is_broken_is_named_by_its_file(tmp_path, picture, told_when_read):
    picture("a.png")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (said,) = told_when_read(Image(path=tmp_path, samples=2))
    assert said.startswith(f"image: 1 of 2 rows have an image that cannot be read: b.jpg ({tmp_path / 'b.jpg'}): ")


def test_a_path_that_is_not_there(tmp_path, told):
    (tmp_path / "imagenet").mkdir()
    (said,) = told(Image(path=tmp_path / "imagnet"))
    assert said == f"image: {tmp_path / 'imagnet'} does not exist. Did you mean 'imagenet'?"


def test_a_folder_that_may_not_be_read(tmp_path, told, monkeypatch):
    def refuse(_):
        raise PermissionError("not yours")

    monkeypatch.setattr("os.scandir", refuse)
    (said,) = told(Image(path=Path(tmp_path)))
    assert said == f"image: the folder {tmp_path} cannot be read: not yours."
