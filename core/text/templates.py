"""Fill in templates of jinja2; all that is filled in is escaped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def render(template: Path, values: Mapping[str, Any], *folders: Path) -> str:
    """Fill in a template; it may name others of its folder.

    :param values: By the name that the template knows each by. One that it misses is an error.
    :param folders: Further folders whose templates it may name.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, *folders]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(values)
