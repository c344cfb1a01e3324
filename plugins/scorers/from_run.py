"""The scorer ``from_run`` takes over the scores of another run, so that methods are compared on the same ones."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ecoflap.core.budget.weight_scores import WeightScores
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.records import Aggregate, Score, ScoreKind, Unit
from ecoflap.core.errors import EcoflapError, RunError, first_of
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Block, Layer
from ecoflap.core.planning.plan_file import read_scores_of
from ecoflap.core.planning.scores import Scores
from ecoflap.core.record.folder import RunFolder

_WAY_OUT = "Restore the file, or name another run"
_FEW = 3
"""So many names a sentence has at most."""


@dataclass(frozen=True)
class FromRun:
    """Score nothing, but yield what another run of the same model scored.

    :param run: That run's folder.
    """

    run: Path

    data: ClassVar[bool] = False

    @property
    def aggregate(self) -> Aggregate:
        """Say how that run's scorer sums scores into groups."""
        return self._scores().aggregate

    @property
    def unit(self) -> Unit:
        """Say what that run's scores are of."""
        return self._scores().unit

    @property
    def gives(self) -> ScoreKind:
        """Say whether that run's scores are numbers, curves, or numbers of single weights."""
        return self._scores().kind

    @property
    def like(self) -> str | None:
        """Say whose scores that run's are; None where it has no recipe that tells, or none that can be read."""
        run, seen = self.run, set[Path]()
        while run not in seen:  # two runs may name each other, where one was begun anew
            seen.add(run)
            score = _score_in(run)
            if score is None:
                return None
            if score["use"] != "from_run":
                return str(score["use"])
            run = Path(score["run"])
        return None

    def takes_over(self) -> Iterable[Path]:
        return [self.run]

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say where that run has no scores, or none of this model, and where the recipe prunes in rounds."""
        if context.recipe.round_count > 1:
            yield "another run's scores are of one model, and each round scores the model as it is then: remove rounds:"
        try:
            scores = self._scores()
        except EcoflapError as error:
            yield from error.problems
            return
        names = _names(context.scored.layers(), scores.unit)
        missing = [name for name in names if name not in scores.values]
        if missing:
            yield (
                f"{self.run}: it has no score of {len(missing)} of the {len(names)} {scores.unit}s that this recipe "
                f"allocates by ({first_of(missing, _FEW)}). Name a run of this model and of these towers that has "
                f"scored all of it, or score anew"
            )
        gone = [one.file for one in scores.weight_scores.values() if not one.file.is_file()]
        if gone:
            yield f"{gone[0]} is missing, with it {len(gone)} files of that run's scores. Restore them, or score anew"

    def __call__(self, replay: Replay, layers: Sequence[Layer]) -> Iterator[tuple[str, Score]]:
        scores, wanted = self._scores(), {layer.name for layer in layers}
        names = _names((pair for pair in replay.anatomy.layers() if pair[1].name in wanted), scores.unit)
        missing = [name for name in names if name not in scores.values]
        if missing:
            raise RunError(
                f"{self.run}: that run has no score for {first_of(missing, _FEW)}; is it finished, and of this model?"
            )
        for name in names:
            score = scores.values[name]
            yield name, score.numbers(_WAY_OUT) if isinstance(score, WeightScores) else score

    def _scores(self) -> Scores:
        return read_scores_of(self.run / "plan.json", self.run / "scores.jsonl", _WAY_OUT)


def _score_in(run: Path) -> Mapping[str, Any] | None:
    """Give what a run's recipe says of its scorer; None where it has none, or cannot be read."""
    with suppress(EcoflapError):
        folder = RunFolder(run)
        found: Mapping[str, Any] | None = folder.read_recipe().get("score") if folder.recipe.is_file() else None
        return found
    return None


def _names(layers: Iterable[tuple[Block, Layer]], unit: Unit) -> list[str]:
    """Give the names that scores of these layers have, in the order they run."""
    return list(dict.fromkeys(layer.name if unit == "layer" else block.name for block, layer in layers))


@hookimpl
def ecoflap_register_scorers() -> Mapping[str, type[FromRun]]:
    return {"from_run": FromRun}
