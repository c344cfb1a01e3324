"""Try what a run begins with, before weights are read: the model's processor, and the first samples of each dataset.

A run would come upon the same only once it has read the model, and of what evaluators look at, later still.
"""

from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ecoflap.core.contracts.abilities import Generates, offers
from ecoflap.core.contracts.adapter_answers import tokens_of
from ecoflap.core.contracts.blame import PartError, blaming
from ecoflap.core.contracts.kept_processor import processor_kept
from ecoflap.core.contracts.protocols import ignore
from ecoflap.core.contracts.records import IMAGE, TEXT, Batch, Sample, TokenChoice
from ecoflap.core.errors import DataError, EcoflapError
from ecoflap.core.preparing.checks import evaluators_of
from ecoflap.core.preparing.prepared import Prepared
from ecoflap.core.pruning.calibration import SAMPLES_AT_A_GLANCE, Calibration, read_samples
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.recipe.schema import Recipe

A_WORD = "a"


_NO_SAMPLES = "the data has no samples."


@dataclass(frozen=True)
class DataUse:
    """Holds one use of a dataset.

    :param where: Its place in the recipe.
    :param count: How many samples are looked at together.
    :param evaluator: What looks at it; None for pruner and scorer.
    """

    where: str
    data: PartSpec
    count: int
    evaluator: PartSpec | None = None


def data_uses(recipe: Recipe) -> Iterator[DataUse]:
    """Yield each use of a dataset that a recipe makes."""
    own = recipe.score.calibration if recipe.score else None
    for where, keys in (("calibration", recipe.calibration), ("score.calibration", own)):
        if keys is not None:
            yield DataUse(where, keys.data, keys.batch_size)
    for place, evaluator in evaluators_of(recipe):
        count = evaluator.options.loss_batch_size or 1
        for name, data in evaluator.parameters.items():
            if isinstance(data, PartSpec) and data.kind == "dataset":
                yield DataUse(f"{place}.{name}", data, count, evaluator)


def untried(prepared: Prepared) -> Iterator[tuple[str, str]]:
    """Yield what a run would be the first to try: the place in the recipe, and why."""
    uses = list(data_uses(prepared.recipe))
    if uses and not prepared.knows_processor:
        own = f"the adapter {type(prepared.adapter).__name__} reads no processor without weights"
        hub = f"{prepared.source.name} is on the hub, and of it a configuration is all that is read before a run"
        yield "model and data", own if prepared.adapter_options.read_processor is None else hub
        return
    for use in uses:
        why = _why_untried(use)
        if why is not None:
            yield use.where, why


_ON_META = (
    "A plan, and a run before it reads weights, asks a dataset for its first samples with a model on the meta device: "
    "one that runs the model says slow_to_begin = True, and is not asked then."
)


@contextmanager
def processor_read(prepared: Prepared) -> Iterator[list[str]]:
    """Give the adapter, for a while, the processor that a run would read; yield why it cannot be read.

    One that it was given stays. Afterwards it has what it had: a tokenizer keeps the padding that it was last asked
    for, and would be saved with it.
    """
    adapter, read = prepared.adapter, prepared.adapter_options.read_processor
    problems: list[str] = []
    with processor_kept(adapter):
        is_given = adapter.processor is not None or prepared.source.model is not None
        if not is_given and prepared.knows_processor and read is not None:
            try:
                with blaming(f"the adapter {type(adapter).__name__}, reading a processor,"):
                    adapter.processor = read(prepared.source, prepared.model)
            except EcoflapError as error:
                problems = [f"model: {problem}" for problem in error.problems]
        yield problems


def trial_problems(prepared: Prepared, passed_over: Container[str]) -> Iterator[str]:
    """Say what a run would refuse of the first samples of its data; asked inside :func:`processor_read`.

    :param passed_over: Places in the recipe of datasets of which something is known to be wrong.
    """
    for use in data_uses(prepared.recipe) if prepared.knows_processor else ():
        if use.where in passed_over or _why_untried(use) is not None or not _is_served(use.evaluator, prepared):
            continue
        try:
            _try(use, prepared)
        except EcoflapError as error:
            yield from (f"{use.where}: {problem}" for problem in error.problems)
    if prepared.knows_processor:
        yield from _wordless(prepared)


def token_problems(prepared: Prepared) -> Iterator[str]:
    """Say which choices of tokens change nothing, as their towers have one kind; asked inside :func:`processor_read`.

    The first samples tell it, where they can be tried. What is wrong with these is told by :func:`trial_problems`. A
    tower that has read text alone may read images later in the data, where the model has another tower for them.
    """
    all_choices = ((key, choice, towers) for key, tried, towers in prepared.token_choices for choice in tried)
    choices = [one for one in all_choices if one[1] not in ("real", "all")]
    use = next((use for use in data_uses(prepared.recipe) if use.where == "calibration"), None)
    if not choices or use is None or not prepared.knows_processor or _why_untried(use) is not None:
        return
    try:
        batch = _first_batch(use, prepared)
    except EcoflapError:
        return
    for key, choice, towers in choices:
        kinds = [_kinds_read(tower, choice, batch, prepared) for tower in towers]
        if all(one == {IMAGE} or (one == {TEXT} and len(prepared.anatomy.towers) == 1) for one in kinds):
            yield (
                f"{key}: {choice} tells tokens of text from those of images, and those of {' and '.join(towers)} are "
                f"of one kind here, so that it changes nothing. Remove this, or say it of a tower that reads both"
            )


def _first_batch(use: DataUse, prepared: Prepared) -> Batch:
    adapter, model = prepared.adapter, prepared.model
    samples = read_samples(use.data, adapter, model, ignore, SAMPLES_AT_A_GLANCE)
    if not samples:
        raise DataError(_NO_SAMPLES)
    return Calibration(samples, len(samples), adapter).first_batch(model, "cpu")


def _kinds_read(tower: str, choice: TokenChoice, batch: Batch, prepared: Prepared) -> set[int]:
    """Give the kinds of tokens that layers of a tower read; what drifts is known of its own alone."""
    layers = [(block, layer) for block, layer in prepared.anatomy.layers() if block.tower == tower]
    read = {tower} if choice == "drifting" else {tower, *(layer.reads for _, layer in layers if layer.reads)}
    calls = max(block.calls or 1 for block, _ in layers)
    kinds = [tokens_of(prepared.adapter, prepared.model, batch, name, at) for name in read for at in range(calls)]
    return {kind for one in kinds for kind in one.unique().tolist()} & {TEXT, IMAGE}


def _wordless(prepared: Prepared) -> Iterator[str]:
    """Say where a model has no words for an evaluator that has texts made and brings its own data, as a harness."""
    reading = {id(use.evaluator) for use in data_uses(prepared.recipe)}
    for place, evaluator in evaluators_of(prepared.recipe):
        if evaluator.options.wants is Generates and id(evaluator) not in reading and _is_served(evaluator, prepared):
            try:
                _try_words(prepared)
            except EcoflapError as error:
                yield from (f"{place}: {problem}" for problem in error.problems)


def _why_untried(use: DataUse) -> str | None:
    if use.data.options.fetches:
        return f"{use.data.use} may come over a network"
    return f"the first sample of {use.data.use} takes long" if use.data.options.slow_to_begin else None


def _is_served(evaluator: PartSpec | None, prepared: Prepared) -> bool:
    """Say whether the model can be asked for what an evaluator wants; where not, that is said elsewhere."""
    wants = None if evaluator is None else evaluator.options.wants
    if wants is None:
        return True
    with blaming(f"the adapter {type(prepared.adapter).__name__}"):
        return offers(prepared.adapter, wants) and not prepared.adapter_options.refuses(prepared.model, wants)


def _try(use: DataUse, prepared: Prepared) -> None:
    """Read the first samples, look at what they lack, and have the adapter make a batch of them.

    :raises EcoflapError: Where that cannot be done.
    """
    adapter, model = prepared.adapter, prepared.model
    try:
        samples = read_samples(use.data, adapter, model, ignore, min(use.count, SAMPLES_AT_A_GLANCE))
    except PartError as error:
        if "meta" not in str(error):
            raise
        raise PartError(*(f"{problem} {_ON_META}" for problem in error.problems)) from error
    if not samples:
        raise DataError(_NO_SAMPLES)
    if use.evaluator is not None:
        lacking = dict.fromkeys(filter(None, map(use.evaluator.options.lacks, samples)))
        if lacking:
            raise DataError(*(f"{use.evaluator.use}: a sample of its data has no {what}." for what in lacking))
        if use.evaluator.options.loss_batch_size is None:
            if use.evaluator.options.wants is None:
                return
            samples = tuple(map(_filled, samples))
    Calibration(samples, len(samples), adapter).first_batch(model, "cpu")
    if use.evaluator is not None and use.evaluator.options.wants is Generates:
        _try_words(prepared)


def _try_words(prepared: Prepared) -> None:
    """Ask an adapter that has texts made for the tokens of one.

    :raises EcoflapError: Where it has no tokenizer that gives them.
    """
    adapter: Any = prepared.adapter
    with blaming(f"the adapter {type(adapter).__name__}, asked for the tokens of a text,"):
        adapter.tokens_of(prepared.model, A_WORD)


def _filled(sample: Sample) -> Sample:
    """Put a word where a sample has none: an evaluator makes texts itself, such as prompts and names of classes."""
    return replace(
        sample,
        text=sample.text or A_WORD,
        question=sample.question or A_WORD,
        tokens=torch.zeros(2, dtype=torch.int64) if sample.tokens is None else sample.tokens,
    )
