"""A measure by samples that the model may have been pruned by is said to be one, and no other is."""

import json

import pytest

import ecoflap
from ecoflap.core.cli.plan_report import plan_tables
from ecoflap.core.preparing.seen_samples import seen_samples
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry


def recipe_of(folder, calibration, measured, **keys):
    """Give a recipe that prunes by some windows of a text and measures by others."""
    text = folder / "text.jsonl"
    text.write_text(
        "\n".join(f'{{"text": "{" ".join(f"w{(row + at) % 40}" for at in range(60))}"}}' for row in range(20))
    )
    windows = {"use": "text", "path": str(text), "samples": 2, "sequence_length": 8}
    return {
        "version": 1,
        "model": {"source": str(folder / "llama")},
        "calibration": windows | calibration,
        "sparsity": 0.5,
        "prune": "wanda",
        "evaluate": {"use": "perplexity", "data": windows | measured},
        **keys,
    }


@pytest.mark.parametrize(
    ("calibration", "measured", "seen"),
    [
        ({}, {}, True),
        ({}, {"order": "spread", "samples": 3, "seed": 7, "sequence_length": 12}, True),
        ({"portion": [0, 0.7]}, {"portion": [0.6, 1]}, True),
        ({"portion": [0, 0.7]}, {}, True),
        ({"portion": [0, 0.7]}, {"portion": [0.7, 1]}, False),
        ({"portion": [0.5, 1]}, {"portion": [0, 0.5]}, False),
        ({}, {"path": None}, False),  # the articles that ship
        ({}, {"column": "title"}, True),  # of the same rows
    ],
)
def test_the_same_rows(tmp_path, calibration, measured, seen):
    said = seen_samples(parse_recipe(recipe_of(tmp_path, calibration, measured), registry=load_registry()))
    assert len(said) == seen
    if seen:
        assert said[0].startswith("evaluate.0.data draws from the rows that calibration draws from")
        assert "portion: [0.7, 1]" in said[0]


@pytest.mark.parametrize(
    "names", [["text.jsonl"], ["link.jsonl"], ["copy.jsonl"], ["other.jsonl", "text.jsonl"]], ids=str
)
def test_the_same_file_by_another_way(tmp_path, names):
    recipe = recipe_of(tmp_path, {}, {})
    text, other = tmp_path / "text.jsonl", tmp_path / "other.jsonl"
    (tmp_path / "link.jsonl").symlink_to(text)
    (tmp_path / "copy.jsonl").write_bytes(text.read_bytes())
    other.write_bytes(text.read_bytes().replace(b"w1 ", b"x1 "))  # of the same size
    recipe["evaluate"]["data"]["path"] = [str(tmp_path / name) for name in names]
    assert len(seen_samples(parse_recipe(recipe, registry=load_registry()))) == 1
    recipe["evaluate"]["data"]["path"] = str(other)
    assert seen_samples(parse_recipe(recipe, registry=load_registry())) == []


def recipe_of_images(calibration, measured):
    return {
        "version": 1,
        "model": {"source": "org/model"},
        "calibration": {"samples": 2, **calibration},
        "sparsity": 0.5,
        "prune": "wanda",
        "evaluate": {"use": "vqa", "data": {"use": "image_question_answer", "samples": 2, **measured}},
    }


@pytest.fixture
def asked(tmp_path):
    """What writes an index of questions on images of one folder, by their numbers."""
    images = pytest.importorskip("PIL.Image")
    for number in range(4):
        images.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")

    def write(name, numbers):
        rows = [{"image": f"{one}.png", "question": "what is it", "answer": f"{one}", "text": "it"} for one in numbers]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


def test_another_dataset_that_reads_the_same_index_or_the_same_images(asked, tmp_path):
    index = asked("index.jsonl", range(4))
    first, second, mixed = asked("1.jsonl", [0, 1]), asked("2.jsonl", [2, 3]), asked("3.jsonl", [1, 2])

    def seen(calibration, measured):
        recipe = recipe_of_images(calibration, measured)
        return len(seen_samples(parse_recipe(recipe, registry=load_registry())))

    assert seen({"use": "image_text", "path": index}, {"path": index}) == 1
    assert seen({"use": "image_text", "path": str(tmp_path)}, {"path": index}) == 1
    assert seen({"use": "image_text", "path": index, "portion": [0, 0.5]}, {"path": index, "portion": [0.5, 1]}) == 0
    assert seen({"use": "image_text", "path": first}, {"path": second}) == 0
    assert seen({"use": "image_text", "path": first}, {"path": mixed}) == 1  # of one image
    assert seen({"use": "image_text", "path": index}, {"path": index, "images": str(tmp_path)}) == 1
    missing = str(tmp_path / "none.jsonl")
    assert seen({"use": "image_text", "path": missing}, {"path": second}) == 0


def test_a_data_set_of_the_hub_whoever_reads_it():
    pytest.importorskip("datasets")

    def seen(**measured):
        recipe = recipe_of_images({"use": "image_text", "dataset": "org/vqa"}, {"dataset": "org/vqa", **measured})
        return len(seen_samples(parse_recipe(recipe, registry=load_registry())))

    assert seen() == 1
    assert seen(split="validation") == 0
    assert seen(config="en") == 0


def test_what_scores_is_seen_too(tmp_path):
    halves = {"portion": [0, 0.5]}, {"portion": [0.5, 1]}
    score = {"use": "zeroth_order", "samples": 2}
    recipe = recipe_of(tmp_path, *halves, score=score, allocate="ecoflap")
    assert seen_samples(parse_recipe(recipe, registry=load_registry())) == []
    score["calibration"] = recipe["calibration"] | halves[1]
    (said,) = seen_samples(parse_recipe(recipe, registry=load_registry()))
    assert "that score.calibration draws from" in said


def test_nothing_is_seen_without_data(tmp_path):
    recipe = recipe_of(tmp_path, {}, {}, prune="magnitude")
    del recipe["calibration"]
    assert seen_samples(parse_recipe(recipe, registry=load_registry())) == []


def test_plan_and_run_say_it(tmp_path, pico_llama_folder):
    (tmp_path / "llama").symlink_to(pico_llama_folder)
    recipe, registry = recipe_of(tmp_path, {}, {}), load_registry()
    titles = [section.title for section in plan_tables(parse_recipe(recipe, registry=registry), registry)]
    assert "seen" in titles
    report = ecoflap.run(recipe, folder=tmp_path / "run").report
    assert any("draws from the rows" in note for note in report.warnings)
