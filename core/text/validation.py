"""Say what pydantic finds wrong with a file, naming the places in it."""

from collections.abc import Iterator

from pydantic import ValidationError

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
