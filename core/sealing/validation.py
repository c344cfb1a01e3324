"""Read files that are declared as pydantic's models, and say what is wrong with one, naming the places in it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from ecoflap.core.errors import EcoflapError
from ecoflap.core.sealing.sealed_text import read_sealed_text

Contents = TypeVar("Contents", bound=BaseModel)

MOST = 5
"""So many places are named at most; a file of another kind has something wrong everywhere."""


def wrong_places(error: ValidationError) -> Iterator[str]:
    """Yield a phrase for each wrong place: ``towers.vision: Input should be a valid number``."""
    details = error.errors(include_url=False)
    for detail in details[:MOST]:
        where = ".".join(map(str, detail["loc"]))
        unknown = detail["type"] in ("extra_forbidden", "unexpected_keyword_argument")
        what = "no such key is known here" if unknown else detail["msg"].removeprefix("Value error, ")
        yield f"{where}: {what}" if where else what
    if len(details) > MOST:
        yield f"and {len(details) - MOST} more places are wrong"


def read_validated(path: Path, contents: type[Contents], refusal: type[EcoflapError], way_out: str) -> Contents:
    """Read a sealed JSON file.

    :param contents: What it must hold.
    :param refusal: What is raised where it cannot be read or holds something else: a sentence for each wrong place.
    :param way_out: Ends each of these sentences.
    """
    raw = read_sealed_text(path, way_out, refusal)
    try:
        return contents.model_validate_json(raw)
    except ValidationError as error:
        raise refusal(*(f"{path}: {place}. {way_out}" for place in wrong_places(error))) from error
