"""Leave an adapter the processor that it has, although it reads another beside a model that it loads."""

from collections.abc import Iterator
from contextlib import contextmanager

from ecoflap.core.contracts.protocols import Adapter


@contextmanager
def processor_kept(adapter: Adapter) -> Iterator[None]:
    """Let an adapter load what it likes inside; afterwards, also after an error, it has the processor that it had."""
    before = adapter.processor
    try:
        yield
    finally:
        adapter.processor = before
