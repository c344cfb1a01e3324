"""Make the tables that ``ecoflap export`` and ``ecoflap report`` print of exports."""

from collections.abc import Mapping

from ecoflap.core.cli.tables import Section
from ecoflap.core.record.manifest import Manifest
from ecoflap.core.report.rows import CHECK_COLUMNS, EXPORT_COLUMNS, check_rows, export_rows


def export_table(manifests: Mapping[str, Manifest]) -> list[Section]:
    """Return what exports hold, and how far they were off when they were read again.

    :param manifests: By the exports' names.
    """
    sections = [
        Section("exports", EXPORT_COLUMNS, list(export_rows(manifests))),
        Section("read again", CHECK_COLUMNS, list(check_rows(manifests))),
    ]
    return [section for section in sections if section.rows]
