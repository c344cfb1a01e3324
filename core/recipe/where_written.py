"""Where each key of a recipe was written, for problems that show when the recipe is held against its model."""

from ecoflap.core.text.strict_yaml import Document, Place, dotted


class WhereWritten:
    """Knows where the values of a recipe stand. Recipes that say the same are equal, wherever they were written.

    :param document: What the recipe was read from; None for one that was not read.
    """

    def __init__(self, document: Document | None = None) -> None:
        self._places = {} if document is None else {dotted(path): at for path, at in document.values.items() if path}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WhereWritten)

    def __hash__(self) -> int:
        return hash(WhereWritten)

    def put_before(self, problem: str) -> str:
        """Put before a problem, which begins with its key, where this is written; nothing where it is not.

        A value that stands for a list of one, or for a part alone, is written at the key around it. What ``--set``
        changed inside of the key is named too, for the value in the file may be blameless.
        """
        key, colon, _ = problem.partition(": ")
        place = self._of(key) if colon else None
        if place is None:
            return problem
        inside = (at for path, at in self._places.items() if path.startswith(f"{key}.") and at.is_set)
        return f"{', with '.join(dict.fromkeys(map(str, (place, *inside))))}: {problem}"

    def _of(self, key: str) -> Place | None:
        while key and key not in self._places:
            if key.startswith("model."):  # of which a layer's name may be the rest
                return None
            key = key.rpartition(".")[0]
        return self._places.get(key)
