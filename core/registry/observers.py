"""Tell observers what happens; one that raises is named and switched off, and the run goes on."""

from collections.abc import Callable, Sequence

from ecoflap.core.contracts.events import Event


class Observers:
    """Passes each event of a run on to every observer.

    :param callables: Each observer with its plugin's name.
    """

    def __init__(self, callables: Sequence[tuple[str, Callable[[Event], None]]]) -> None:
        self._callables = list(callables)

    def __call__(self, event: Event) -> list[str]:
        """Pass an event on.

        :return: A sentence for each observer that raised and was switched off.
        """
        failed: list[str] = []
        for observer in tuple(self._callables):
            name, hear = observer
            try:
                hear(event)
            except (Exception, SystemExit) as error:  # whatever it does, an observer must not end a run
                self._callables.remove(observer)
                failed.append(f"the observer {name!r} raised {error!r} and is switched off for this run")
        return failed
