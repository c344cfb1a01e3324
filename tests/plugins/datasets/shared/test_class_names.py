"""Numbers and names of classes: from folders, from words, from files of names as ImageNet's are published."""

import json

import pytest

from ecoflap.plugins.datasets.image import Image

WORDNET = ["n01440764", "n01443537", "n01484850", "n01491361"]
NAMES = ["tench, Tinca tinca", "goldfish, Carassius auratus", "great white shark", "tiger shark"]


@pytest.fixture
def names(tmp_path):
    def write(content, name="names.txt"):
        file = tmp_path / name
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8-sig")
        return file

    return write


@pytest.fixture
def folders(tmp_path, picture):
    """An image in each class's folder; its shade is ten times the place in the list."""

    def write(*classes):
        for place, name in enumerate(classes):
            picture(f"val/{name}/ILSVRC2012_val_{place}.JPEG", place * 10)
        return tmp_path / "val"

    return write


def labels(read, data):
    return [sample.label for sample in read(data)]


def test_folders_are_named(folders, read):
    data = Image(path=folders("dog", "cat", "Ant"), samples=None, order="first")
    assert data.classes() == ("Ant", "cat", "dog")
    assert labels(read, data) == [0, 1, 2]
    assert data.classes() == ("Ant", "cat", "dog")
    assert [sample.image_id for sample in read(data)] == [
        "Ant/ILSVRC2012_val_2.JPEG", "cat/ILSVRC2012_val_1.JPEG", "dog/ILSVRC2012_val_0.JPEG",
    ]  # fmt: skip
    assert Image(path=data.path, labels=False).classes() is None


LISTS = {
    "LOC_synset_mapping.txt": "".join(f"{key} {name}\n" for key, name in zip(WORDNET, NAMES, strict=True)),
    "words.txt": "".join(f"{key}\t{name}\n" for key, name in zip(WORDNET, NAMES, strict=True)),
    "imagenet_class_index.json": {
        str(n): [key, name] for n, (key, name) in [*enumerate(zip(WORDNET, NAMES, strict=True))][::-1]
    },
    "by_folder.json": dict(zip(WORDNET, NAMES, strict=True)),
}


@pytest.mark.parametrize("name", LISTS)
def test_two_of_the_classes_of_a_model_keep_their_numbers(name, folders, names, read):
    data = Image(path=folders(WORDNET[1], WORDNET[3]), names=names(LISTS[name], name), samples=None, order="first")
    assert data.classes() == tuple(NAMES)
    assert labels(read, data) == [1, 3]
    assert name in [file.name for file in data.files()]


@pytest.mark.parametrize("content", ["\n".join(NAMES), NAMES, {str(n): name for n, name in enumerate(NAMES)}])
def test_names_alone_are_in_the_order_of_all_folders(content, folders, names, read):
    file = names(content, "names.txt" if isinstance(content, str) else "names.json")
    data = Image(path=folders(*WORDNET), names=file, samples=None, order="first")
    assert data.classes() == tuple(NAMES)
    assert labels(read, data) == [0, 1, 2, 3]


def test_names_alone_that_are_those_of_folders(folders, names, read):
    data = Image(path=folders("dog", "cat"), names=names("dog\nbird\ncat\n"), samples=None, order="first")
    assert data.classes() == ("dog", "bird", "cat")
    assert labels(read, data) == [2, 0]


def test_folders_that_the_names_lack(folders, names, told):
    file = names("dog\nbird\ncat\n")
    (said,) = told(Image(path=folders("dog", "kat"), names=file))
    assert said.startswith(
        f"image: 1 of 2 classes of {file.parent / 'val'} are not among the 3 of {file}: kat. Did you"
    )


def test_labels_that_are_words(index, picture, read):
    picture("a.png")
    file = index([{"image": "a.png", "label": label} for label in ("dog", "cat ", "dog", "ant")])
    data = Image(path=file, samples=None, order="first")
    assert data.classes() == ("ant", "cat", "dog")
    assert labels(read, data) == [2, 1, 2, 0]
    only = Image(path=file, samples=1, order="first")
    assert labels(read, only) == [2]  # by all rows, whichever are drawn


def test_words_of_csv_with_names(tmp_path, picture, names, read):
    picture("a.png")
    (tmp_path / "index.csv").write_text("image,label\na.png,cat\na.png,2\na.png,n01443537\n")
    file = names({"0": ["n01440764", "cat"], "1": ["n01443537", "dog"], "2": ["n01484850", "dog"]}, "names.json")
    data = Image(path=tmp_path / "index.csv", names=file, samples=None, order="first")
    assert labels(read, data) == [0, 2, 1]
    assert data.classes() == ("cat", "dog", "dog")


def test_labels_the_names_do_not_have(index, picture, names, told):
    picture("a.png")
    file = index([{"image": "a.png", "label": label} for label in ("dog", "dgo", 2, 1, "")])
    (said,) = told(Image(path=file, names=names("cat\ndog\n"), samples=5, order="first", skip=True))
    assert (
        "3 of 5 rows hold what does not belong there: index.jsonl:2 (its label 'dgo' is none of the classes. Did"
        in said
    )
    assert "Did you mean 'dog'? 2 are known); index.jsonl:3 (its label is 2, and there are 2 classes, from 0); " in said
    assert "index.jsonl:5 (its label is '', not a class's number" in said


@pytest.mark.parametrize("written", [["0.0", "2.0", "11.0"], ["-1", "-2", "-3"], ["1e2", "cat", "dog"]])
def test_numbers_are_no_words_however_a_table_writes_them(tmp_path, picture, told, written):
    picture("a.png")
    rows = "".join(f"a.png,{label}\n" for label in written)
    (tmp_path / "index.csv").write_text(f"image,label\n{rows}")
    data = Image(path=tmp_path / "index.csv", samples=None, order="first")
    assert data.classes() is None
    (said,) = told(data)
    assert f"its label is {written[0]!r}, not a class's number" in said


def test_numbers_have_no_names(index, picture, read):
    data = Image(path=index([{"image": picture("a.png"), "label": 3}]), samples=1)
    assert data.classes() is None
    assert labels(read, data) == [3]


@pytest.mark.parametrize(
    ("content", "name", "problem"),
    [
        ("", "names.txt", "names no class."),
        ("a\tb\na\tc\n", "names.txt", "names 'a' twice."),
        ("{", "names.json", "{} is not JSON"),
        ({"0": "a", "2": "b"}, "names.json", "the numbers in {} are not those from 0 to 1."),
        ({"0": ["a"]}, "names.json", "is neither a list of names, nor an object of names by folder"),
        ({"a": 1}, "names.json", "is neither a list of names"),
        ([1], "names.json", "is neither a list of names"),
        ({}, "names.json", "is neither a list of names"),
    ],
)
def test_files_that_are_no_names(content, name, problem, folders, names, told):
    file = names(content, name)
    (said,) = told(Image(path=folders("a", "b"), names=file, samples=1))
    assert said.startswith("image: names: ")
    assert problem.format(file) in said


def test_names_without_labels(index, picture, names, told, folders):
    (said,) = told(Image(path=index([{"image": picture("a.png")}]), names=names("cat"), samples=1))
    assert "names is for labels, and " in said
    assert "has no column 'label'. Known: image." in said
    (said,) = told(Image(path=folders("a", "b"), names=names("cat"), labels=False))
    assert said == "image: names is for labels, and labels is false. Leave one of them out."
    (said,) = told(Image(path=folders("a", "b"), names=names("cat").with_name("name.txt")))
    assert said.endswith("name.txt does not exist. Did you mean 'names.txt'?")
