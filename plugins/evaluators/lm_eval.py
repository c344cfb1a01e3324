"""The evaluator ``lm_eval`` runs tasks of EleutherAI's evaluation harness on the model in memory.

The harness is installed by ``pip install 'ecoflap[lm-eval]'``. Gao et al., A framework for few-shot language model
evaluation, https://zenodo.org/records/12608602.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from torch import nn

from ecoflap.core.contracts.abilities import Generates
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, Note
from ecoflap.core.contracts.records import Measure
from ecoflap.core.errors import DataError, EcoflapError, ModelError
from ecoflap.core.model.anatomy import Tower
from ecoflap.core.model.hub import asked_once
from ecoflap.plugins.evaluators.harness.measures import draws_forgotten, measures_of
from ecoflap.plugins.evaluators.harness.tasks import Harness, check_tasks, code_of, seeds
from ecoflap.plugins.evaluators.shared.checks import why_unable


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["LmEval"]]:
    return {"lm_eval": LmEval}


@dataclass(frozen=True)
class LmEval:
    """Measure what tasks of the harness do, such as ``arc_easy`` and ``mmlu``, of language models, or of images.

    Values, standard errors and which way to read them are the harness' own, accuracies from 0 to 1. Of a group of tasks
    the group's value is given where it has one, else those of its tasks. The harness reads most tasks' data from the
    Hugging Face hub; those once read are found again without a network.

    :param tasks: Names that the harness has for tasks, groups or tags.
    :param include_path: A folder with tasks of one's own, as YAML files.
    :param num_fewshot: How many examples stand before each question; None takes each task's own number.
    :param limit: How many documents of each task are used, or below 1 which share of them; None for all.
    :param batch_size: How many requests are made at a time.
    :param seed: Seed of all that the harness draws, such as few-shot examples.
    :param through: What runs the model: the ``harness``' own ``hf``, or ``hf-multimodal`` where it looks at images; or
        the ``adapter``, as ``vqa`` and ``caption`` have it, for tasks in which it makes texts.
    :param chat_template: Whether the harness writes questions by the template of the tokenizer or processor.
    """

    tasks: tuple[str, ...]
    include_path: Path | None = None
    num_fewshot: int | None = None
    limit: int | float | None = None
    batch_size: int = 8
    seed: int = 1234
    through: Literal["harness", "adapter"] = "harness"
    chat_template: bool = False

    def __post_init__(self) -> None:
        check_tasks(self.tasks, self.limit, self.batch_size)
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise EcoflapError(f"num_fewshot is {self.num_fewshot}; at least 0 is needed")

    def runs_code_of(self) -> tuple[Path, ...]:
        return code_of(self.include_path)

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say where the harness is not there or does not know a task, and where the model does not fit it."""
        yield from self._misfits(context.model, context.adapter, context.anatomy.towers)
        if context.knows_processor:
            yield from self._unread(context.adapter, context.anatomy.towers)
        yield from HARNESS.wrong_tasks(self.tasks, self.include_path)

    def _misfits(self, model: nn.Module, adapter: Any, towers: Iterable[Tower]) -> Iterator[str]:
        """Say why a model cannot be run as it is asked."""
        if self.through == "adapter":
            why = why_unable(Generates, adapter, model)
            if why:
                yield f"lm_eval: through: adapter needs a model that can {Generates.does}: {why}"
        elif _sees(towers):
            why = _no_multimodal(model)
            if why:
                yield (
                    f"lm_eval: the harness' hf-multimodal cannot take this model that looks at images: {why}. Where "
                    f"its adapter can {Generates.does}, through: adapter takes it."
                )

    def _unread(self, adapter: Any, towers: Iterable[Tower]) -> Iterator[str]:
        """Say so where the harness has nothing to read texts or images with."""
        if self.through == "adapter":
            return
        way_out = "put it beside the model, or give ecoflap.run one."
        if _sees(towers):
            if getattr(adapter.processor, "tokenizer", None) is None:
                yield f"lm_eval needs the model's processor, with its tokenizer: {way_out}"
        elif not hasattr(adapter.processor, "convert_tokens_to_ids"):
            yield f"lm_eval needs the model's tokenizer: {way_out}"

    def __call__(self, model: nn.Module, adapter: Adapter, note: Note) -> Mapping[str, Measure]:
        wrong = [*HARNESS.wrong_tasks(self.tasks, self.include_path)]
        if wrong:
            raise DataError(*wrong)
        unfit = [*self._misfits(model, adapter, adapter.towers(model))]
        if unfit:
            raise ModelError(*unfit)
        with _as_it_was(model):
            return measures_of(self._results(self._wrapped(model, adapter)))

    def _wrapped(self, model: nn.Module, adapter: Any) -> Any:
        """Give the model as the harness wants one.

        :raises ModelError: Where it has no tokenizer, or no processor.
        """
        from ecoflap.plugins.evaluators.harness.lm_eval_models import Multimodal, Speaking, language

        towers = adapter.towers(model)
        unread = [*self._unread(adapter, towers)]
        if unread:
            raise ModelError(*unread)
        if self.through == "adapter":
            return Speaking(model, adapter, self.batch_size)
        wrap = Multimodal if _sees(towers) else language
        return wrap(model, adapter.processor, self.batch_size)

    def _results(self, wrapped: Any) -> Mapping[str, Any]:
        """Run the harness, and give its own report."""
        import lm_eval
        from datasets.exceptions import DatasetsError

        # asked once, or it asks a hub that does not answer again and again, for half a minute
        with HARNESS.explained(DatasetsError), asked_once():
            found = lm_eval.simple_evaluate(
                model=wrapped,
                tasks=[*self.tasks],
                task_manager=_manager(self.tasks, self.include_path),
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                log_samples=False,
                apply_chat_template=self.chat_template,
                **seeds(self.seed),
            )
        return dict(found)


def _sees(towers: Iterable[Tower]) -> bool:
    return "vision" in [tower.name for tower in towers]


def _no_multimodal(model: nn.Module) -> str | None:
    """Say why the harness' class for models that look at images cannot run one; None where it can.

    It takes what is generated to begin with what was read, and writes a token of its configuration for an image.
    """
    config = getattr(model, "config", None)
    if config is None:
        return "it is no model of transformers"
    parts = (config, getattr(config, "text_config", None))
    if any(getattr(part, "is_encoder_decoder", False) for part in parts):
        return "its text model has an encoder, and a decoder alone is wanted"
    named = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return None if any(token is not None for token in named) else "its configuration names no image_token_id"


@cache
def _manager(tasks: tuple[str, ...], include_path: Path | None) -> Any:
    """Make the harness' list of tasks. Reading its own thousands takes seconds, so that is done once a process."""
    from lm_eval.tasks import TaskManager

    with draws_forgotten():
        own = TaskManager(include_path=include_path, include_defaults=False)
        is_own = set(tasks) <= set(own.all_subtasks)
        return own if is_own else TaskManager(include_path=include_path)


HARNESS = Harness(
    "lm_eval", "lm_eval needs EleutherAI's harness: pip install 'ecoflap[lm-eval]'.", "lm-eval ls tasks", _manager
)


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Undo what the harness does to a model: it ties weights anew, which pruning may have set apart, and logs much."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    own = vars(model).get("tie_weights")
    vars(model)["tie_weights"] = lambda *_, **__: None
    logger.setLevel(logging.ERROR)
    try:
        with draws_forgotten():
            yield
    finally:
        del vars(model)["tie_weights"]
        if own is not None:
            vars(model)["tie_weights"] = own
        logger.setLevel(level)
