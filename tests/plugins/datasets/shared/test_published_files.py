"""Which of the published files a JSON file is, by its content; and what is said of one that is none."""

import json

import pytest

from ecoflap.plugins.datasets.image import Image
from ecoflap.plugins.datasets.image_question_answer import ImageQuestionAnswer
from ecoflap.plugins.datasets.image_text import ImageText
from ecoflap.plugins.datasets.shared.published_files import (
    CAPTIONS,
    GQA,
    KARPATHY,
    LAYOUTS,
    VQA,
    VQA_ANSWERS,
    read_json,
    recognised,
)

FILES = {
    VQA: {"questions": [{"question_id": 1, "image_id": 2, "question": "?"}], "data_subtype": "val2014"},
    VQA_ANSWERS: {"annotations": [{"question_id": 1, "image_id": 2, "answers": []}], "data_subtype": "val2014"},
    GQA: {"201": {"imageId": "n1", "question": "?", "answer": "no"}},
    KARPATHY: {"images": [{"filename": "1.jpg", "split": "test", "sentences": []}], "dataset": "coco"},
    CAPTIONS: {"images": [{"id": 1}], "annotations": [{"image_id": 1, "id": 1, "caption": "x"}]},
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_each_is_told_from_the_others(layout, tmp_path):
    assert recognised(FILES[layout], tmp_path, LAYOUTS) is layout
    assert [other for other in LAYOUTS if not other.lacks(FILES[layout])] == [layout]


@pytest.mark.parametrize(
    ("data", "layout", "problem"),
    [
        (ImageText, VQA, "holds VQA questions, which image_question_answer reads as path. Read here: a list"),
        (ImageText, GQA, "holds GQA questions, which image_question_answer reads as path."),
        (ImageQuestionAnswer, CAPTIONS, "holds COCO captions, which image_text reads as path."),
        (ImageQuestionAnswer, KARPATHY, "holds Karpathy's splits, which image_text reads as path, with a split."),
        (
            ImageQuestionAnswer,
            VQA_ANSWERS,
            "holds VQA annotations, which image_question_answer reads as annotations, with",
        ),
        (Image, CAPTIONS, "holds COCO captions, which image_text reads as path. Read here: a list of objects, one for"),
    ],
)
def test_a_file_that_another_dataset_reads(data, layout, problem, index, told):
    file = index(FILES[layout], "a.json")
    (said,) = told(data(path=file))
    assert said.startswith(f"{data.name}: {file} {problem}")


@pytest.mark.parametrize(
    ("document", "found", "nearest"),
    [
        (  # COCO's boxes
            {"info": {}, "images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": []}], "categories": []},
            "an object with info, images, annotations, categories",
            'Nearest: COCO captions, {"images": [{"id"}, …], "annotations": [{"image_id", "caption"}, …]}, but '
            "annotations[0].caption is missing.",
        ),
        (  # COCO's and NoCaps' images of test splits
            {"info": {}, "images": [{"id": 1, "file_name": "1.jpg"}]},
            "an object with info, images",
            "but annotations is missing. Captions are missing in the files of test splits.",
        ),
        (
            {"questions": [{"id": 1, "image_id": 2, "question": "?"}]},
            "an object with questions",
            'Nearest: VQA questions, {"questions": [{"question_id", "image_id", "question"}, …]}, but '
            "questions[0].question_id is missing.",
        ),
        ({"1": {"imageId": "n1", "text": "?"}}, "an object with 1", "but question is missing."),
        ({"a": 1, "b": 2}, "an object with a, b", None),
        ({str(n): {} for n in range(10)}, "an object with 0, 1, 2, 3, 4, 5, 6, 7 and 2 more", None),
        ({}, "an empty object", None),
        ({"images": {}, "annotations": 1}, "an object with images, annotations", None),
        ("x", "the JSON value 'x'", None),
    ],
)  # fmt: skip
def test_what_is_found_and_what_is_nearest(document, found, nearest, index, told):
    (said,) = told(ImageText(path=index(document, "a.json")))
    assert f"{found}." in said
    assert (nearest in said) if nearest else "Nearest" not in said
    assert said.endswith(
        'Read here: a list of objects, one for each row, [{"image": …}, …]; COCO captions, {"images": [{"id"}, …], '
        '"annotations": [{"image_id", "caption"}, …]}; Karpathy\'s splits, {"images": [{"filename", "split", '
        '"sentences"}, …]}.'
    )


def test_of_records_of_answers_the_answer_is_kept(tmp_path):
    records = [{"answer": answer, "answer_confidence": "yes", "answer_id": 1} for answer in ("red", "", " ", 7)]
    (tmp_path / "a.json").write_text(json.dumps({"answers": records, "answer": "blue"}), encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"answers": ["red", *records[1:]], "answer": "blue"}
