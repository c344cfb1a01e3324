"""Choose the views of a model that an exporter writes: those that its recipe names, of those that the adapter has."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.options import AdapterOptions
from ecoflap.core.contracts.protocols import Adapter, PrunedModel
from ecoflap.core.contracts.records import Exported, View
from ecoflap.core.errors import ModelError, unknown


def view_problems(wanted: Sequence[str] | None, adapter: Adapter, there: Sequence[str]) -> Iterator[str]:
    """Say what keeps the views that a recipe asks for from being exported, a sentence for each thing.

    :param wanted: Their names; None asks for all.
    :param there: The names of the views that the adapter has of the model.
    """
    if wanted is not None and not wanted:
        yield "views is empty, so nothing would be exported. Name some, or leave it out for all."
    if not there:
        yield (
            f"{type(adapter).__name__} has no views of this model (export_views), so no part of it can be exported by "
            f"itself. Use the exporter safetensors or hugging_face."
        )
        return
    yield from (f"views: this model has {unknown('view', name, there)}" for name in wanted or () if name not in there)


def export_views(
    pruned: PrunedModel, wanted: Sequence[str] | None, exporter: str, write: Callable[[View], Exported]
) -> Exported:
    """Write each view that is wanted, in the adapter's order; where one fails, no file of the others is left.

    :param wanted: Their names; None asks for all.
    :param exporter: The name of the exporter, for the message.
    :param write: Writes the files of one view.
    :raises ModelError: Where the adapter has none, or lacks one that is wanted.
    """
    written: list[Exported] = []
    try:
        for view in _chosen(pruned, wanted, exporter):
            written.append(write(view))
    except BaseException:
        for file in (file for one in written for file in one.files):
            file.unlink(missing_ok=True)
        raise
    return _together(written)


def _chosen(pruned: PrunedModel, wanted: Sequence[str] | None, exporter: str) -> list[View]:
    options = options_of(AdapterOptions, pruned.adapter)
    with blaming(f"the adapter {type(pruned.adapter).__name__}, asked for its views,"):
        views = {view.name: view for view in options.export_views(pruned.model)}
    if problems := list(view_problems(wanted, pruned.adapter, list(views))):
        raise ModelError(*(f"{exporter}: {problem}" for problem in problems))
    return [view for name, view in views.items() if wanted is None or name in wanted]


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
