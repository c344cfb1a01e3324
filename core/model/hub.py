"""Ask the Hugging Face hub for the files of a model, and wait for it no longer than a few seconds."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Thread
from time import monotonic

from ecoflap.core.errors import ModelError

LONGEST = 3.0
"""Seconds in which the hub has to answer at all. Its own client would try for three quarters of a minute."""

_HUB_ID = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_REMEMBERED = 60
"""Seconds after which it is asked anew whether the hub answers."""


def parts_of_hub_id(name: str) -> tuple[str, str | None] | None:
    """Give repository and revision of ``org/name`` or ``org/name@revision``; None for what is not written so."""
    match = _HUB_ID.fullmatch(name)
    return (match["repository"], match["revision"]) if match else None


def read_hub_id(name: str) -> tuple[str, str | None]:
    """Give repository and revision of a hub id.

    :raises ModelError: Where the name is none.
    """
    parts = parts_of_hub_id(name)
    if parts is None:
        raise ModelError(f"{name} is not a hub id: one is written org/name or org/name@revision.")
    return parts


def first_on_hub(name: str, files: Sequence[str]) -> Path:
    """Give the first of these files that a repository has, as it lies in the hub's cache.

    Where the hub does not answer, it is that of the cache alone. The folder's name is the commit.

    :param name: A hub id.
    :raises OSError: Where the repository or all of the files are missing, as the hub's client says.
    :raises ValueError: Where the client cannot read the name.
    """
    from huggingface_hub import hf_hub_download

    repository, revision = read_hub_id(name)
    problems: list[OSError | ValueError] = []
    for file in files:
        try:
            found = hf_hub_download(repository, file, revision=revision, local_files_only=not is_reachable())
        except (OSError, ValueError) as error:  # all that the hub's client raises
            problems.append(error)
        else:
            return Path(found)
    raise problems[0]


def cached(name: str, files: Sequence[str]) -> Path | None:
    """Give the folder of a hub id's commit in the cache, where one of the files was read before; else None."""
    from huggingface_hub import try_to_load_from_cache

    repository, revision = read_hub_id(name)
    found = (try_to_load_from_cache(repository, file, revision=revision) for file in files)
    return next((Path(file).parent for file in found if isinstance(file, str)), None)


def is_reachable() -> bool:
    """Say whether the hub answers, whatever it answers. That takes seconds at most, and is remembered for a minute."""
    answers, when = _answer()
    if monotonic() - when > _REMEMBERED:
        _answer.cache_clear()
        answers, _ = _answer()
    return answers


@contextmanager
def asked_once() -> Iterator[None]:
    """Switch the hub off inside where it does not answer, for a library that asks it by itself, again and again."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not is_reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def why_unreachable() -> str:
    """Say in a few words why nothing but the cache was looked at."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "the hub is switched off here (HF_HUB_OFFLINE)"
    return f"{constants.ENDPOINT} does not answer"


@lru_cache(maxsize=1)
def _answer() -> tuple[bool, float]:
    """Ask the hub for nothing; whether it answered, and when that was known."""
    from huggingface_hub import constants

    answers: list[bool] = []
    if not constants.HF_HUB_OFFLINE:
        # A name server may take longer than any timeout of a connection, so it is waited for from outside.
        asking = Thread(target=_ask, args=(constants.ENDPOINT, answers), daemon=True)
        asking.start()
        asking.join(LONGEST)
    return bool(answers), monotonic()


def _ask(endpoint: str, answers: list[bool]) -> None:
    from huggingface_hub import get_session

    try:
        status = get_session().head(endpoint, timeout=LONGEST).status_code
    except Exception:  # each version of the client has another family of errors; all mean that nothing came back
        return
    if status < 500:  # what is above comes from a gateway or a proxy, and the client would try again and again
        answers.append(True)
