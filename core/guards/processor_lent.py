"""Lends a part a copy of the model's tokenizer or processor, so that what it sets there is not saved with the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from ecoflap.core.contracts.kept_processor import processor_kept
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.machine.part_code import is_ours


@contextmanager
def processor_lent(adapter: Adapter, part: object) -> Iterator[None]:
    """Put a copy in the place of an adapter's processor: a part may set its padding or add tokens, for itself.

    Parts of ours set nothing there, and are lent the own one: to copy the words of a large tokenizer takes a second.

    :param part: The part's class or function.
    """
    own = getattr(adapter, "processor", None)
    if own is None or is_ours(part):
        yield
        return
    with processor_kept(adapter):
        adapter.processor = _copied(own)
        yield


def _copied(processor: Any) -> Any:
    """Copy a processor; one whose own code cannot be copied stays itself."""
    try:
        return deepcopy(processor)
    except Exception:  # it may be written in any language, and hold anything
        return processor
