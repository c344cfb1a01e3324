"""Two images with a sentence: NLVR2's own files, LAVIS' lists of it, indexes, saved tables, and rows that are wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plan_contexts import context
from torch import nn

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.protocols import Dataset, ignore
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError
from ecoflap.plugins.datasets.image_pair import ImagePair


def published(identifier: str, label: str, **more: Any) -> dict[str, Any]:
    """A row as NLVR2 has it, of which most is not read."""
    urls = {"left_url": "https://x.org/a.jpg", "right_url": "https://x.org/b.jpg"}
    return {"identifier": identifier, "sentence": f"of {identifier}", "label": label, "writer": 1, **urls, **more}


@pytest.fixture
def nlvr2(picture: Callable[..., str], tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as NLVR2 publishes them, an object a line in a ``.json`` file, with images in ``images``."""

    def write(name: str, rows: list[dict[str, Any]], *folders: str) -> Path:
        for number, (row, folder) in enumerate(zip(rows, folders, strict=True)):
            pair = row["identifier"].rpartition("-")[0]
            for side in (0, 1):
                picture(f"images/{folder}{pair}-img{side}.png", shade=10 * number + side)
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return file

    return write


def read(data: ImagePair) -> list[Sample]:
    return list(data(LlamaAdapter(), nn.Identity(), ignore))


def told(data: ImagePair) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        read(data)
    assert list(data.problems(context())) == list(caught.value.problems)
    return tuple(caught.value.problems)


def shades(sample: Sample) -> tuple[int, ...]:
    assert sample.image is None
    assert all(image.mode == "RGB" for image in sample.images)
    return tuple(image.getpixel((0, 0))[0] for image in sample.images)


def test_nlvr2s_own_files_in_the_folders_that_they_come_in(nlvr2, tmp_path: Path):
    rows = [published("dev-850-0-0", "True"), published("dev-850-0-1", "False"), published("dev-12-3-0", "False")]
    file = nlvr2("dev.json", rows, "dev/", "dev/", "dev/")
    data = ImagePair(path=file, images=tmp_path / "images", samples=None, order="first")
    assert isinstance(data, Dataset)
    assert data.classes() == ("False", "True")
    found = read(data)
    assert [shades(sample) for sample in found] == [(10, 11), (10, 11), (20, 21)]  # the second row's are the first's
    assert [(one.text, one.label, one.id, one.image_id) for one in found] == [
        ("of dev-850-0-0", 1, "dev-850-0-0", "dev-850-0"),
        ("of dev-850-0-1", 0, "dev-850-0-1", "dev-850-0"),
        ("of dev-12-3-0", 0, "dev-12-3-0", "dev-12-3"),
    ]
    assert list(data.problems(context())) == []
    images = [tmp_path / f"images/dev/{name}" for name in (
        "dev-850-0-img0.png", "dev-850-0-img1.png", "dev-12-3-img0.png", "dev-12-3-img1.png",
    )]  # fmt: skip
    assert list(data.files()) == [file, *images]


@pytest.mark.parametrize(("images", "folder"), [("images", "train/92/"), ("images/train", "train/92/"), ("images", "")])
def test_those_to_train_by_lie_in_numbered_folders(images: str, folder: str, nlvr2, tmp_path: Path):
    rows = [published(f"train-{one}-0-0", "True", directory=92) for one in (10171, 10172)]
    file = nlvr2("train.json", rows, folder, folder)
    found = read(ImagePair(path=file, images=tmp_path / images, samples=2, order="first"))
    assert [(shades(one), one.label) for one in found] == [((0, 1), 1), ((10, 11), 1)]


def test_lavis_lists(picture, index, tmp_path: Path):
    rows = [
        {"images": [picture("dev/a.png", 3), picture("dev/b.png", 4)], "sentence": "one", "label": "True"},
        {"images": ["dev/b.png", "dev/a.png"], "sentence": "two", "label": "False"},
    ]
    found = read(ImagePair(path=index(rows, "nlvr_dev.json"), samples=None, order="first"))
    assert [(shades(one), one.text, one.label, one.image_id) for one in found] == [
        ((3, 4), "one", 1, "dev/a.png dev/b.png"), ((4, 3), "two", 0, "dev/b.png dev/a.png"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("label", "number"), [("True", 1), ("false", 0), (True, 1), (False, 0), (1, 1), (0, 0), (" 1", 1), ("0", 0)]
)
def test_labels(label: Any, number: int, picture, index):
    row = {"left": picture("a.png"), "right": picture("b.png", 1), "text": "x", "label": label}
    (found,) = read(ImagePair(path=index([row]), samples=1))
    assert (found.label, shades(found)) == (number, (0, 1))


def test_a_column_for_each_image_in_csv(picture, tmp_path: Path):
    picture("a.png", 5), picture("b.png", 6)
    (tmp_path / "a.csv").write_text("one,other,said,is\na.png,b.png,a dog,true\n")
    columns = {"left": "one", "right": "other", "text": "said", "label": "is"}
    (found,) = read(ImagePair(path=tmp_path / "a.csv", columns=columns, samples=1))
    assert (shades(found), found.text, found.label) == ((5, 6), "a dog", 1)


def test_a_saved_table_whose_labels_are_numbers_of_words(picture, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    files = [str(tmp_path / picture(f"{name}.png", shade)) for name, shade in (("a", 7), ("b", 8))]
    table = datasets.Dataset.from_dict({
        "left_image": [files[0]] * 2, "right_image": [files[1]] * 2, "sentence": ["x", "y"], "label": [0, 1],
    })  # fmt: skip
    for name in ("left_image", "right_image"):
        table = table.cast_column(name, datasets.Image())
    table = table.cast_column("label", datasets.ClassLabel(names=["True", "False"]))
    table.save_to_disk(str(tmp_path / "saved"))
    found = read(ImagePair(path=tmp_path / "saved", samples=None, order="first"))
    assert [(shades(one), one.text, one.label) for one in found] == [((7, 8), "x", 1), ((7, 8), "y", 0)]


def test_rows_that_are_wrong_are_told_with_their_lines(nlvr2, tmp_path: Path):
    rows = [
        published("dev-1-0-0", "True"),
        published("dev-2-0-0", "maybe"),
        published("dev-3-0-0", "True"),
        {**published("dev-4-0-0", "True"), "sentence": " "},
        published("dev-5-0", "True"),
    ]
    file = nlvr2("dev.json", rows, *["dev/"] * 5)
    missing = tmp_path / "images/dev/dev-3-0-img1.png"
    missing.unlink()
    said = told(ImagePair(path=file, images=tmp_path / "images", samples=None, order="first"))
    assert said == (
        "image_pair: 2 of 5 rows hold what does not belong there: dev.json:2 (its label is 'maybe', neither True nor "
        "False); dev.json:5 (it names no images, and its identifier is 'dev-5-0', none like dev-850-0-3). Mend them.",
        f"image_pair: 1 of 5 rows name an image file that is not there: dev.json:3 ({missing}). "
        "Mend them, or set skip: [missing] to pass over such rows. Set images: to their folder.",
        "image_pair: 1 of 5 rows have no sentence: dev.json:4. Mend them, or set skip: [empty] to pass over such rows.",
    )


@pytest.mark.parametrize(
    ("images", "found"),
    [(["a.png"], "1 of them"), (["a.png"] * 3, "3 of them"), ("a.png", "'a.png'"), ({"0": "a.png"}, "{'0': 'a.png'}")],
)
def test_other_than_two_images(images: Any, found: str, picture, index):
    picture("a.png")
    (said,) = told(ImagePair(path=index([{"images": images, "sentence": "x", "label": "True"}]), samples=1))
    assert f"index.jsonl:1 (its images are {found}, and two are needed)" in said


def test_one_of_two_images_that_is_not_named_or_cannot_be_read(picture, index, tmp_path: Path):
    row = {"left": picture("a.png"), "right": "", "sentence": "x", "label": "True"}
    (said,) = told(ImagePair(path=index([row]), samples=1))
    assert "index.jsonl:1 (it names none)" in said
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    data = ImagePair(path=index([{**row, "right": "b.png"}]), samples=1)
    assert list(data.problems(context())) == []
    with pytest.raises(DataError, match=rf"cannot be read: index\.jsonl:1 \({tmp_path}/b\.png\): "):
        read(data)


def test_a_table_without_images_or_labels(index):
    (said,) = told(ImagePair(path=index([{"image": "a.png", "sentence": "x", "label": "True"}]), samples=1))
    assert "has no column 'images'. Did you mean 'image'? Known: image, sentence, label." in said
    (said,) = told(ImagePair(path=index([{"left": "a.png", "right": "b.png", "sentence": "x"}]), samples=1))
    assert "has no column 'label'." in said


def test_those_that_are_wrong_are_passed_over_where_that_is_asked(nlvr2, tmp_path: Path):
    file = nlvr2("dev.json", [published(f"dev-{one}-0-0", "True") for one in range(3)], *["dev/"] * 3)
    (tmp_path / "images/dev/dev-1-0-img0.png").unlink()
    data = ImagePair(path=file, images=tmp_path / "images", samples=2, order="first", skip=("missing",))
    assert [one.id for one in read(data)] == ["dev-0-0-0", "dev-2-0-0"]
