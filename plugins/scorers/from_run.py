"""The scores of another run, so that methods can be compared on the same ones and nothing is scored twice."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from ecoflap import hookimpl
from ecoflap.core.contracts.records import Aggregate
from ecoflap.core.errors import RunError
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Anatomy, Layer
from ecoflap.core.pruning.scores import Scores, Unit, read_scores


@dataclass(frozen=True)
class FromRun:
    """Takes over what another run of the same model scored.

    :param run: That run's folder.
    """

    run: Path

    data: ClassVar[bool] = False

    @cached_property
    def _scores(self) -> Scores:
        return read_scores(self.run / "scores.jsonl")

    @property
    def aggregate(self) -> Aggregate:
        return self._scores.aggregate

    @property
    def unit(self) -> Unit:
        return self._scores.unit

    def problems(self, anatomy: Anatomy, recipe: Any) -> Iterator[str]:
        missing = [name for name in self._names(anatomy) if name not in self._scores.values]
        if len(missing) == len(list(self._names(anatomy))):
            yield f"{self.run}: its scores are of another model; none is for a {self.unit} of this one"

    def _names(self, anatomy: Anatomy) -> Iterator[str]:
        for block, layer in anatomy.layers():
            yield layer.name if self.unit == "layer" else block.name

    def __call__(self, replay: Replay, layers: Sequence[Layer]) -> Iterator[tuple[str, float]]:
        wanted = {layer.name for layer in layers}
        names = [
            layer.name if self.unit == "layer" else block.name
            for block, layer in replay.anatomy.layers()
            if layer.name in wanted
        ]
        missing = [name for name in dict.fromkeys(names) if name not in self._scores.values]
        if missing:
            raise RunError(
                f"{self.run}: that run has no score for {', '.join(missing[:5])}; is it finished, and of this model?"
            )
        for name in dict.fromkeys(names):
            yield name, self._scores.values[name]


@hookimpl
def ecoflap_register_scorers() -> Mapping[str, type[FromRun]]:
    return {"from_run": FromRun}
