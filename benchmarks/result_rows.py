"""Rows of a benchmark in a file, a line of JSON each: what is there is not done again, so that it may be stopped."""

import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row")


def parser(description: str | None) -> ArgumentParser:
    """Make a parser of what every benchmark of rows is asked: where it works, its results, or their table alone."""
    made = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    made.add_argument("work", type=Path, nargs="?", help="a folder for the runs")
    made.add_argument("results", type=Path, help="the file with a line for each row")
    made.add_argument("--table", action="store_true", help="write the table of what is done, and run nothing")
    return made


def read(results: Path) -> list[dict[str, Any]]:
    """Give the rows that are done."""
    lines = results.read_text("utf-8").splitlines() if results.is_file() else []
    return [json.loads(line) for line in lines]


def do(rows: Iterable[Row], results: Path, key: str, name: Callable[[Row], str], figures: Callable[[Row], Any]) -> None:
    """Do the rows that are not done, one after another, and append each as it ends.

    :param key: Under which a line has what ``name`` gives of its row.
    """
    done = {line[key] for line in read(results)}
    for row in rows:
        if name(row) not in done:
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(figures(row)) + "\n")
            print(name(row), flush=True)
