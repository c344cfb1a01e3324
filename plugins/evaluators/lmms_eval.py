"""The evaluator ``lmms_eval`` runs tasks of LMMs-Lab's harness, which asks about images, on the model in memory.

The harness is installed by ``pip install 'ecoflap[lmms]'``. Zhang et al., LMMs-Eval: reality check on the evaluation of
large multimodal models, 2024, https://arxiv.org/abs/2407.12772.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from ecoflap.core.contracts.abilities import Generates
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, Note
from ecoflap.core.contracts.records import Measure
from ecoflap.core.errors import DataError, EcoflapError, nearest, one_line, refuse_below_one
from ecoflap.core.model.hub import asked_once
from ecoflap.plugins.evaluators.harness.measures import draws_forgotten, measures_of
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
        if not self.tasks:
            raise EcoflapError("tasks is empty; at least one is needed")
        refuse_below_one("batch_size", self.batch_size)
        if self.limit is not None and self.limit <= 0:
            raise EcoflapError(f"limit is {self.limit}; more than 0 is needed, or null for all documents")

    def runs_code_of(self) -> tuple[Path, ...]:
        """Name the folder of tasks: the harness runs the Python that a task of one's own names."""
        return () if self.include_path is None else (self.include_path,)

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say where the harness is not there, or does not know a task."""
        return self._wrong_tasks()

    def _wrong_tasks(self) -> Iterator[str]:
        """Say why the tasks cannot be run."""
        if find_spec("lmms_eval") is None:
            yield "lmms_eval needs LMMs-Lab's harness: pip install 'ecoflap[lmms]', best in an environment of its own."
        elif self.include_path is not None and not self.include_path.is_dir():
            yield f"lmms_eval: include_path: {self.include_path} is no folder."
        else:
            known = _manager(self.tasks, self.include_path).all_tasks
            for task in self.tasks:
                if task not in known:
                    unknown = f"lmms_eval: tasks: the harness knows no {task!r} among {len(known)} tasks."
                    yield f"{unknown}{nearest(task, known)} All of them: lmms-eval tasks."

    def __call__(self, model: nn.Module, adapter: Adapter, note: Note) -> Mapping[str, Measure]:
        wrong = [*self._wrong_tasks()]
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

        try:
            with asked_once():
                found = simple_evaluate(
                    model=Speaking(model, adapter, self.batch_size),
                    tasks=[*self.tasks],
                    task_manager=_manager(self.tasks, self.include_path),
                    limit=self.limit,
                    log_samples=False,
                    random_seed=self.seed,
                    numpy_random_seed=self.seed,
                    torch_random_seed=self.seed,
                    fewshot_random_seed=self.seed,
                )
        except (OSError, ValueError, NotImplementedError, DatasetsError, RetryError) as error:
            reason = one_line(error.__cause__ or error).rstrip(".")  # what it tried five times, and why
            raise DataError(
                f"lmms_eval: {reason}. Data of its tasks come from the Hugging Face hub, unless they were read before; "
                "tasks on files of your own are found in include_path."
            ) from error
        return dict(found)


@cache
def _manager(tasks: tuple[str, ...], include_path: Path | None) -> Any:
    """Make the harness' list of tasks. Reading its own takes a quarter of a minute, so that is done once a process."""
    with _as_it_was():
        from lmms_eval.tasks import TaskManager

        place = None if include_path is None else str(include_path)
        own = TaskManager(include_path=place, include_defaults=False)
        return own if set(tasks) <= set(own.all_tasks) else TaskManager(include_path=place)


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Keep the harness from changing the process: it has locks of files shared, draws, and logs much."""
    import ssl

    from lmms_eval import evaluator
    from loguru import logger

    # it would patch filelock for loads that lock each other out, by a module that newer versions do not have
    patch = getattr(evaluator, "_enable_reentrant_filelocks", None)
    if patch is not None:
        patch._patched = True
    logger.disable("lmms_eval")
    try:
        with draws_forgotten():
            yield
    finally:
        logger.enable("lmms_eval")
        for name in ("_orig_reduce", "__reduce__"):  # and it has connections pickled as others
            if name in vars(ssl.SSLContext):
                delattr(ssl.SSLContext, name)
