"""Know the files of a comparison from others of their names: two hold a seal, and the data know the other two."""

import os
from pathlib import Path

from ecoflap.core.disk.whole_files import sha256_of
from ecoflap.core.errors import EcoflapError, FormatError
from ecoflap.core.sealing.sealed_text import read_sealed_json, read_sealed_text

DATA, PAGE = "report.json", "report.html"
"""Files that hold a seal."""
UNSEALED = ("report.csv", "report.md")
"""Files whose forms have no place for one: the data have their SHA-256 under ``files``."""
FILES = (DATA, *UNSEALED, PAGE)
_WAY_OUT = "Restore it, or have ecoflap compare --overwrite make it anew."


def there(folder: Path) -> list[str]:
    """Name those that a folder has, also as links to what is gone."""
    return [name for name in FILES if os.path.lexists(folder / name)]


def check_comparison_file(folder: Path, name: str) -> None:
    """Refuse a file that is not as a comparison wrote it.

    :raises EcoflapError: With what differs.
    """
    if name == PAGE:
        read_sealed_text(folder / PAGE, _WAY_OUT)
        return
    known = read_sealed_json(folder / DATA, _WAY_OUT).get("files")
    if not isinstance(known, dict):
        raise FormatError(f"{folder / DATA} is not the data of a comparison. {_WAY_OUT}")
    if name != DATA and known.get(name) != sha256_of(folder / name):
        raise FormatError(f"{folder / name} is not what {DATA} beside it knows. {_WAY_OUT}")


def is_as_written(folder: Path, name: str) -> bool:
    """Say whether a file is as a comparison wrote it; what cannot be read is not."""
    try:
        check_comparison_file(folder, name)
    except (EcoflapError, OSError):
        return False
    return True
