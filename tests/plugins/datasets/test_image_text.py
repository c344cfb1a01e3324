"""Images with captions; and here, for all datasets of images, indexes, order, portion and what is passed over."""

import json
import sys
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_contexts import context

from ecoflap import load_registry
from ecoflap.core.contracts.protocols import Dataset, ignore
from ecoflap.core.errors import DataError, RecipeError
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.plugins.datasets.image_text import ImageText

WORDS = "a small red cat sits on the big mat"


@pytest.fixture
def captioned(picture, index):
    """An index of so many rows, each with its number as shade and caption."""

    def write(count, name="index.jsonl"):
        return index([{"image": picture(f"{i}.png", i), "text": f"caption {i}"} for i in range(count)], name)

    return write


def texts(samples):
    return [sample.text for sample in samples]


def test_is_a_dataset(tmp_path):
    assert isinstance(ImageText(path=tmp_path), Dataset)


@pytest.mark.parametrize("name", ["index.jsonl", "index.json", "metadata.jsonl"])
def test_image_and_caption_belong_together(name, captioned, read, tmp_path):
    file = captioned(9, name)
    for path in (file, tmp_path):
        found = read(ImageText(path=path, samples=5))
        assert len(found) == 5
        assert all(sample.text == f"caption {sample.image.getpixel((0, 0))[0]}" for sample in found)
        assert all((sample.question, sample.answers, sample.label) == (None, (), None) for sample in found)


def test_the_number_of_a_row_is_not_that_of_an_image(picture, index, read):
    file = index([{"id": number, "image": picture("a.png"), "caption": f"caption {number}"} for number in range(3)])
    assert len({sample.image_id for sample in read(ImageText(path=file, samples=None, order="first"))}) == 1


def test_csv(tmp_path, picture, read):
    picture("a.png", 7)
    content = '\ufefffile_name,other,caption\na.png,1,"red, and ""big""\nof two lines"\n a.png,2,x\n'
    (tmp_path / "metadata.csv").write_text(content.replace("\n", "\r\n"), encoding="utf-8", newline="")
    (tmp_path / " a.png").write_bytes((tmp_path / "a.png").read_bytes())
    found = read(ImageText(path=tmp_path, samples=2, order="first"))
    assert texts(found) == ['red, and "big"\r\nof two lines', "x"]


def test_columns_by_other_names(picture, index, read):
    file = index([{"url": "x", "img": picture("a.png"), "title": "a title", "text": "a text"}])
    data = ImageText(path=file, samples=1, columns={"image": "img", "text": "title"})
    assert texts(read(data)) == ["a title"]


def test_images_in_a_folder_of_their_own(tmp_path, picture, index, read):
    picture("train/a.png")
    picture("elsewhere/b.png")
    absolute = str(tmp_path / "elsewhere" / "b.png")
    file = index([{"image": "a.png", "text": "1"}, {"image": "../elsewhere/b.png", "text": "2"},
                  {"image": absolute, "text": "3"}])  # fmt: skip
    assert texts(read(ImageText(path=file, images=tmp_path / "train", samples=3, order="first"))) == ["1", "2", "3"]


def test_a_line_separator_inside_a_caption(tmp_path, picture, read):
    picture("a.png")
    (tmp_path / "index.jsonl").write_text('{"image": "a.png", "text": "a\u2028b"}\n\n', encoding="utf-8")
    assert texts(read(ImageText(path=tmp_path, samples=None))) == ["a\u2028b"]


# --- captions


def test_one_of_several_captions(picture, index, read):
    several = ["one", " ", "two ", "three"]
    file = index([{"image": picture("a.png"), "text": several}] * 30)
    assert set(texts(read(ImageText(path=file, samples=None)))) == {"one"}
    data = ImageText(path=file, samples=None, order="first", captions="random")
    assert set(texts(read(data))) == {"one", "two", "three"}
    assert texts(read(data)) == texts(read(data))
    assert texts(read(data)) != texts(read(ImageText(**{**vars(data), "seed": 1})))


def test_a_prefix_and_the_rest(picture, index, read):
    file = index([{"image": picture("a.png"), "text": WORDS}] * 60)
    found = read(ImageText(path=file, samples=None, prefix=True, order="first"))
    assert {f"{sample.question} {sample.answers[0]}" for sample in found} == {WORDS}
    assert {len(sample.question.split()) for sample in found} == {1, 2, 3, 4}
    assert all(sample.text is None and len(sample.answers) == 1 for sample in found)
    fewer = read(ImageText(path=file, samples=7, prefix=True, order="first"))
    assert [sample.question for sample in fewer] == [sample.question for sample in found[:7]]


def test_all_captions_of_an_image(picture, index, read):
    objects = [{"caption": "one"}, {"raw": " "}, {"raw": "two "}]
    several = {"image": picture("a.png"), "domain": "out-domain"}
    file = index([{**several, "text": ["one", " ", "two "]}, {**several, "text": objects}])
    for captions in ("first", "random"):
        found = read(ImageText(path=file, samples=None, captions=captions, order="first", seed=3))
        assert [sample.texts for sample in found] == [("one", "two")] * 2
        assert all(sample.text in sample.texts for sample in found)
        assert {sample.kind for sample in found} == {"out-domain"}


@pytest.mark.parametrize(("caption", "questions"), [("a  b", {"a"}), ("a b c", {"a"}), ("a b c d", {"a", "a b"})])
def test_short_captions_are_cut_too(caption, questions, picture, index, read):
    file = index([{"image": picture("a.png"), "text": caption}] * 20)
    assert {sample.question for sample in read(ImageText(path=file, samples=None, prefix=True))} == questions


def test_a_caption_of_one_word_has_no_prefix(picture, index, read, told):
    file = index([{"image": picture("a.png"), "text": "cat"}, {"image": "a.png", "text": "a cat"}])
    (said,) = told(ImageText(path=file, samples=2, prefix=True))
    assert "have an empty caption: index.jsonl:1 (of one word, 'cat', no half can be taken)" in said
    assert len(read(ImageText(path=file, samples=1, prefix=True, skip=("empty",)))) == 1


# --- order and portion


def test_first_is_the_order_of_the_index(captioned, read):
    file = captioned(6)
    assert texts(read(ImageText(path=file, order="first", samples=4))) == [f"caption {i}" for i in range(4)]


def test_random_is_the_same_everywhere(captioned, read):
    file = captioned(10)
    found = texts(read(ImageText(path=file, samples=5)))
    assert found == [f"caption {i}" for i in (7, 8, 1, 5, 3)]
    assert texts(read(ImageText(path=file, samples=5))) == found
    assert texts(read(ImageText(path=file, samples=5, seed=1))) != found
    assert texts(read(ImageText(path=file, samples=None)))[:5] == found


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Indexes of 1 to 40 rows, all of one image."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("many")
    Image.new("RGB", (1, 1)).save(folder / "a.png")
    for count in range(1, 41):
        rows = [json.dumps({"image": "a.png", "text": f"{i}"}) for i in range(count)]
        (folder / f"{count}.jsonl").write_text("\n".join(rows))
    return folder


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 40),
    cuts=st.lists(st.integers(1, 99).map(lambda cent: cent / 100), max_size=3, unique=True),
    choices=st.lists(st.tuples(st.sampled_from(["first", "random"]), st.integers(0, 9)), min_size=4, max_size=4),
)
def test_portions_hold_every_row_exactly_once_whatever_their_order_and_seed(many, read, count, cuts, choices):
    found = []
    for portion, (order, seed) in zip(pairwise([0.0, *sorted(cuts), 1.0]), choices, strict=False):
        data = ImageText(path=many / f"{count}.jsonl", samples=None, portion=portion, order=order, seed=seed)
        start, end = (round(share * 100) * count // 100 for share in portion)
        if start == end:
            with pytest.raises(DataError, match="all samples are asked for, and portion"):
                read(data)
            continue
        drawn = texts(read(data))
        assert drawn == texts(read(data))
        assert order == "random" or drawn == sorted(drawn, key=int)
        found += drawn
    assert sorted(found, key=int) == [f"{i}" for i in range(count)]


def test_a_portion_of_a_sorted_index_is_no_run_of_it(captioned, read):
    half = ImageText(path=captioned(40), portion=(0.0, 0.5), samples=20)
    found = {int(text.split()[1]) for text in texts(read(half))}
    assert 5 < len(found & set(range(20))) < 15


# --- rows that are no good


@pytest.fixture
def flawed(tmp_path, picture, index):
    """12 rows: 4 good ones, 2 without a file, 2 with broken files, 4 without a caption."""
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    good = {"image": picture("a.png"), "text": "good"}
    missing = [{**good, "image": "gone.png"}, {**good, "image": None}]
    broken = [{**good, "image": "broken.png"}] * 2
    empty = [{**good, "text": ""}, {**good, "text": "  "}, {**good, "text": []}, {"image": "a.png"}]
    return index([good, *missing, good, *broken, good, *empty, good])


def test_all_flaws_are_told_at_once(flawed, read, tmp_path):
    data = ImageText(path=flawed, samples=12, order="first")
    with pytest.raises(DataError) as caught:
        read(data)
    gone, broken = tmp_path / "gone.png", tmp_path / "broken.png"
    missing, unreadable, empty = caught.value.problems
    assert missing == (
        f"image_text: 2 of 12 rows name an image file that is not there: index.jsonl:2 ({gone}); index.jsonl:3 (it "
        "names none). Mend them, or set skip: [missing] to pass over such rows."
    )
    start = "image_text: 2 of 12 rows have an image that cannot be read: "
    assert unreadable.startswith(f"{start}index.jsonl:5 ({broken}): ")
    assert f"; index.jsonl:6 ({broken}): " in unreadable
    assert empty == (
        "image_text: 4 of 12 rows have an empty caption: index.jsonl:8; index.jsonl:9; index.jsonl:10; index.jsonl:11. "
        "Mend them, or set skip: [empty] to pass over such rows."
    )
    assert list(data.problems(context())) == [missing, empty]  # no image is opened for a plan


def test_only_rows_that_are_drawn_are_looked_at(flawed, read):
    assert list(ImageText(path=flawed, samples=1, order="first").problems(context())) == []
    assert len(read(ImageText(path=flawed, samples=1, order="first"))) == 1


def test_five_are_named_and_all_counted(picture, index, told):
    rows = [{"image": f"{i}.png", "text": "x"} for i in range(9)]
    (said,) = told(ImageText(path=index([{"image": picture("a.png"), "text": "x"}, *rows]), samples=10, order="first"))
    assert "9 of 10 rows name an image file that is not there: index.jsonl:2 (" in said
    assert "; index.jsonl:6 (" in said
    assert "index.jsonl:7" not in said
    assert "); and 4 more. Mend them" in said


@pytest.mark.parametrize("order", ["first", "random"])
def test_others_are_drawn_in_place_of_those_passed_over(flawed, read, noted, order):
    data = ImageText(path=flawed, samples=4, skip=True, order=order)
    assert list(data.problems(context())) == []
    assert texts(read(data)) == ["good"] * 4
    assert len(noted(data)) == 3
    assert len(noted(data)) == 3  # of the last pass alone


def test_what_was_passed_over_is_counted_and_named(flawed, read, noted):
    data = ImageText(path=flawed, samples=4, skip=True, order="first")
    assert noted(data)[2] == (
        "4 of 12 rows have an empty caption: index.jsonl:8; index.jsonl:9; index.jsonl:10; index.jsonl:11. "
        "They were passed over."
    )
    data = ImageText(path=flawed, samples=1, skip=True, order="first")
    assert len(read(data)) == 1
    assert noted(data) == []


def test_all_that_are_good(flawed, read):
    assert len(read(ImageText(path=flawed, samples=None, skip=True))) == 4


def test_only_what_was_asked_is_passed_over(flawed, read):
    with pytest.raises(DataError) as caught:
        read(ImageText(path=flawed, samples=8, order="first", skip=("missing", "unreadable")))
    (said,) = caught.value.problems
    assert said.startswith("image_text: 4 of 12 rows have an empty caption")


def test_too_few_are_left(flawed, read):
    with pytest.raises(DataError) as caught:
        read(ImageText(path=flawed, samples=5, skip=True))
    first, *others = caught.value.problems
    assert first == (
        "image_text: 5 samples are asked for, and 4 of 12 rows can be used. Set samples: 4, or null for all there are; "
        "or give more."
    )
    assert len(others) == 3


def test_none_is_left(index, told):
    first, _ = told(ImageText(path=index([{"image": "gone.png", "text": "x"}]), samples=None, skip=True))
    assert first == "image_text: all samples are asked for, and 0 of 1 rows can be used. Give more."


def test_nothing_is_yielded_after_an_error(flawed):
    from torch import nn

    from ecoflap.adapters.llama import LlamaAdapter

    found, data = [], ImageText(path=flawed, samples=12)
    with pytest.raises(DataError):
        found.extend(sample.text for sample in data(LlamaAdapter(), nn.Identity(), ignore))
    assert len(found) < 4


@pytest.mark.parametrize("row", [{"text": 1.5}, {"text": {"title": "x"}}, {"text": ["x", True]}, {"image": 7}])
def test_what_is_of_another_kind_is_never_passed_over(row, picture, index, told):
    good = {"image": picture("a.png"), "text": "x"}
    (said,) = told(ImageText(path=index([good, {**good, **row}]), samples=2, skip=True))
    assert said.startswith("image_text: 1 of 2 rows hold what does not belong there: index.jsonl:2 (")
    assert said.endswith("Mend them.")


@pytest.mark.parametrize("name", ["x\0.png", "x" * 5000])
def test_names_that_no_file_can_have(name, index, told):
    (said,) = told(ImageText(path=index([{"image": name, "text": "x"}]), samples=1))
    assert "name an image file that is not there" in said


# --- parameters, and files that are no index


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({}, "either path or dataset is needed, and not both"),
        ({"path": Path("a"), "dataset": "b"}, "either path or dataset is needed, and not both"),
        ({"path": Path(__file__), "samples": 0}, "samples is 0; at least 1 is needed, or null"),
        ({"path": Path(__file__), "portion": (0.7, 0.3)}, r"portion is \[0\.7, 0\.3\]; two rising numbers"),
        ({"path": Path(__file__), "images": Path(__file__)}, "images: .* is a file; the folder of the image files"),
        ({"path": Path(__file__), "images": Path(__file__).with_name("test_imag_text.py")},
         r"images: .* does not exist\. Did you mean 'test_image_text\.py'"),
        ({"path": Path(__file__), "columns": {"txt": "caption"}},
         r"columns names 'txt', which is not read\. Did you mean 'text'\? Known: image, text, image_id, kind\."),
        ({"path": Path(__file__)}, r"is of a kind that is not read\. Known: an index \(\.jsonl, \.json, \.csv\)"),
        ({"path": Path(__file__).with_name("test_imag_text.py")}, "does not exist. Did you mean 'test_image_text.py'?"),
    ],
)  # fmt: skip
def test_parameters_that_cannot_be(parameters, problem, read):
    data = ImageText(**parameters)
    with pytest.raises(DataError, match=problem) as caught:
        read(data)
    assert list(data.problems(context())) == list(caught.value.problems)
    assert all(said.startswith("image_text: ") for said in caught.value.problems)


@pytest.mark.parametrize(("module", "extra"), [("PIL", "images"), ("datasets", "datasets")])
def test_libraries_that_are_not_installed(module, extra, monkeypatch):
    found = {module: None}
    for name in ("indexed_images", "stored_tables"):
        asking = sys.modules[f"ecoflap.plugins.datasets.shared.{name}"]
        monkeypatch.setattr(asking, "find_spec", lambda asked: found.get(asked, ModuleSpec(asked, None)))
    (said,) = ImageText(dataset="org/pictures").problems(context())
    assert said.endswith(f"pip install 'ecoflap[{extra}]'.")


def test_a_folder_without_an_index(tmp_path, picture, told):
    picture("a.png")
    (said,) = told(ImageText(path=tmp_path))
    known = "index.jsonl, index.json, index.csv, metadata.jsonl, metadata.csv"
    assert said == (
        f"image_text: the folder {tmp_path} holds no index. Known: {known}. Any other name is given as path itself."
    )


def test_a_folder_with_several(tmp_path, captioned, told):
    captioned(1)
    captioned(1, "metadata.jsonl")
    (said,) = told(ImageText(path=tmp_path))
    several = "index.jsonl, metadata.jsonl. Name one of them in path."
    assert said == f"image_text: the folder {tmp_path} holds several indexes: {several}"


def test_columns_that_are_not_there(index, told):
    file = index([{"img": "a.png", "captions": "x"}])
    images, captions = told(ImageText(path=file))
    assert images == (
        f"image_text: {file} has no column 'image' or 'file_name'. Did you mean 'img'? Known: img, captions. Name the "
        "right one in columns: {image: …}."
    )
    assert "has no column 'text' or 'caption'. Did you mean 'captions'? Known: img, captions." in captions


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b"", "a.jsonl holds no rows."),
        ("a.json", b"[]", "a.json holds no rows."),
        ("a.csv", b"image,text\n", "a.csv holds no rows."),
        ("a.csv", b"", "a.csv holds no rows."),
        ("a.jsonl", b"\xff\xfe", "a.jsonl:1 cannot be read as UTF-8 text: "),
        ("a.jsonl", b'{"image": "a.png", "text": "x"}\nnonsense\n', "a.jsonl:2 is not JSON: "),
        ("a.jsonl", b"[1]\n", "a.jsonl:1 is not a JSON object, but a list"),
        ("a.json", b'{"image": "a.png"}\n{}', "a.json has no column 'text' or 'caption'. Known: image. "),
        ("a.json", b'{"image": "a.png"}\nnonsense', "a.json:2 is not JSON: "),
        ("a.json", b'{"image":\n{}', "a.json is not JSON: "),
        ("a.json", b"{}", "a.json is of a layout that is not known: an empty object. Read here: a list of objects, "),
        ("a.json", b"[{}, 1]", "a.json[1] is not a JSON object."),
        ("a.csv", b"image,text\na.png,a, b\n", "a.csv:2 has more cells than the first line has columns."),
        ("a.csv", b"image,text,text\na.png,a,b\n", "a.csv has several columns of the name 'text'."),
        ("a.csv", b'image,text\na.png,"a', "a.csv:2 is not CSV: "),
        (
            "a.csv",
            b"image,text\na.png," + b"a" * 131073,
            "a.csv:2 is not CSV: field larger than field limit (131072). A .jsonl file has no such limit.",
        ),
    ],
)
def test_files_that_are_no_index(name, content, problem, tmp_path, told):
    (tmp_path / name).write_bytes(content)
    (said,) = told(ImageText(path=tmp_path / name))
    assert said.startswith(f"image_text: {tmp_path / problem}".rstrip())


def test_fewer_rows_than_samples(captioned, told):
    file = captioned(10)
    (said,) = told(ImageText(path=file))
    asked = f"image_text: 128 samples are asked for, and {file} has 10. Set samples: 10, or null for all there are;"
    assert said == f"{asked} or give more."
    (said,) = told(ImageText(path=file, samples=8, portion=(0.0, 0.75)))
    assert f"8 samples are asked for, and portion [0.0, 0.75] of {file} has 7. Set samples: 7" in said


# --- in a recipe


RECIPE = "version: 1\nmodel: m\nsparsity: 0.5\nprune: wanda\ncalibration: {{use: image_text, path: a, {more}}}\n"


@pytest.mark.parametrize(
    ("more", "given_value"),
    [
        ("skip: true", True),
        ("skip: [empty, missing]", ("empty", "missing")),
        ("columns: {text: title}", {"text": "title"}),
        ("samples: null", None),
    ],
)
def test_parameters_as_a_recipe_writes_them(more, given_value, tmp_path):
    recipe = parse_recipe(RECIPE.format(more=more), registry=load_registry(installed=False), file=tmp_path / "r.yaml")
    data = recipe.calibration.data.build()
    assert data.path == tmp_path / "a"
    assert getattr(data, more.partition(":")[0]) == given_value


def test_a_part_object_from_python(tmp_path):
    data = ImageText(path=tmp_path, skip=("empty",), columns={"text": "title"})
    written = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "wanda", "calibration": data}
    recipe = parse_recipe(written, registry=load_registry(installed=False))
    assert recipe.calibration.data.use == "image_text"
    assert recipe.calibration.data.build() == data


def test_a_kind_of_flaw_nobody_knows(tmp_path):
    registry, written = load_registry(installed=False), RECIPE.format(more="skip: [blurred]")
    with pytest.raises(RecipeError, match=r"skip.*should be .*'missing', 'unreadable' or 'empty'"):
        parse_recipe(written, registry=registry, file=tmp_path / "r.yaml")
