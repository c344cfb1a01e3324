"""Take measures out of a harness' own report, and put random generators back as they were before it ran."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ecoflap.core.contracts.records import Measure
from ecoflap.core.seeding import GeneratorStates

PLAIN = "none"  # the harnesses call the filter so that leaves answers as they are
ERROR = "_stderr"


def measures_of(results: Mapping[str, Any]) -> dict[str, Measure]:
    """Give the measures of the tasks and groups that were asked for, with the harness' own standard errors."""
    return {name: measure for task in _tasks_given(results) for name, measure in _measures(task, results)}


@contextmanager
def draws_forgotten() -> Iterator[None]:
    """Put every random generator back as it was: a harness seeds all of them."""
    before = GeneratorStates.now()
    try:
        yield
    finally:
        before.restore()


def _tasks_given(results: Mapping[str, Any]) -> Iterator[str]:
    """Name the tasks and groups with a value, but no task of a group that has one."""
    inside: Mapping[str, Sequence[str]] = results.get("group_subtasks", {})
    valued = [name for name, row in results["results"].items() if any("," in key for key in row)]
    covered = {task for name in valued for task in _tasks_in(name, inside)}
    return (name for name in valued if name not in covered)


def _tasks_in(name: str, inside: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Name all tasks of a group, and of the groups in it."""
    for task in inside.get(name, ()):
        yield task
        yield from _tasks_in(task, inside)


def _measures(task: str, results: Mapping[str, Any]) -> Iterator[tuple[str, Measure]]:
    """Yield a task's measures. What a harness calls ``acc,none`` is ``arc_easy acc`` here."""
    row, n = results["results"][task], _documents(task, results)
    for key, value in row.items():
        metric, comma, how = key.partition(",")
        if not comma or ERROR in metric or not isinstance(value, int | float):
            continue
        error = row.get(f"{metric}{ERROR},{how}")
        known = float(error) if isinstance(error, int | float) else math.inf
        larger = results["higher_is_better"].get(task, {}).get(metric) is not False
        name = f"{task} {metric}" if how == PLAIN else f"{task} {metric}, {how}"
        yield name, Measure(float(value), n, known, "documents", larger)


def _documents(task: str, results: Mapping[str, Any]) -> int:
    """Count the documents that a task's or group's values are over."""
    counts, inside = results["n-samples"], results.get("group_subtasks", {})
    return sum(counts[one]["effective"] for one in {task, *_tasks_in(task, inside)} if one in counts)
