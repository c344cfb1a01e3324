"""Try what is broken in a process without the types that tests check: they take most of the time, and refuse first.

    python tries.py FOLDER WHAT:SEED:SEED:STEP … told:NAME …

FOLDER is one of ``bases``. WHAT is a function below, and is given the seeds from one to another. What is printed is
JSON: of each WHAT, by the name of each attempt, its exit code, what it said, and the traceback that it came to.
"""

import json
import os
import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from command import Ended
from try_folders import drawn_folders, folders
from try_models import configs, files, some_configs
from try_parts import parts, told
from try_recipes import arguments, recipes, runs

TRIES: dict[str, Callable[..., Iterator[tuple[str, Ended]]]] = {
    one.__name__: one for one in (recipes, runs, arguments, some_configs, configs, files, folders, drawn_folders, parts)
}
MEMORY = 12 << 30
"""Bytes of addresses: what would fill the memory ends with an error of its own, and takes no machine with it."""


def main(folder: str, *asked: str) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")  # what libraries say of broken files is not for these tests
    found = {}
    names = [one.removeprefix("told:") for one in asked if one.startswith("told:")]
    for one in asked:
        what, *numbers = one.split(":")
        if what in TRIES:
            found[what] = _written(TRIES[what](Path.cwd(), range(*map(int, numbers))))
    print(json.dumps({**found, "told": _written(told(Path.cwd(), names))}))


def _written(attempts: Iterator[tuple[str, Ended]]) -> dict[str, tuple[int, str, str]]:
    return {name: (ended.code, ended.err, ended.trace) for name, ended in attempts}


if __name__ == "__main__":
    main(*sys.argv[1:])
