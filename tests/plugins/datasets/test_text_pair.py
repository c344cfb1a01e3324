"""Pairs of texts: from files and saved tables, in which order, and what is said of rows that hold none."""

import json
from pathlib import Path
from typing import Any

import pytest
from plan_contexts import context
from torch import nn

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.protocols import Dataset, ignore
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError
from ecoflap.plugins.datasets.text_pair import TextPair

ROWS: list[Any] = [{"question": f"say {number}", "answers": [f"no {number}", "no"]} for number in range(6)]


@pytest.fixture
def pairs(index) -> Path:
    file: Path = index(ROWS, "pairs.jsonl")
    return file


def read(data: TextPair) -> list[Sample]:
    return list(data(LlamaAdapter(), nn.Identity(), ignore))


def told(data: TextPair) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        read(data)
    assert list(data.problems(context())) == list(caught.value.problems)
    return tuple(caught.value.problems)


def test_rows_in_their_order_with_all_their_answers(pairs):
    data = TextPair(path=pairs, samples=None, order="first")
    assert isinstance(data, Dataset)
    assert [(one.question, list(one.answers), one.text, one.image) for one in read(data)] == [
        (row["question"], row["answers"], None, None) for row in ROWS
    ]
    assert list(data.problems(context())) == []
    assert list(data.files()) == [pairs]
    assert not data.fetches


def test_a_random_order_draws_each_row_once_and_portions_share_none(pairs):
    drawn = [one.question for one in read(TextPair(path=pairs, samples=6))]
    assert sorted(drawn) == [row["question"] for row in ROWS]
    assert drawn != sorted(drawn)
    assert drawn == [one.question for one in read(TextPair(path=pairs, samples=6))]
    assert drawn != [one.question for one in read(TextPair(path=pairs, samples=6, seed=1))]
    first, second = (read(TextPair(path=pairs, samples=3, portion=share)) for share in ((0.0, 0.5), (0.5, 1.0)))
    assert {one.question for one in [*first, *second]} == set(drawn)


@pytest.mark.parametrize("name", ["a.json", "a.csv"])
def test_other_files_and_columns(name: str, index, tmp_path: Path):
    if name.endswith(".csv"):
        file = tmp_path / name
        file.write_text("en,de\nthe cat,die katze\n")
    else:
        file = index([{"en": "the cat", "de": "die katze"}], name)
    (found,) = read(TextPair(path=file, columns={"question": "en", "answers": "de"}, samples=1))
    assert (found.question, found.answers) == ("the cat", ("die katze",))


def test_a_saved_table(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list([{"source": "the cat", "target": "die katze"}])
    table.to_parquet(str(tmp_path / "t.parquet"))
    for data in (TextPair(path=tmp_path / "t.parquet", samples=1), TextPair(path=tmp_path, samples=1)):
        assert [(one.question, one.answers) for one in read(data)] == [("the cat", ("die katze",))]
    assert list(TextPair(path=tmp_path).files()) == [tmp_path / "t.parquet"]


def test_all_rows_that_hold_no_pair_are_named(index):
    file = index([{"question": "a", "answers": []}, {"question": " ", "answers": "b"}, *ROWS], "pairs.jsonl")
    (said,) = told(TextPair(path=file, samples=None, order="first"))
    assert said == (
        "text_pair: 2 of 8 rows hold no pair of texts: pairs.jsonl:1 (its answers are empty); pairs.jsonl:2 (it holds "
        "0 questions). Mend them."
    )


def test_what_is_wrong_with_parameters(pairs, tmp_path: Path):
    assert told(TextPair()) == ("text_pair: either path or dataset is needed, and not both.",)
    wrong = told(TextPair(path=pairs, samples=0, portion=(0.5, 0.5), columns={"answer": "x"}))
    assert wrong[0].startswith("text_pair: samples is 0; at least 1 is needed")
    assert wrong[1].startswith("text_pair: portion is [0.5, 0.5]")
    assert wrong[2] == (
        "text_pair: columns names 'answer', which is not read. Did you mean 'answers'? Known: question, answers."
    )
    (said,) = told(TextPair(path=pairs, columns={"question": "quest"}))
    assert "pairs.jsonl has no column 'quest'. Did you mean 'question'? Known: question, answers." in said
    (said,) = told(TextPair(path=tmp_path / "pair.jsonl"))
    assert said.startswith("text_pair: ")
    assert "pair.jsonl" in said
    assert "pairs.jsonl" in said
    (said,) = told(TextPair(path=pairs, samples=9))
    assert said == (
        f"text_pair: 9 samples are asked for, and {pairs} has 6. Set samples: 6, or null for all there are; or give "
        f"more."
    )
    (said,) = told(TextPair(path=pairs, samples=4, portion=(0.0, 0.5)))
    assert f"and portion [0.0, 0.5] of {pairs} has 3. Set samples: 3, or" in said


def test_a_folder_with_an_index_or_without_one(index, tmp_path: Path):
    index(ROWS, "index.jsonl")
    data = TextPair(path=tmp_path, samples=1, order="first")
    assert [one.question for one in read(data)] == ["say 0"]
    assert list(data.files()) == [tmp_path / "index.jsonl"]
    (tmp_path / "index.jsonl").unlink()
    (said,) = told(data)
    assert said.startswith(f"text_pair: the folder {tmp_path} holds no index. Known: index.jsonl, ")


def test_a_published_file_is_another_datasets(tmp_path: Path):
    (tmp_path / "q.json").write_text(json.dumps({"questions": []}))
    (said,) = told(TextPair(path=tmp_path / "q.json", samples=1))
    assert said.startswith("text_pair: ")
    assert "q.json" in said


def test_a_data_set_of_the_hub_is_not_fetched_by_a_plan(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("datasets")
    data = TextPair(dataset="org/pairs")
    assert data.fetches
    assert list(data.problems(context())) == []
