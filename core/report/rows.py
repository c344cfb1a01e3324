"""Write the rows of tables that pages and the command line have in common."""

from collections.abc import Iterable, Iterator, Mapping

from ecoflap.core.record.manifest import Manifest
from ecoflap.core.record.report import Measures, RecordedMeasure, RecordedRefinement
from ecoflap.core.text.columns import left, right
from ecoflap.core.text.numbers import NO_VALUE, bytes_text, with_error

MEASURE_COLUMNS = (*left("measure"), *right("dense", "pruned", "over"))
EXPORT_COLUMNS = (*left("export"), *right("model", "deflated", "dense file", "stored"), *left("weights"))
REFINED_COLUMNS = (
    *left("refined", "by"),
    *right("trained on: before", "after", "held-out: before", "after"),
    *left("outcome"),
)
CHECK_COLUMNS = (*left("export", "view", "runtime"), *right("largest difference", "tolerance"))


def measure_rows(measures: Measures) -> Iterator[tuple[str, ...]]:
    """Yield a row for each measure of the pruned model, beside the dense one's where there is one."""
    for name, pruned in measures.pruned.items():
        yield name, measure_text(measures.dense.get(name)), measure_text(pruned), f"{pruned.n:,} {pruned.unit}"


def measure_text(measure: RecordedMeasure | None) -> str:
    """Return a measure as ``40.66 ± 2.6``; a dash for one that was not taken."""
    return NO_VALUE if measure is None else with_error(measure.value, measure.standard_error)


def export_rows(manifests: Mapping[str, Manifest]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each export: its sizes, and how it stores what was pruned or rounded."""
    for name, manifest in manifests.items():
        sizes = (NO_VALUE if size is None else bytes_text(size) for size in manifest.sizes)
        yield name, *sizes, manifest.forms


def refined_rows(refined: Iterable[RecordedRefinement]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each block that a refiner trained, or for the model, with its error before and after."""
    for one in refined:
        before = [_objective(one.before, on) for on in ("training", "held_out")]
        after = [_objective(one.after, on) if one.after else "not finite" for on in ("training", "held_out")]
        pairs = (text for both in zip(before, after, strict=True) for text in both)
        outcome = "kept" if one.is_kept else "undone" if any(one.before.values()) else "no error"
        yield one.name, one.refiner, *pairs, outcome


def _objective(found: Mapping[str, float], on: str) -> str:
    """Write an error; a pruner that mends holds no batches out, and has none on them."""
    return f"{found[on]:.4g}" if on in found else NO_VALUE


def check_rows(manifests: Mapping[str, Manifest]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each time that an exported file was read again and compared with the model."""
    for name, manifest in manifests.items():
        for check in manifest.checks:
            yield name, check.view, check.runtime, f"{check.difference:.2g}", f"{check.tolerance:.2g}"
