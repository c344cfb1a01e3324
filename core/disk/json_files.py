"""Read the JSON files of a run as mappings, and refuse those that are none by name."""

import json
from pathlib import Path
from typing import Any

from ecoflap.core.errors import RunError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds a mapping.

    :raises RunError: Where it cannot be read, is no JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: expected a mapping")
    return content
