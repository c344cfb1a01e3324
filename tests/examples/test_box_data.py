import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pico_vit
import pytest
from torch import nn

from ecoflap.core.contracts.protocols import ignore
from ecoflap.plugins.datasets.image import Image

BOX = Path(__file__).parents[2] / "examples" / "box"
DATA = BOX / "data"
PARTS = ("calibration", "validation", "test")


@pytest.fixture(scope="module")
def script(module_of: Callable[[str], Any]) -> Any:
    return module_of("box/make_data.py")


def read(name: str) -> Any:
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


def rows(part: str) -> list[tuple[int, str, str, str]]:
    """Image, question, type and answer."""
    asked = {row["question_id"]: row for row in read(f"{part}_questions")["questions"]}
    answers = read(f"{part}_annotations")["annotations"]
    assert asked.keys() == {row["question_id"] for row in answers}
    assert all(asked[row["question_id"]]["image_id"] == row["image_id"] for row in answers)
    texts = [asked[row["question_id"]]["question"] for row in answers]
    return [
        (row["image_id"], text, row["question_type"], row["multiple_choice_answer"])
        for row, text in zip(answers, texts, strict=True)
    ]


@pytest.mark.parametrize("part", PARTS)
def test_every_question_has_one_answer_and_a_picture(part: str):
    images = {row["id"]: row["file_name"] for row in read(f"{part}_questions")["images"]}
    assert {image for image, *_ in rows(part)} == set(images)
    assert all(
        row["answers"][0]["answer"] == row["multiple_choice_answer"]
        for row in read(f"{part}_annotations")["annotations"]
    )
    assert all(name == f"{number:012d}.png" for number, name in images.items())


@pytest.mark.parametrize("part", PARTS)
def test_every_captioned_picture_has_captions(part: str):
    captions = read(f"{part}_captions")
    assert {row["image_id"] for row in captions["annotations"]} == {row["id"] for row in captions["images"]}
    named = [row for row in read(f"{part}_questions")["images"] if row in captions["images"]]
    assert named == captions["images"]


def test_the_parts_share_no_picture_and_leave_none_over():
    images = [row["file_name"] for part in PARTS for row in read(f"{part}_questions")["images"]]
    assert len(images) == len(set(images))
    assert sorted(images) == sorted(file.name for file in (DATA / "images").iterdir())


def test_pictures_are_rgb_of_64_pixels():
    from PIL import Image as Pictures

    for file in sorted((DATA / "images").iterdir())[::40]:
        with Pictures.open(file) as picture:
            assert (picture.mode, picture.size) == ("RGB", (64, 64))


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_keyword_is_as_often_right_as_wrong(part: str):
    """So that no answer can be guessed from its question."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for _, question, kind, answer in rows(part):
        if kind.startswith("emoji keyword"):
            found[question][answer] += 1
    assert len(found) > 100
    assert {question for question, answers in found.items() if answers["yes"] != answers["no"]} == set()


@pytest.mark.parametrize("part", PARTS)
def test_keywords_are_those_of_the_captions(part: str):
    captions: dict[int, list[str]] = defaultdict(list)
    for row in read(f"{part}_captions")["annotations"]:
        captions[row["image_id"]].append(row["caption"])
    for image, question, kind, answer in rows(part):
        if kind.startswith("emoji keyword"):
            word = question.removeprefix("is this about ").removesuffix("?")
            assert (word in captions[image][1].split(", ")) == (answer == "yes")
        if kind.startswith("emoji label"):
            assert answer == captions[image][0]


@pytest.mark.parametrize("part", ["validation", "test"])
def test_what_is_unseen_has_no_class(part: str):
    """Of no emoji that is said to be unseen does the training set know the label; of every other it does."""
    classes = set((DATA / "classes.txt").read_text(encoding="utf-8").splitlines())
    labels: dict[int, str] = {}
    for row in read(f"{part}_captions")["annotations"]:
        labels.setdefault(row["image_id"], row["caption"])
    asked = [(image, kind) for image, _, kind, _ in rows(part) if kind.startswith("emoji")]
    assert {labels[image] for image, kind in asked if kind.endswith(" seen")} <= classes
    assert not {labels[image] for image, kind in asked if kind.endswith(" unseen")} & classes
    assert len({image for image, kind in asked if kind.endswith(" unseen")}) > 100


@pytest.mark.parametrize("part", PARTS)
def test_classes_are_lines_of_their_list(part: str):
    names = (DATA / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert len(names) == len(set(names))
    shown = read(f"{part}_classes")
    assert [names[row["label"]] for row in shown] == [row["class"] for row in shown]


def test_classes_are_read_as_an_index():
    data = Image(path=DATA / "test_classes.json", images=DATA / "images", samples=3, order="first")
    found = data(pico_vit.adapter(), nn.Identity(), ignore)
    assert [sample.label for sample in found] == [row["label"] for row in read("test_classes")[:3]]


def test_the_data_stay_small():
    assert sum(file.stat().st_size for file in DATA.rglob("*") if file.is_file()) < 7_000_000


@pytest.mark.parametrize(
    ("label", "concept"),
    [
        ("woman running: facing right", "running"),
        ("person running", "running"),
        ("men wrestling", "wrestling"),
        ("woman: red hair", "red hair"),
        ("family: man, woman, boy", "family"),
        ("kiss: woman, man", "family"),
        ("old woman", "old"),
        ("woman's hat", "hat"),
        ("mermaid", "mermaid"),
        ("flag: isle of man", "flag isle of"),
    ],
)
def test_concepts(label: str, concept: str, script: Any):
    assert script.concept_of(label) == concept


@pytest.mark.parametrize(
    ("text", "plain"),
    [("Japanese “here” button", "japanese here button"), ("flag: Côte d’Ivoire", "flag: cote d'ivoire"), ("㊗ x", "x")],
)
def test_plain(text: str, plain: str, script: Any):
    assert script.plain(text) == plain


def test_an_archive_that_was_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Any):
    monkeypatch.setattr(script, "CACHE", tmp_path)
    (tmp_path / "emojibase-data-17.0.0.tgz").write_bytes(b"not what was published")
    with pytest.raises(SystemExit, match=r"emojibase-data-17\.0\.0\.tgz is not the file that was published"):
        script.archive("emojibase-data")


def test_uneven_keywords_are_dropped_with_their_partners(script: Any):
    """Right with a, wrong with b, and so on: c is right once and never wrong, so its pair goes, and then b's."""
    pairs = [((0, "a"), "b"), ((1, "b"), "a"), ((2, "c"), "d")]
    assert script.balanced(list(pairs)) == pairs[:2]
    assert script.balanced([((0, "a"), "b"), ((1, "b"), "c"), ((2, "c"), "d")]) == []
