"""Choose the views of a model that an exporter writes: those that its recipe names, of those that the adapter has."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, PrunedModel
from ecoflap.core.contracts.records import Exported, View
from ecoflap.core.errors import ModelError, unknown

INSTEAD = "Use the exporter safetensors or hugging_face."


def plan_problems(wanted: Sequence[str] | None, context: PlanContext, exporter: str) -> Iterator[str]:
    """Say what keeps the views that a recipe asks for from being exported, before any weight is read.

    :param wanted: Their names; None asks for all.
    :param exporter: The exporter's name.
    """
    yield from view_problems(wanted, context.adapter, context.views, context.views_refused(exporter))


def plan_written(wanted: Sequence[str] | None, context: PlanContext, exporter: str) -> list[str]:
    """Name the views that will be written, in the adapter's order."""
    refused = context.views_refused(exporter)
    return [name for name in context.views if name not in refused and (wanted is None or name in wanted)]


def plan_notes(wanted: Sequence[str] | None, context: PlanContext, exporter: str) -> Iterator[str]:
    """Say which views will be left out of an export of all, and why, before any weight is read."""
    if wanted is None:
        yield from _notes(context.views_refused(exporter))


def view_problems(
    wanted: Sequence[str] | None, adapter: Adapter, views: Sequence[str], refused: Mapping[str, str]
) -> Iterator[str]:
    """Say what keeps the views that are asked for from being exported, a sentence for each thing.

    :param wanted: Their names; None asks for all.
    :param views: The names of the views that the adapter has of the model.
    :param refused: Names of views that the exporter cannot write of this model, each with the reason.
    """
    if wanted is not None and not wanted:
        yield "views is empty, so nothing would be exported. Name some, or leave it out for all."
    there = [name for name in views if name not in refused]
    if not there:
        yield _none_there(adapter, refused)
        return
    for name in wanted or ():
        if name in refused:
            others = ", ".join(there)
            yield f"views: {name} cannot be exported of this model: {refused[name]}. Name others ({others}). {INSTEAD}"
        elif name not in there:
            yield f"views: this model has {unknown('view', name, there)}"


def _none_there(adapter: Adapter, refused: Mapping[str, str]) -> str:
    if refused:
        why = "; ".join(f"{name}, because {reason}" for name, reason in refused.items())
        return f"no view of this model can be exported: not {why}. {INSTEAD}"
    return (
        f"{type(adapter).__name__} has no views of this model (export_views), so no part of it can be exported by "
        f"itself. {INSTEAD}"
    )


def _notes(refused: Mapping[str, str]) -> Iterator[str]:
    yield from (f"the view {name} is left out, because {reason}" for name, reason in refused.items())


def export_views(
    pruned: PrunedModel,
    wanted: Sequence[str] | None,
    exporter: str,
    write: Callable[[View], Exported],
    *,
    by_way_of: str | None = None,
) -> Exported:
    """Write each view that is wanted, in the adapter's order.

    Where one that is named fails, no file of the others is left. Where all are asked for, those are kept that can be
    written: what one of them fails for is known only once it is tried, behind all pruning.

    :param wanted: Their names; None asks for all that the exporter can write.
    :param exporter: The name of the exporter.
    :param write: Writes the files of one view.
    :param by_way_of: The name of another exporter whose files these are made of, so that it cannot write what that one
        cannot.
    :raises ModelError: Where the adapter has none, lacks one that is wanted, or none can be written.
    """
    written: list[Exported] = []
    failed: dict[str, tuple[str, ...]] = {}  # what is said, and no error: its traceback would hold the view's graph
    with blaming(f"the adapter {type(pruned.adapter).__name__}, asked which views cannot be exported,"):
        refused = options_of(AdapterOptions, pruned.adapter).views_refused(pruned.model, by_way_of or exporter)
    try:
        chosen = _chosen(pruned, wanted, refused, exporter)
        for view in chosen:
            try:
                written.append(write(view))
            except ModelError as error:
                if wanted is not None or len(chosen) == 1:
                    raise
                failed[view.name] = error.problems
        if not written:
            raise ModelError(*(problem for problems in failed.values() for problem in problems))
    except BaseException:
        for file in (file for one in written for file in one.files):
            file.unlink(missing_ok=True)
        raise
    left_out = {name: f"it could not be written: {' '.join(problems)}" for name, problems in failed.items()}
    left_out |= refused if wanted is None else {}
    together = _together(written)
    return replace(together, notes=(*together.notes, *_notes(left_out)))


def _chosen(pruned: PrunedModel, wanted: Sequence[str] | None, refused: Mapping[str, str], exporter: str) -> list[View]:
    options = options_of(AdapterOptions, pruned.adapter)
    with blaming(f"the adapter {type(pruned.adapter).__name__}, asked for its views,"):
        views = {view.name: view for view in options.export_views(pruned.model)}
    if problems := list(view_problems(wanted, pruned.adapter, list(views), refused)):
        raise ModelError(*(f"{exporter}: {problem}" for problem in problems))
    return [view for name, view in views.items() if name not in refused and (wanted is None or name in wanted)]


def _together(written: Sequence[Exported]) -> Exported:
    """Make one export of several, one for each view; name the file too of a weight that is in several files."""
    times = Counter(tensor.name for one in written for tensor in one.tensors)
    return Exported(
        files=tuple(file for one in written for file in one.files),
        tensors=tuple(
            replace(tensor, name=f"{tensor.name} in {one.files[0].name}") if times[tensor.name] > 1 else tensor
            for one in written
            for tensor in one.tensors
        ),
        checks=tuple(check for one in written for check in one.checks),
        dense_bytes=sum(one.dense_bytes or 0 for one in written),
        notes=tuple(dict.fromkeys(note for one in written for note in one.notes)),
    )
