"""VQAv2, OK-VQA and GQA as they are published: which image and which answers belong to a question."""

import json

import pytest
from plan_contexts import context

from ecoflap.plugins.datasets.image_question_answer import ImageQuestionAnswer

TEN = ["down", "down", "at table", "skateboard", "down", "table", "down", "down", "down", "down"]


def questions(*rows, **more):
    """As in ``v2_OpenEnded_mscoco_val2014_questions.json``."""
    return {
        "info": {"description": "This is v2.0 of the VQA dataset.", "version": "2.0", "year": 2017},
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "license": {"url": "http://creativecommons.org/licenses/by/4.0/"},
        "data_subtype": "val2014",
        "questions": list(rows),
        **more,
    }


def question(number=262148000, image=262148, asked="Where is he looking?"):
    return {"image_id": image, "question": asked, "question_id": number}


def annotation(number=262148000, image=262148, answers=TEN):
    return {
        "question_type": "none of the above",
        "multiple_choice_answer": "down",
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": place}
            for place, answer in enumerate(answers, 1)
        ],
        "image_id": image,
        "answer_type": "other",
        "question_id": number,
    }


def annotations(*rows):
    return {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "val2014", "annotations": list(rows)}


@pytest.fixture
def vqa(tmp_path):
    """Writes both files, and gives the dataset of them."""

    def write(asked, answered, **more):
        (tmp_path / "questions.json").write_text(json.dumps(asked))
        (tmp_path / "annotations.json").write_text(json.dumps(answered))
        settings = {"samples": None, "order": "first", "annotations": tmp_path / "annotations.json", **more}
        return ImageQuestionAnswer(path=tmp_path / "questions.json", images=tmp_path / "images", **settings)

    return write


def test_vqa(vqa, picture, read):
    picture("images/COCO_val2014_000000262148.jpg", 100)
    picture("images/COCO_val2014_000000000042.jpg", 200)
    more = question(42001, 42, "Is it red?")
    data = vqa(
        questions(question(), more), annotations(annotation(42001, 42, ["yes"] * 9 + ["no"]), annotation())
    )  # in another order
    first, second = read(data)
    assert (first.question, first.answers) == ("Where is he looking?", tuple(TEN))
    assert (first.id, first.image_id, first.kind, first.text) == (262148000, 262148, "other", None)
    assert (second.question, second.answers) == ("Is it red?", ("yes",) * 9 + ("no",))
    assert [round(sample.image.getpixel((0, 0))[0], -2) for sample in (first, second)] == [100, 200]


def test_a_blank_answer_is_still_one_of_ten(vqa, picture, read):
    picture("images/262148.png")
    answers = ["red", "", " ", *["blue"] * 7]
    (sample,) = read(vqa(questions(question()), annotations(annotation(answers=answers))))
    assert sample.answers == ("red", "", "", *["blue"] * 7)


@pytest.mark.parametrize(
    ("name", "asked", "more"),
    [
        ("COCO_val2014_000000262148.jpg", {}, {}),
        ("abstract_v002_val2015_000000262148.png", {"data_type": "abstract_v002", "data_subtype": "val2015"}, {}),
        ("000000262148.png", {}, {}),
        ("262148.jpg", {}, {}),
        ("262148.jpeg", {"data_subtype": None}, {}),
        ("pic-262148.webp", {}, {"image_name": "pic-{image_id}.webp"}),
        ("b/COCO_test_000000262148.jpg", {}, {"image_name": "b/COCO_test_{image_id:012d}.jpg"}),
        ("cat.png", {"images": [{"id": 1, "file_name": "x"}, {"id": 262148, "file_name": "cat.png"}]}, {}),
    ],
)
def test_names_of_images(name, asked, more, vqa, picture, read):
    picture(f"images/{name}", 7)
    data = vqa(questions(question(), **asked), annotations(annotation()), **more)
    assert list(data.problems(context())) == []
    assert len(read(data)) == 1
    assert [file.name for file in data.files()] == ["questions.json", "annotations.json", name.split("/")[-1]]


def test_the_name_that_is_looked_for_first_is_told(vqa, picture, told):
    picture("images/other.jpg")
    (said,) = told(vqa(questions(question(), question(262148001)), annotations(annotation(), annotation(262148001))))
    assert said.startswith("image_question_answer: 2 of 2 rows name an image file that is not there: questions.json ")
    assert "questions[0] (" in said
    assert "images/COCO_val2014_000000262148.jpg)" in said
    assert said.endswith(
        "skip: [missing] to pass over such rows. Set images: to their folder, and image_name: where files are not "
        "called by the image's number alone or as COCO's."
    )


def test_answers_in_the_same_file(tmp_path, picture, read):
    picture("262148.jpg")
    both = {**questions(question()), **annotations(annotation())}
    (tmp_path / "both.json").write_text(json.dumps(both))
    assert read(ImageQuestionAnswer(path=tmp_path / "both.json", samples=1))[0].answers == tuple(TEN)


def test_what_else_an_annotation_has(vqa, picture, read):
    picture("images/262148.jpg")
    columns = {"answers": "multiple_choice_answer", "kind": "question_type"}
    (sample,) = read(vqa(questions(question()), annotations(annotation()), columns=columns))
    assert (sample.answers, sample.kind) == (("down",), "none of the above")


def test_questions_without_answers(vqa, picture, told, tmp_path):
    picture("images/262148.jpg")
    data = vqa(questions(question()), annotations(annotation()), annotations=None)
    official = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
    (tmp_path / "questions.json").rename(tmp_path / official[0])
    (tmp_path / "annotations.json").rename(tmp_path / official[1])
    (said,) = told(ImageQuestionAnswer(path=tmp_path / official[0], images=data.images))
    assert said == (
        f"image_question_answer: the answers are missing: {tmp_path / official[0]} holds questions alone. Set "
        f"annotations: to the file of their answers. Did you mean '{official[1]}'? Test splits are published without "
        "one."
    )


def test_some_questions_without_answers(vqa, picture, told, read):
    picture("images/262148.jpg")
    rows = [question(number) for number in range(8)]
    data = vqa(questions(*rows), annotations(annotation(2), annotation(5)))
    (said,) = told(data)
    assert said.startswith("image_question_answer: 6 of 8 rows have no question or no answer: questions.json questions")
    assert "questions[0] (no answer)" in said
    assert [sample.id for sample in read(vqa(questions(*rows), annotations(annotation(2)), skip=True))] == [2]


def test_answers_of_another_split(vqa, told, tmp_path, picture):
    picture("images/262148.jpg")
    (said,) = told(vqa(questions(question()), annotations(annotation(1))))
    files = f"{tmp_path / 'questions.json'} is answered in {tmp_path / 'annotations.json'}"
    assert said == f"image_question_answer: none of the questions of {files}: of another split?"


@pytest.mark.parametrize(
    ("asked", "answered", "problem"),
    [
        (questions(question()), annotations(annotation(), annotation()), "[1] has the same question_id, 262148000,"),
        (questions(question()), annotations(annotation(), {}), "annotations[1] has no question_id."),
        (questions(question()), annotations(annotation(), 7), "annotations[1] is not a JSON object."),
        (questions(question()), annotations(), "holds no answers."),
        (questions(), annotations(annotation()), "holds no rows."),
        (questions(question()), questions(question()), "holds VQA questions, which image_question_answer reads"),
        (questions(question(), images=[{"id": 1}] * 2), annotations(annotation()), "images[1] has the same id, 1, as"),
    ],
)  # fmt: skip
def test_files_that_cannot_be(asked, answered, problem, vqa, picture, told):
    picture("images/262148.jpg")
    (said,) = told(vqa(asked, answered))
    assert problem in said


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"image_name": "COCO.jpg"}, "image_name is 'COCO.jpg'; a pattern with image_id, and nothing else, in braces"),
        ({"image_name": "{image_id}-{question_id}.jpg"}, "and nothing else, in braces"),
        ({"image_name": "{image_id.jpg"}, "image_name '{image_id.jpg' is no pattern: "),
        ({"image_name": "{image_id:q}.jpg"}, "image_name '{image_id:q}.jpg' does not fit the image_id 262148: "),
    ],
)
def test_patterns_that_are_none(more, problem, vqa, picture, told):
    picture("images/262148.jpg")
    (said,) = told(vqa(questions(question()), annotations(annotation()), **more))
    assert problem in said


def test_an_annotations_file_that_is_not_there(vqa, picture, told, tmp_path):
    picture("images/262148.jpg")
    data = vqa(questions(question()), annotations(annotation()), annotations=tmp_path / "annotation.json")
    (said,) = told(data)
    assert said.endswith("annotation.json does not exist. Did you mean 'annotations.json'?")


def test_an_index_has_its_own_answers(index, picture, told, tmp_path):
    file = index([{"image": picture("a.png"), "question": "Which?", "answers": ["this"]}])
    (said,) = told(ImageQuestionAnswer(path=file, samples=1, image_name="{image_id}.jpg", annotations=file))
    assert said == (
        f"image_question_answer: annotations and image_name belong with the question files of VQA, and {file} is none: "
        "its rows name their images and answers."
    )


# --- GQA


def gqa(**more):
    return {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "scene"}],
        "entailed": ["20602949"],
        "equivalent": ["201307251"],
        "question": "Is it overcast?",
        "imageId": "n161313",
        "isBalanced": True,
        "groups": {"global": None, "local": "13-weather_overcast"},
        "answer": "no",
        "semanticStr": "select: scene->verify weather: overcast [0]",
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": "weatherVerify", "semantic": "global", "structural": "verify"},
        "fullAnswer": "No, it is clear.",
        **more,
    }


def test_gqa(tmp_path, picture, index, read):
    picture("images/n161313.jpg")
    picture("images/2354786.jpg")
    file = index({"201307251": gqa(), "7": gqa(imageId="2354786", answer="yes")}, "val_balanced_questions.json")
    data = ImageQuestionAnswer(path=file, images=tmp_path / "images", samples=None, order="first")
    first, second = read(data)
    assert (first.question, first.answers, first.kind) == ("Is it overcast?", ("no",), "verify")
    assert [(sample.id, sample.image_id) for sample in (first, second)] == [("201307251", "n161313"), ("7", "2354786")]
    by_sense = ImageQuestionAnswer(**{**vars(data), "columns": {"kind": "types.semantic", "answers": "fullAnswer"}})
    assert [(sample.kind, sample.answers) for sample in read(by_sense)] == [("global", ("No, it is clear.",))] * 2


def test_gqa_without_answers(index, picture, told, tmp_path):
    test_split = {key: value for key, value in gqa().items() if key in ("imageId", "question", "isBalanced")}
    file = index({"1": test_split}, "test_all_questions.json")
    (said,) = told(ImageQuestionAnswer(path=file, samples=1))
    assert said == (f"image_question_answer: the answers are missing in {file}: GQA's files of test splits have none.")
    answered = index({"1": gqa()}, "val.json")
    (said,) = told(ImageQuestionAnswer(path=answered, samples=1, annotations=file))
    assert said.endswith("holds GQA's questions with their answers. Leave annotations out.")


def test_one_gqa_question_without_an_answer(index, picture, told):
    picture("n161313.jpg")
    unanswered = {key: value for key, value in gqa().items() if key not in ("answer", "types")}
    (said,) = told(ImageQuestionAnswer(path=index({"1": gqa(), "2": unanswered}, "a.json"), samples=2, order="first"))
    assert said.startswith("image_question_answer: 1 of 2 rows have no question or no answer: a.json['2'] (no answer).")


# --- as LAVIS has them


def test_lists_of_lavis(tmp_path, index, picture, read):
    """Which name images and answers themselves: ``vqa_val_eval.json``."""
    row = {"question_id": 262148000, "question": "Where is he looking?", "answer": TEN, "dataset": "vqa"}
    file = index([{"image": picture("val2014/COCO_val2014_000000262148.jpg"), **row}], "vqa_val_eval.json")
    (sample,) = read(ImageQuestionAnswer(path=file, samples=1))
    assert (sample.id, sample.answers) == (262148000, tuple(TEN))
    assert sample.image_id == "val2014/COCO_val2014_000000262148.jpg"
