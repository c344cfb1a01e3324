"""The evaluator ``lm_eval`` runs tasks of EleutherAI's evaluation harness on the model in memory.

The harness is installed by ``pip install 'ecoflap[lm-eval]'``. Gao et al., A framework for few-shot language model
evaluation, https://zenodo.org/records/12608602.
"""

import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, Note
from ecoflap.core.contracts.records import Measure
from ecoflap.core.errors import DataError, EcoflapError, ModelError, nearest

PLAIN = "none"  # the harness calls the filter so that leaves answers as they are


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["LmEval"]]:
    return {"lm_eval": LmEval}


@dataclass(frozen=True)
class LmEval:
    """Measure what tasks of the harness do, such as ``arc_easy`` and ``mmlu``, of a model of language alone.

    Values, standard errors and which way to read them are the harness' own, accuracies from 0 to 1. Of a group of tasks
    the group's value is given where it has one, else those of its tasks. The harness reads most tasks' data from the
    Hugging Face hub; those once read are found again without a network.

    :param tasks: Names that the harness has for tasks, groups or tags.
    :param include_path: A folder with tasks of one's own, as YAML files.
    :param num_fewshot: How many examples stand before each question; None takes each task's own number.
    :param limit: How many documents of each task are used, or below 1 which share of them; None for all.
    :param batch_size: How many requests are made at a time.
    :param seed: Seed of all that the harness draws, such as few-shot examples.
    """

    tasks: tuple[str, ...]
    include_path: Path | None = None
    num_fewshot: int | None = None
    limit: int | float | None = None
    batch_size: int = 8
    seed: int = 1234

    def __post_init__(self) -> None:
        if not self.tasks:
            raise EcoflapError("tasks is empty; at least one is needed")
        for name, value, least in (("batch_size", self.batch_size, 1), ("num_fewshot", self.num_fewshot, 0)):
            if value is not None and value < least:
                raise EcoflapError(f"{name} is {value}; at least {least} is needed")
        if self.limit is not None and self.limit <= 0:
            raise EcoflapError(f"limit is {self.limit}; more than 0 is needed, or null for all documents")

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say where the harness is not there or does not know a task, and where the model looks at images."""
        if "vision" in [tower.name for tower in context.anatomy.towers]:
            yield "lm_eval is for language models, and this one looks at images."
        yield from self._wrong_tasks()

    def _wrong_tasks(self) -> Iterator[str]:
        """Say why the tasks cannot be run."""
        if find_spec("lm_eval") is None:
            yield "lm_eval needs EleutherAI's harness: pip install 'ecoflap[lm-eval]'."
        elif self.include_path is not None and not self.include_path.is_dir():
            yield f"lm_eval: include_path: {self.include_path} is no folder."
        else:
            known = _manager(self.tasks, self.include_path).all_tasks
            for task in self.tasks:
                if task not in known:
                    unknown = f"lm_eval: tasks: the harness knows no {task!r} among {len(known)} tasks."
                    yield f"{unknown}{nearest(task, known)} All of them: lm-eval ls tasks."

    def __call__(self, model: nn.Module, adapter: Adapter, note: Note) -> Mapping[str, Measure]:
        wrong = [*self._wrong_tasks()]
        if wrong:
            raise DataError(*wrong)
        if not hasattr(adapter.processor, "convert_tokens_to_ids"):
            raise ModelError("lm_eval needs the model's tokenizer: put it beside the model, or give ecoflap.run one.")
        results = self._results(model, adapter.processor)
        return {name: measure for task in _tasks_given(results) for name, measure in _measures(task, results)}

    def _results(self, model: nn.Module, tokenizer: Any) -> Mapping[str, Any]:
        """Run the harness, and give its own report."""
        import lm_eval
        from datasets.exceptions import DatasetsError
        from lm_eval.models.huggingface import HFLM

        language: Any = model
        with _as_it_was(model):
            # a copy, because the harness gives a tokenizer a padding token, which is not to be saved with the model
            wrapped = HFLM(pretrained=language, tokenizer=deepcopy(tokenizer), batch_size=self.batch_size)
            try:
                found = lm_eval.simple_evaluate(
                    model=wrapped,
                    tasks=[*self.tasks],
                    task_manager=_manager(self.tasks, self.include_path),
                    num_fewshot=self.num_fewshot,
                    limit=self.limit,
                    log_samples=False,
                    random_seed=self.seed,
                    numpy_random_seed=self.seed,
                    torch_random_seed=self.seed,
                    fewshot_random_seed=self.seed,
                )
            except (OSError, ValueError, DatasetsError) as error:
                reason = " ".join(str(error).split()).rstrip(".")
                raise DataError(
                    f"lm_eval: {reason}. Data of its tasks come from the Hugging Face hub, unless they were read "
                    "before; tasks on files of your own are found in include_path."
                ) from error
        return dict(found)


@cache
def _manager(tasks: tuple[str, ...], include_path: Path | None) -> Any:
    """Make the harness' list of tasks. Reading its own thousands takes seconds, so that is done once a process."""
    from lm_eval.tasks import TaskManager

    with _draws_forgotten():
        own = TaskManager(include_path=include_path, include_defaults=False)
        is_own = set(tasks) <= set(own.all_subtasks)
        return own if is_own else TaskManager(include_path=include_path)


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Undo what the harness does to a model: it ties weights anew, which pruning may have set apart, and logs much."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    vars(model)["tie_weights"] = lambda *_, **__: None
    logger.setLevel(logging.ERROR)
    try:
        with _draws_forgotten():
            yield
    finally:
        del vars(model)["tie_weights"]
        logger.setLevel(level)


@contextmanager
def _draws_forgotten() -> Iterator[None]:
    """Put every random generator back as it was: the harness seeds all of them."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


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
    """Yield a task's measures. What the harness calls ``acc,none`` is ``arc_easy acc`` here."""
    row, n = results["results"][task], _documents(task, results)
    for key, value in row.items():
        metric, comma, how = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = row.get(f"{metric}_stderr,{how}")
        known = float(error) if isinstance(error, int | float) else math.inf
        larger = results["higher_is_better"].get(task, {}).get(metric) is not False
        name = f"{task} {metric}" if how == PLAIN else f"{task} {metric}, {how}"
        yield name, Measure(float(value), n, known, "documents", larger)


def _documents(task: str, results: Mapping[str, Any]) -> int:
    """Count the documents that a task's or group's values are over."""
    counts, inside = results["n-samples"], results.get("group_subtasks", {})
    return sum(counts[one]["effective"] for one in {task, *_tasks_in(task, inside)} if one in counts)
