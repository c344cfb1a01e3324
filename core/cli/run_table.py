"""Make the tables that ``ecoflap run`` and ``ecoflap report`` print of a finished run."""

from ecoflap.core.cli.tables import Section
from ecoflap.core.record.report import Report
from ecoflap.core.report.rows import MEASURE_COLUMNS, measure_rows
from ecoflap.core.text.columns import left, right
from ecoflap.core.text.numbers import bytes_text, ratio_text


def run_table(report: Report) -> list[Section]:
    """Return what a run came to: sparsity by tower, measures, and sizes."""
    towers = [(name, f"{100 * share:.2f} %") for name, share in report.towers.items()]
    sizes = [
        (name, bytes_text(size) + ratio_text(size, report.dense_bytes(name))) for name, size in report.bytes.items()
    ]
    title = f"{report.method}: {100 * report.sparsity:.2f} % of {report.prunable:,} weights pruned"
    sections = [
        Section(title, (*left("tower"), *right("sparsity")), towers),
        Section("", MEASURE_COLUMNS, list(measure_rows(report.measures))),
        Section("", (*left("weights in"), *right("size")), sizes),
    ]
    return [section for section in sections if section.rows]
