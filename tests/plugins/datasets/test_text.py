import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plan_contexts import context

import ecoflap
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.cli.plan_report import plan_tables
from ecoflap.core.contracts.protocols import Dataset, ignore
from ecoflap.core.errors import DataError, RecipeError
from ecoflap.core.recipe.load import load_recipe
from ecoflap.core.registry.registry import load_registry
from ecoflap.plugins.datasets.shared import text_files
from ecoflap.plugins.datasets.text import Text, _passed_over


@pytest.fixture
def windows(pico_llama: Callable[..., Any], pico_tokenizer: Any) -> Callable[[Text], list[list[int]]]:
    adapter, model = LlamaAdapter(), pico_llama(layers=1)
    adapter.processor = pico_tokenizer

    def read(text: Text) -> list[list[int]]:
        found = [sample.tokens for sample in text(adapter, model, ignore)]
        assert all(tokens is not None and tokens.dtype == torch.int64 for tokens in found)
        return [tokens.tolist() for tokens in found if tokens is not None]

    return read


def words(start: int, count: int) -> str:
    """Tokens 30 + start and on, round and round over thirty."""
    return " ".join(f"word{(start + i) % 30}" for i in range(count))


def numbers(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def lines(file: Path, documents: list[str], column: str = "text") -> Path:
    content = "".join(json.dumps({"title": "x", column: document}) + "\n" for document in documents)
    file.write_bytes(gzip.compress(content.encode()) if file.suffix == ".gz" else content.encode())
    return file


def test_is_a_dataset():
    assert isinstance(Text(), Dataset)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json.gz"])
def test_random_windows_are_pieces_of_long_documents(
    name: str, tmp_path: Path, windows: Callable[[Text], list[list[int]]], pico_tokenizer: Any
):
    documents = [words(0, 40), "the of", words(7, 50)]
    file = lines(tmp_path / name, documents)
    found = windows(Text(path=file, samples=30, sequence_length=16))
    long = [numbers(document, pico_tokenizer) for document in (documents[0], documents[2])]
    pieces = [tokens[i : i + 16] for tokens in long for i in range(len(tokens) - 15)]
    assert len(found) == 30
    assert all(window in pieces for window in found)
    assert len({tuple(window) for window in found}) > 10


def test_random_is_the_same_everywhere(tmp_path: Path, windows: Callable[[Text], list[list[int]]]):
    file = lines(tmp_path / "a.jsonl", [words(0, 40), words(7, 50)])
    found = windows(Text(path=file, samples=5, sequence_length=4))
    assert [window[0] for window in found] == [31, 44, 30, 35, 42]
    assert windows(Text(path=file, samples=5, sequence_length=4)) == found
    assert windows(Text(path=file, samples=5, sequence_length=4, seed=1)) != found


def test_the_last_possible_window_is_drawn(tmp_path: Path, windows: Callable[[Text], list[list[int]]]):
    file = lines(tmp_path / "a.jsonl", [words(0, 5)])
    found = windows(Text(path=file, samples=20, sequence_length=4))
    assert len({tuple(window) for window in found}) == 2


def test_short_documents_are_joined(tmp_path: Path, windows: Callable[[Text], list[list[int]]], pico_tokenizer: Any):
    documents = [words(i, 6) for i in range(8)]
    file = lines(tmp_path / "a.jsonl", documents)
    joined = numbers(" ".join(documents), pico_tokenizer)
    found = windows(Text(path=file, samples=9, sequence_length=16))
    assert len(found) == 9
    assert all(any(joined[i : i + 16] == window for i in range(len(joined))) for window in found)


def test_consecutive_windows_do_not_overlap(
    tmp_path: Path, windows: Callable[[Text], list[list[int]]], pico_tokenizer: Any
):
    documents = [words(0, 25), words(3, 30)]
    file = lines(tmp_path / "a.jsonl", documents)
    joined = numbers(" ".join(documents), pico_tokenizer)
    found = windows(Text(path=file, order="consecutive", samples=None, sequence_length=10))
    assert found == [joined[i : i + 10] for i in range(0, 50, 10)]
    assert windows(Text(path=file, order="consecutive", samples=2, sequence_length=10)) == found[:2]
    spread = windows(Text(path=file, order="spread", samples=2, sequence_length=10))
    assert spread == [found[0], found[len(found) // 2]]


def test_portions_share_no_document(tmp_path: Path, windows: Callable[[Text], list[list[int]]]):
    file = lines(tmp_path / "a.jsonl", [" ".join([f"word{i}"] * 4) for i in range(10)])

    def seen(start: float, end: float) -> set[int]:
        text = Text(path=file, order="consecutive", samples=None, sequence_length=4, portion=(start, end))
        return {token for window in windows(text) for token in window}

    assert (len(seen(0.0, 0.7)), len(seen(0.7, 1.0))) == (7, 3)
    assert not seen(0.0, 0.7) & seen(0.7, 1.0)


def test_files_of_a_folder_in_order(tmp_path: Path, windows: Callable[[Text], list[list[int]]]):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.md").write_text("of of")
    (tmp_path / "a.txt").write_text("the the")
    (tmp_path / "sub" / "c.txt.gz").write_bytes(gzip.compress(b"and and"))
    (tmp_path / "ignored.py").write_text("word1 word1")
    text = Text(path=tmp_path, order="consecutive", samples=None, sequence_length=2)
    assert windows(text) == [[3, 3], [4, 4], [5, 5]]
    two = Text(path=(tmp_path / "b.md", tmp_path / "a.txt"), order="consecutive", samples=None, sequence_length=2)
    assert windows(two) == [[4, 4], [3, 3]]


def test_a_folder_is_read_but_for_dot_names_whatever_the_case_of_its_suffixes(tmp_path: Path, windows):
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "a.txt").write_text("word1 word1")
    (tmp_path / ".b.txt").write_text("word1 word1")
    (tmp_path / "C.TXT").write_text("the the")
    (tmp_path / "d.JSONL").write_text('{"text": "of of"}')
    text = Text(path=tmp_path, order="consecutive", samples=None, sequence_length=2)
    assert list(text.problems(context())) == []
    assert [file.name for file in text.files()] == ["C.TXT", "d.JSONL"]
    assert windows(text) == [[3, 3], [4, 4]]


def test_tables_beside_texts_are_not_passed_over_without_a_word(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("the of and " * 9)
    (tmp_path / "data" / "train.parquet").write_bytes(b"PAR1")
    said = f"text: of the folder {tmp_path} only README.md is read, and not {Path('data') / 'train.parquet'}: "
    assert _passed_over(tmp_path) == said + f"tables are read by dataset: {tmp_path}"
    (tmp_path / "data" / "train.parquet").unlink()
    assert _passed_over(tmp_path) is None
    assert _passed_over(tmp_path / "README.md") is None


def test_line_separators_inside_a_document(tmp_path: Path, windows: Callable[[Text], list[list[int]]]):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "the\u2028of"}\n\n{"text": "and in"}\n', encoding="utf-8")
    text = Text(path=file, order="consecutive", samples=None, sequence_length=2)
    assert windows(text) == [[3, 4], [5, 6]]


def test_a_byte_order_mark_is_no_text(tmp_path: Path, windows: Callable[[Text], list[list[int]]]):
    (tmp_path / "a.txt").write_text("the of", encoding="utf-8-sig")
    (tmp_path / "b.jsonl").write_text('{"text": "and in"}', encoding="utf-8-sig")
    paths = (tmp_path / "a.txt", tmp_path / "b.jsonl")
    assert windows(Text(path=paths, order="consecutive", samples=None, sequence_length=2)) == [[3, 4], [5, 6]]


def test_length_is_the_models_own(tmp_path: Path, windows: Callable[[Text], list[list[int]]]):
    file = lines(tmp_path / "a.jsonl", [words(0, 300)])
    assert [len(window) for window in windows(Text(path=file, samples=2))] == [128, 128]
    with pytest.raises(DataError, match="sequence_length is 129; this model reads 128 tokens at most"):
        windows(Text(path=file, sequence_length=129))


def test_what_ships(windows: Callable[[Text], list[list[int]]]):
    found = windows(Text(order="consecutive", samples=None, sequence_length=128, portion=(0.7, 1.0)))
    assert len(found) > 100
    assert len(windows(Text(samples=16, sequence_length=128, portion=(0.0, 0.7)))) == 16


def test_what_ships_is_clean():
    documents = Text()._documents(ignore)
    assert len(documents) > 20
    assert not [mark for mark in ("[[", "{{", "}}", "<ref", "&nbsp", "==", "|") for text in documents if mark in text]


def test_hub_dataset(tmp_path: Path, windows: Callable[[Text], list[list[int]]], monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"text": ["the of and", "", "in to a"]})
    asked: list[Any] = []

    def load(name: str, config: str | None, split: str) -> Any:
        asked.append((name, config, split))
        return table

    monkeypatch.setattr(datasets, "load_dataset", load)
    text = Text(dataset="org/words", config="en", split="validation", order="consecutive", samples=2, sequence_length=3)
    assert windows(text) == [[3, 4, 5], [6, 7, 8]]
    assert asked == [("org/words", "en", "validation")]
    with pytest.raises(DataError, match=r"no text in column 'txt'\. Did you mean 'text'\? Known: text"):
        windows(Text(dataset="org/words", column="txt"))


def test_a_data_set_that_was_saved(tmp_path: Path, windows: Callable[[Text], list[list[int]]]):
    datasets = pytest.importorskip("datasets")
    splits = {"train": {"text": ["the of and"]}, "test": {"text": ["in to a"]}}
    saved = datasets.DatasetDict({name: datasets.Dataset.from_dict(rows) for name, rows in splits.items()})
    saved.save_to_disk(tmp_path / "saved")
    text = Text(dataset=str(tmp_path / "saved"), split="test", order="consecutive", samples=1, sequence_length=3)
    assert windows(text) == [[6, 7, 8]]
    with pytest.raises(DataError, match=r"^text: dataset .* has no split 'tests'\. Did you mean 'test'\?"):
        windows(Text(dataset=str(tmp_path / "saved"), split="tests"))


def test_rows_that_hold_nothing_are_counted(
    pico_llama: Callable[..., Any], pico_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"text": ["the of and", None, "", "in to a", None]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    adapter, notes = LlamaAdapter(), list[str]()
    adapter.processor = pico_tokenizer
    text = Text(dataset="org/words", order="consecutive", samples=2, sequence_length=3)
    assert len(list(text(adapter, pico_llama(layers=1), notes.append))) == 2
    assert notes == ["text: 2 of 5 rows of dataset 'org/words' hold nothing in 'text', and are left out"]


def test_tables_are_read_by_dataset(tmp_path: Path, windows: Callable[[Text], list[list[int]]]):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"text": ["the of and in to a"]})
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "rows.parquet")
    for path in (tmp_path / "saved", tmp_path / "rows.parquet"):
        (said,) = Text(path=path).problems(context())
        assert said == f"text: {path} is a table: it is read by dataset: {path} in place of path."
        assert windows(Text(dataset=path, order="consecutive", samples=1, sequence_length=3)) == [[3, 4, 5]]
        assert [file.is_file() for file in Text(dataset=path).files()]


@pytest.mark.parametrize("name", ["./saved", "../recipes/saved", "{folder}/saved"])
def test_a_local_data_set_is_relative_to_the_recipe_and_looked_at_by_a_plan(
    name: str, tmp_path: Path, pico_llama_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    datasets = pytest.importorskip("datasets")
    folder, elsewhere = tmp_path / "recipes", tmp_path / "elsewhere"
    elsewhere.mkdir()
    datasets.Dataset.from_dict({"text": [words(0, 40)] * 4}).save_to_disk(folder / "saved")
    (folder / "recipe.yaml").write_text(
        f"""version: 1
model: {pico_llama_folder}
calibration:
  use: text
  dataset: {name.format(folder=folder)}
  samples: 2
  sequence_length: 8
sparsity: 0.5
prune: wanda
"""
    )
    monkeypatch.chdir(elsewhere)
    recipe = load_recipe(folder / "recipe.yaml", registry=load_registry())
    spec = recipe.calibration.data
    assert spec.parameters["dataset"] == folder / "saved"
    assert not spec.options.fetches
    run = ecoflap.run(recipe, folder=tmp_path / "run")
    again = load_recipe(run.folder / "recipe.yaml", registry=load_registry())
    assert again.calibration.data.parameters["dataset"] == folder / "saved"
    shutil.rmtree(folder / "saved")
    with pytest.raises(RecipeError, match=r"calibration: text: .*saved does not exist\."):
        plan_tables(recipe, load_registry())


def test_hub_dataset_out_of_reach(windows: Callable[[Text], list[list[int]]], monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")

    def load(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="dataset 'org/words' cannot be loaded: no network"):
        windows(Text(dataset="org/words"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (Text(path=Path("a"), dataset="b"), "exclude each other"),
        (Text(samples=None), "samples is needed in random order"),
        (Text(samples=0), "samples is 0"),
        (Text(sequence_length=1), "sequence_length is 1"),
        (Text(portion=(0.7, 0.3)), r"portion is \[0\.7, 0\.3\]"),
    ],
)
def test_parameters_that_cannot_be(text: Text, problem: str, windows: Callable[[Text], list[list[int]]]):
    with pytest.raises(DataError, match=problem):
        windows(text)


def test_plan_hears_of_missing_files(tmp_path: Path):
    lines(tmp_path / "wikipedia.jsonl", ["the"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.pdf").touch()
    paths = (tmp_path / "wikpedia.jsonl", tmp_path / "empty", tmp_path / "a.pdf", tmp_path / "wikipedia.jsonl")
    problems = list(Text(path=paths).problems(context()))
    assert len(problems) == 3
    assert "does not exist. Did you mean 'wikipedia.jsonl'?" in problems[0]
    assert "holds no text" in problems[1]
    assert "of a kind that is not read" in problems[2]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no text in"),
        (b"\xff\xfe", "cannot be read as UTF-8"),
        (b'{"text": "the"}\nnonsense\n', r"a\.jsonl:2 is not JSON"),
        (b"[1]\n", r"a\.jsonl:1 is not a JSON object"),
        (b'{"texts": "the"}\n', r"a\.jsonl:1 has no text in column 'text'\. Did you mean 'texts'\? Known: texts"),
        (b'{"text": null, "name": "a"}\n', "has no text in column 'text': it holds nothing.* Known: text, name"),
        (b'{"text": 5}\n', r"a\.jsonl:1 has no text in column 'text': it holds 5\. Mend the line, or name the right"),
        (b'{"text": ["a"]}\n', "has no text in column 'text': it holds a list"),
    ],
)
def test_files_that_cannot_be_read(
    content: bytes, problem: str, tmp_path: Path, windows: Callable[[Text], list[list[int]]]
):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=problem):
        windows(Text(path=tmp_path / "a.jsonl"))


def test_truncated_gzip(tmp_path: Path, windows: Callable[[Text], list[list[int]]]):
    file = lines(tmp_path / "a.jsonl.gz", [words(0, 99)])
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        windows(Text(path=file))


@pytest.mark.parametrize("order", ["random", "consecutive"])
def test_too_little_text(order: Any, tmp_path: Path, windows: Callable[[Text], list[list[int]]]):
    file = lines(tmp_path / "a.jsonl", [words(0, 10)])
    with pytest.raises(
        DataError, match=r"all of it is 10 tokens, and one window needs 16.*sequence_length: 10 or less"
    ):
        windows(Text(path=file, order=order, sequence_length=16))


def test_fewer_windows_than_samples(tmp_path: Path, windows: Callable[[Text], list[list[int]]]):
    file = lines(tmp_path / "a.jsonl", [words(0, 50)])
    with pytest.raises(DataError, match=r"8 windows of 16 tokens are asked for and the text gives 3\. Set samples: 3"):
        windows(Text(path=file, order="consecutive", samples=8, sequence_length=16))


def test_portion_of_a_single_document(tmp_path: Path, windows: Callable[[Text], list[list[int]]]):
    (tmp_path / "a.txt").write_text(words(0, 50))
    with pytest.raises(DataError, match=r"portion \[0\.0, 0\.7\] of 1 document\(s\) holds none"):
        windows(Text(path=tmp_path / "a.txt", portion=(0.0, 0.7)))


def test_model_without_tokenizer(pico_llama: Callable[..., Any]):
    with pytest.raises(DataError, match="without a tokenizer"):
        next(Text(sequence_length=8)(LlamaAdapter(), pico_llama(layers=1), ignore))


def test_what_unpacks_to_any_size_is_not_held_in_memory(
    tmp_path: Path, windows: Callable[[Text], list[list[int]]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(text_files, "LARGEST", 10_000)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"the " * 10_000))
    with pytest.raises(DataError, match=r"a\.txt\.gz holds more than 10,000 bytes of text"):
        windows(Text(path=tmp_path / "a.txt.gz"))


def test_lines_that_are_nested_without_end_are_no_json(tmp_path: Path, windows: Callable[[Text], list[list[int]]]):
    (tmp_path / "a.jsonl").write_text('{"a":' * 100_000 + "\n")
    with pytest.raises(DataError, match=r"a\.jsonl:1 is nested too deeply"):
        windows(Text(path=tmp_path / "a.jsonl"))
