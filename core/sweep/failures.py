"""Say what a run of a sweep has failed of, by a file where another process than the sweep's does the run."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ecoflap.core.disk.reading import what_to_mend


def failure_of(error: Exception) -> str:
    """Say what a run has failed of."""
    return what_to_mend(error) or f"{type(error).__name__}: {error}"


@contextmanager
def failing_into(file: Path | None) -> Iterator[None]:
    """Write what a run fails of into a file, if there is one, and let the error go on."""
    try:
        yield
    except Exception as error:
        if file is not None:
            with suppress(OSError):  # the disk may be full, which can be what the run has failed of
                file.write_text(failure_of(error), encoding="utf-8", errors="surrogatepass")
        raise


def failure_in(file: Path) -> str:
    """Read what a run has failed of; empty where its process was ended before it could say so."""
    return file.read_text(encoding="utf-8", errors="surrogatepass") if file.is_file() else ""
