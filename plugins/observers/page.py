"""The observer ``page`` writes the page of a finished run, ``report.html``, into its folder.

The run has written ``report.json`` before, so that no failure here costs anything else.
"""

from ecoflap import hookimpl
from ecoflap.core.contracts.events import Event, RunFinished


@hookimpl
def ecoflap_on_event(event: Event) -> None:
    """Write the page when a run ends, and when a finished run was exported once more."""
    if isinstance(event, RunFinished):
        from ecoflap.core.report.run_page import write_page

        write_page(event.folder, event.report)
