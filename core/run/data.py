"""What a run reads: its calibration data, drawn once each, and what tells model and data apart from others."""

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from torch import nn

from ecoflap.core.contracts.records import Batch
from ecoflap.core.model.source import fingerprint
from ecoflap.core.recipe.schema import Calibration as CalibrationKeys
from ecoflap.core.record.evaluations import digests
from ecoflap.core.run.calibration import Calibration
from ecoflap.core.run.prepare import Prepared

Tell = Callable[[str], None]


class Drawn:
    """Data of one run.

    :param dense: Gives the model as it came.
    :param current: Gives the model that there is; data need only its tokenizer.
    :param tell: Is told what the user should know.
    """

    def __init__(
        self, prepared: Prepared, dense: Callable[[], nn.Module], current: Callable[[], nn.Module], tell: Tell
    ) -> None:
        self._prepared, self._dense, self._current, self._tell = prepared, dense, current, tell
        self._drawn: dict[str, Calibration] = {}

    @cached_property
    def model_fingerprint(self) -> dict[str, Any]:
        """Of the model, and of the files that its adapter is given."""
        adapter = self._prepared.recipe.model.adapter
        files = {"adapter": digests(adapter)} if adapter and digests(adapter) else {}
        return {"model": fingerprint(self._prepared.source, self._dense), **files}

    @cached_property
    def fingerprints(self) -> dict[str, Any]:
        """Of the model and of the data; the latter need its tokenizer, which comes with the model."""
        recipe, found = self._prepared.recipe, dict(self.model_fingerprint)
        own = recipe.score.calibration if recipe.score else None
        for what, keys in (("calibration data", recipe.calibration), ("scoring data", own)):
            if keys is not None:
                found[what] = self._calibration(keys).fingerprint
        return found

    def batches(self, keys: CalibrationKeys | None, device: str, samples: int | None = None) -> list[Batch]:
        """:param samples: How many a scorer looks at; None for all."""
        if keys is None:
            return []
        calibration = self._calibration(keys)
        there = len(calibration.samples)
        if samples is not None and samples > there:
            self._tell(f"score: samples is {samples} and the calibration data has {there}; all of those were used")
        return calibration.batches(samples, device)

    def clear(self) -> None:
        """Forget the samples, which have served."""
        self._drawn.clear()

    def _calibration(self, keys: CalibrationKeys) -> Calibration:
        name = json.dumps(keys.plain())
        if name not in self._drawn:
            data = keys.data.build()
            self._drawn[name] = Calibration.draw(data, keys.batch_size, self._prepared.adapter, self._current())
            for note in notes_of(data):
                self._tell(f"{keys.data.use}: {note}")
        return self._drawn[name]


def notes_of(part: Any) -> Iterator[str]:
    """What a dataset notes of itself, or of one that an evaluator reads."""
    inside = vars(part).values() if hasattr(part, "__dict__") else ()
    for one in (part, *inside):
        yield from getattr(one, "notes", ())
