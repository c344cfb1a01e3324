"""The coarse step: score the layers, keeping each score as soon as it is known."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ecoflap.core.contracts.events import Event, Progress
from ecoflap.core.contracts.protocols import Scorer
from ecoflap.core.contracts.records import Aggregate, Estimate, Score
from ecoflap.core.disk.whole_files import append_line, read_lines
from ecoflap.core.errors import ModelError, nearest
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Block, Layer
from ecoflap.core.pruning.scores import Scores, Unit, checked, header_line, read_scores, score_line


def score_layers(
    scorer: Scorer,
    aggregate: Aggregate,
    replay: Replay,
    layers: Sequence[tuple[Block, Layer]],
    path: Path,
    emit: Callable[[Event], None],
) -> Scores:
    """Every layer's score, or every block's. What ``path`` holds already is not asked again.

    :param path: The file that grows by a line a score.
    """
    unit: Unit = getattr(scorer, "unit", "layer")
    if not (path.is_file() and read_lines(path)):
        append_line(path, header_line(unit, aggregate))
    done = dict(read_scores(path).values)
    names = [layer.name if unit == "layer" else block.name for block, layer in layers]
    total = len(dict.fromkeys(names))
    remaining = [layer for name, (_, layer) in zip(names, layers, strict=True) if name not in done]
    emit(Progress("score", len(done), total, f"{unit}s"))
    if remaining:
        for name, score in scorer(replay, remaining):
            _require_wanted(name, names, unit)
            if name in done:  # by an earlier process; a scorer need not look at which layers it was given
                continue
            done[name] = _checked(name, score)
            append_line(path, score_line(name, done[name]))
            emit(Progress("score", len(done), total, f"{unit}s"))
    return Scores(unit, aggregate, _complete(done, names, unit))


def _checked(name: str, score: Any) -> Score:
    """A scorer may come from anywhere; what it says must be a number."""
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise ModelError(f"{name}: the scorer gave {score!r} as its score; a score is a float")
    return checked(name, score if isinstance(score, Estimate) else float(score))


def _require_wanted(name: str, names: Sequence[str], unit: Unit) -> None:
    if name not in names:
        raise ModelError(
            f"the scorer gave a score for {name!r}, which is no {unit} to be pruned.{nearest(name, names)} "
            f"A scorer with unit = {unit!r} yields the names of {unit}s"
        )


def _complete(done: Mapping[str, Score], names: Sequence[str], unit: Unit) -> Mapping[str, Score]:
    missing = [name for name in dict.fromkeys(names) if name not in done]
    if missing:
        more = " …" if len(missing) > 5 else ""
        raise ModelError(f"the scorer gave no score for {len(missing)} {unit}(s): {', '.join(missing[:5])}{more}")
    return done
