"""COCO captions, NoCaps and Karpathy's splits as they are published: an image with all its captions."""

import pytest

from ecoflap.plugins.datasets.image_text import ImageText


def coco(images, annotations):
    """As in ``captions_val2014.json``."""
    return {
        "info": {"description": "This is stable 1.0 version of the 2014 MS COCO dataset.", "year": 2014},
        "images": images,
        "licenses": [{"url": "http://creativecommons.org/licenses/by-nc-sa/2.0/", "id": 1}],
        "annotations": annotations,
    }


def image(number, **more):
    name = f"COCO_val2014_{number:012d}.jpg"
    return {
        "license": 3, "file_name": name, "coco_url": f"http://images.cocodataset.org/val2014/{name}", "height": 360,
        "width": 640, "date_captured": "2013-11-14 11:18:45", "flickr_url": "http://farm9.staticflickr.com/x.jpg",
        "id": number, **more,
    }  # fmt: skip


def captions(*pairs):
    return [{"image_id": image, "id": 1000 + place, "caption": text} for place, (image, text) in enumerate(pairs)]


@pytest.fixture
def two(index, picture):
    """A file of two images, whose captions are mixed."""
    picture("val2014/COCO_val2014_000000391895.jpg", 100)
    picture("val2014/COCO_val2014_000000522418.jpg", 200)
    mixed = captions((522418, "A woman cutting a cake."), (391895, "A man on a moped. "), (522418, "A white cake."))
    return index(coco([image(391895), image(522418)], mixed), "captions_val2014.json")


def test_coco(two, tmp_path, read):
    data = ImageText(path=two, images=tmp_path / "val2014", samples=None, order="first")
    first, second = read(data)
    assert (first.text, first.texts) == ("A man on a moped.", ("A man on a moped.",))
    assert (second.text, second.texts) == ("A woman cutting a cake.", ("A woman cutting a cake.", "A white cake."))
    assert [(sample.id, sample.image_id, sample.answers) for sample in (first, second)] == [
        (391895, 391895, ()), (522418, 522418, ()),
    ]  # fmt: skip
    assert [round(sample.image.getpixel((0, 0))[0], -2) for sample in (first, second)] == [100, 200]
    assert [file.name for file in data.files()] == [
        "captions_val2014.json", "COCO_val2014_000000391895.jpg", "COCO_val2014_000000522418.jpg",
    ]  # fmt: skip


def test_all_captions_come_with_a_prefix_too(two, tmp_path, read):
    data = ImageText(path=two, images=tmp_path / "val2014", samples=None, order="first", prefix=True)
    assert [len(sample.texts) for sample in read(data)] == [1, 2]


def test_images_without_their_folder(two, told):
    (said,) = told(ImageText(path=two, samples=2))
    assert said.endswith("skip: [missing] to pass over such rows. Set images: to their folder.")


def test_an_image_without_captions(index, picture, told, read):
    for number in (1, 2):
        picture(f"COCO_val2014_{number:012d}.jpg")
    file = index(coco([image(1), image(2)], captions((2, "two"))), "captions.json")
    (said,) = told(ImageText(path=file, samples=2))
    assert said.startswith("image_text: 1 of 2 rows have an empty caption: captions.json images[0]. Mend them")
    assert [sample.text for sample in read(ImageText(path=file, samples=1, skip=True))] == ["two"]


def test_nocaps(index, picture, read):
    picture("0013ea2087020901.jpg")
    row = {
        "license": 0, "file_name": "0013ea2087020901.jpg", "height": 1024, "width": 732, "flickr_url": None,
        "date_captured": "2018-11-06 11:04:33", "id": 0, "open_images_id": "0013ea2087020901", "domain": "near-domain",
        "coco_url": "https://s3.amazonaws.com/nocaps/val/0013ea2087020901.jpg",
    }  # fmt: skip
    texts = [f"A baby is standing, {place}." for place in range(10)]
    unnamed = {key: value for key, value in row.items() if key != "file_name"}
    numbered = {key: value for key, value in unnamed.items() if key != "coco_url"}
    for written in (row, unnamed, numbered):
        file = index(coco([written], captions(*((0, text) for text in texts))), "nocaps_val_4500_captions.json")
        (sample,) = read(ImageText(path=file, samples=1))
        assert (sample.image_id, sample.kind, sample.texts) == (0, "near-domain", tuple(texts))


@pytest.mark.parametrize(
    ("images", "annotations", "problem"),
    [
        ([image(1)], captions((2, "two")), "is of one of its images. Captions are missing."),
        ([image(1), image(1)], captions((1, "one")), "images[1] has the same id, 1, as one before it."),
        ([image(1), []], captions((1, "one")), "images[1] is not a JSON object."),
        ([image(1)], [*captions((1, "one")), {"image_id": 1}], "annotations[1] has no caption."),
        ([image(1)], [*captions((1, "one")), {"caption": "x"}], "annotations[1] has no image_id."),
        ([], captions((1, "one")), "a.json holds no rows."),
    ],
)
def test_files_that_cannot_be(images, annotations, problem, index, told):
    (said,) = told(ImageText(path=index(coco(images, annotations), "a.json"), samples=1))
    assert said.startswith("image_text: ")
    assert said.endswith(problem)


def test_an_image_without_a_name(index, picture, told):
    picture("a.jpg")
    file = index(coco([image(1, file_name="a.jpg"), {"id": 2}], captions((1, "one"), (2, "two"))), "a.json")
    (said,) = told(ImageText(path=file, samples=2))
    assert "1 of 2 rows name an image file that is not there: a.json images[1] (it names none)" in said


# --- Karpathy


def karpathy(number, split, *raw, **more):
    return {
        "sentids": [5 * number + place for place in range(len(raw))], "imgid": number, "split": split,
        "sentences": [
            {"tokens": text.lower().split(), "raw": text, "imgid": number, "sentid": 5 * number + place}
            for place, text in enumerate(raw)
        ],
        "filename": f"{number}.jpg", **more,
    }  # fmt: skip


@pytest.fixture
def flickr(index, picture):
    for number in range(5):
        picture(f"flickr30k-images/{number}.jpg")
    splits = ["train", "test", "val", "restval", "test"]
    rows = [karpathy(number, split, f"Picture {number}.", f"It is {number}. ") for number, split in enumerate(splits)]
    return index({"images": rows, "dataset": "flickr30k"}, "dataset_flickr30k.json")


@pytest.mark.parametrize(
    ("split", "there"),
    [("test", [1, 4]), ("train", [0]), ("val", [2]), ("restval", [3]), ("train+restval", [0, 3])],
)
def test_karpathy(split, there, flickr, tmp_path, read):
    data = ImageText(path=flickr, images=tmp_path / "flickr30k-images", samples=None, order="first", split=split)
    found = read(data)
    assert [sample.image_id for sample in found] == there
    assert [sample.texts for sample in found] == [(f"Picture {number}.", f"It is {number}.") for number in there]


def test_a_split_that_is_not_there(flickr, told):
    (said,) = told(ImageText(path=flickr, split="tests"))
    assert said == (
        f"image_text: {flickr} has no split 'tests'. Did you mean 'test'? Known: train, test, val, restval; several "
        "are joined by +, train+restval."
    )


def test_too_few_in_a_split(flickr, told, tmp_path):
    (said,) = told(ImageText(path=flickr, images=tmp_path / "flickr30k-images", split="test", samples=3))
    assert f"3 samples are asked for, and {flickr} has 2." in said


def test_karpathy_of_coco(index, picture, read, tmp_path):
    name = picture("val2014/COCO_val2014_000000391895.jpg").split("/")[1]
    row = karpathy(0, "test", "A man. ", filepath="val2014", filename=name, cocoid=391895)
    file = index({"images": [row], "dataset": "coco"}, "dataset_coco.json")
    for images in (tmp_path, tmp_path / "val2014"):
        (sample,) = read(ImageText(path=file, images=images, split="test", samples=1))
        assert (sample.text, sample.image_id) == ("A man.", 391895)


def test_lists_of_lavis(index, picture, read):
    five = [f"caption {place}" for place in range(5)]
    name = picture("flickr30k-images/1007129816.jpg")
    (sample,) = read(ImageText(path=index([{"image": name, "caption": five}], "flickr30k_test.json"), samples=1))
    assert (sample.text, sample.texts, sample.image_id) == ("caption 0", tuple(five), name)
    rows = [{"caption": text, "image": name, "image_id": "coco_1"} for text in five]
    found = read(ImageText(path=index(rows, "coco_karpathy_train.json"), samples=5, order="first"))
    assert [(sample.texts, sample.image_id) for sample in found] == [((text,), "coco_1") for text in five]
