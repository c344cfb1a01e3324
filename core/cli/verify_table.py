"""Make the table that ``ecoflap verify`` prints of a folder that is as it was written."""

from ecoflap.core.cli.tables import Section
from ecoflap.core.text.columns import Column
from ecoflap.core.text.numbers import bytes_text
from ecoflap.core.verifying.verify import Verified


def verify_table(found: Verified) -> list[Section]:
    """Return how much was checked, and which files nothing is known of."""
    checked = f"{len(found.files)} files, {bytes_text(found.bytes)}: every byte is what was written"
    rows = [("checked", checked)]
    rows += [
        ("not finished", f"{path}: it has no report.json; nobody knows what else there was")
        for path in found.unfinished
    ]
    rows += [("not ours", f"{path}: it has no seal and is on no list") for path in found.strangers]
    return [Section("", (Column(""), Column("", wraps=True)), rows)]
