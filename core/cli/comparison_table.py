"""Make the tables that ``ecoflap compare`` prints."""

from collections.abc import Sequence

from ecoflap.core.cli.tables import Section
from ecoflap.core.compare.comparison import Comparison
from ecoflap.core.compare.table import Row, columns_of, rows, tower_rows


def comparison_table(comparison: Comparison) -> list[Section]:
    """Return the table of a comparison, and one of its towers where there are several."""
    towers = tower_rows(comparison)
    return [_section("", rows(comparison)), *([_section("pruned of each tower", towers)] if towers else [])]


def _section(title: str, rows: Sequence[Row]) -> Section:
    return Section(title, columns_of(rows), [list(row.values()) for row in rows])
