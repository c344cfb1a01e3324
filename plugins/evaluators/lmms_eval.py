"""The evaluator ``lmms_eval`` runs tasks of LMMs-Lab's harness, which asks about images, on the model in memory.

The harness is installed by ``pip install 'ecoflap[lmms]'``. Zhang et al., LMMs-Eval: reality check on the evaluation of
large multimodal models, 2024, https://arxiv.org/abs/2407.12772.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from torch import nn

from ecoflap.core.contracts.abilities import Generates
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, Note
from ecoflap.core.contracts.records import Measure
from ecoflap.core.errors import DataError
from ecoflap.core.model.hub import asked_once
from ecoflap.plugins.evaluators.harness.measures import draws_forgotten, measures_of
from ecoflap.plugins.evaluators.harness.tasks import Harness, check_tasks, code_of, seeds
from ecoflap.plugins.evaluators.shared.checks import check_ability


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["LmmsEval"]]:
    return {"lmms_eval": LmmsEval}


@dataclass(frozen=True)
class LmmsEval:
    """Measure what tasks of the harness do, such as ``vqav2_val_lite`` and ``mme``, in which a model makes texts.

    The model answers by its adapter, as ``vqa`` and ``caption`` ask it; the harness makes the questions, judges the
    answers, and says which way to read the values. Most tasks' data come from the Hugging Face hub.

    :param tasks: Names that the harness has for tasks, groups or tags.
    :param include_path: A folder with tasks of one's own, as YAML files; of these the harness' own are not looked up.
    :param limit: How many documents of each task are used, or below 1 which share of them; None for all.
    :param batch_size: How many texts are made at a time.
    :param seed: Seed of all that the harness draws.
    """

    tasks: tuple[str, ...]
    include_path: Path | None = None
    limit: int | float | None = None
    batch_size: int = 8
    seed: int = 1234

    wants: ClassVar[type[Any]] = Generates

    def __post_init__(self) -> None:
        check_tasks(self.tasks, self.limit, self.batch_size)

    def runs_code_of(self) -> tuple[Path, ...]:
        return code_of(self.include_path)

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say where the harness is not there, or does not know a task."""
        return HARNESS.wrong_tasks(self.tasks, self.include_path)

    def __call__(self, model: nn.Module, adapter: Adapter, note: Note) -> Mapping[str, Measure]:
        wrong = [*HARNESS.wrong_tasks(self.tasks, self.include_path)]
        if wrong:
            raise DataError(*wrong)
        check_ability("lmms_eval", Generates, adapter, model)
        with _as_it_was():
            return measures_of(self._results(model, adapter))

    def _results(self, model: nn.Module, adapter: Adapter) -> Mapping[str, Any]:
        """Run the harness, and give its own report."""
        from datasets.exceptions import DatasetsError
        from lmms_eval.evaluator import simple_evaluate
        from tenacity import RetryError

        from ecoflap.plugins.evaluators.harness.lmms_eval_models import Speaking

        with HARNESS.explained(DatasetsError, retried=(RetryError,)), asked_once():
            found = simple_evaluate(
                model=Speaking(model, adapter, self.batch_size),
                tasks=[*self.tasks],
                task_manager=_manager(self.tasks, self.include_path),
                limit=self.limit,
                log_samples=False,
                **seeds(self.seed),
            )
        return dict(found)


@cache
def _manager(tasks: tuple[str, ...], include_path: Path | None) -> Any:
    """Make the harness' list of tasks. Reading its own takes a quarter of a minute, so that is done once a process."""
    with _as_it_was():
        from lmms_eval.tasks import TaskManager

        place = None if include_path is None else str(include_path)
        own = TaskManager(include_path=place, include_defaults=False)
        return own if set(tasks) <= set(own.all_tasks) else TaskManager(include_path=place)


HARNESS = Harness(
    "lmms_eval",
    "lmms_eval needs LMMs-Lab's harness: pip install 'ecoflap[lmms]', best in an environment of its own.",
    "lmms-eval tasks",
    _manager,
)


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Keep the harness from changing the process: it has locks of files shared, draws, and logs much."""
    import ssl

    from lmms_eval import evaluator
    from loguru import logger

    # it would patch filelock for loads that lock each other out, by a module that newer versions do not have
    patch = getattr(evaluator, "_enable_reentrant_filelocks", SimpleNamespace())
    was_patched = getattr(patch, "_patched", False)
    patch._patched = True
    logger.disable("lmms_eval")
    try:
        with draws_forgotten():
            yield
    finally:
        patch._patched = was_patched
        logger.enable("lmms_eval")
        for name in ("_orig_reduce", "__reduce__"):  # and it has connections pickled as others
            if name in vars(ssl.SSLContext):
                delattr(ssl.SSLContext, name)
