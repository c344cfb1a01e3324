"""Keep a run folder: its files by name, and what is noted in them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import join
from typing import Any

from ecoflap.core.disk.whole_files import delete_whole, sha256_of
from ecoflap.core.errors import FormatError, RunError
from ecoflap.core.record.remembered import DENSE
from ecoflap.core.sealing.sealed_lines import append_line, last_seal, read_lines
from ecoflap.core.sealing.sealed_text import read_sealed_json, read_sealed_text, write_sealed_json
from ecoflap.core.sealing.sums import SUMS, check_sums
from ecoflap.core.text.strict_yaml import LARGEST, read_yaml

_ANEW = "Restore it, or begin the run anew with --fresh."
_PRUNED_ANEW = "Restore it; or delete model/ and run the recipe again, which prunes anew by the same plan."
PRUNED_MODEL = "pruned model"
"""The key of the fingerprints with the SHA-256 of what tells this run's pruned model from any other."""
_UNDO = (
    "Undo the change: a folder keeps the recipe that it was begun with. To run another, copy it to a place of its own "
    "and name another folder with --folder, or begin this one anew with --fresh."
)


@dataclass(frozen=True)
class RunFolder:
    """Names the files of a run, tells by them how far it came, and keeps what is noted beside its results.

    Noted are the times of stages, warnings, what refiners did and what was taken over, each read back too. What the
    folder was begun with is read here; :mod:`ecoflap.core.record.identity` records it and refuses what is another.
    """

    path: Path

    @property
    def command(self) -> str:
        """Give the command that goes on with the run, as a shell takes it."""
        return join(["ecoflap", "run", str(self.recipe), "--folder", str(self.path)])

    @property
    def recipe(self) -> Path:
        """Name the file of the recipe with every default; it says that the folder is a run's."""
        return self.path / "recipe.yaml"

    @property
    def scores(self) -> Path:
        """Name the file of the scores, a line each."""
        return self.path / "scores.jsonl"

    @property
    def plan(self) -> Path:
        """Name the file that says how many weights each layer keeps."""
        return self.path / "plan.json"

    @property
    def trials(self) -> Path:
        """Name the file of what was found of plans that were tried, a line each."""
        return self.path / "trials.jsonl"

    @property
    def blocks(self) -> Path:
        """Name the folder of finished blocks, which is there until the model is complete."""
        return self.path / "blocks"

    @property
    def rounds(self) -> Path:
        """Name the folder of all rounds but the last, whose files are the run's own."""
        return self.path / "rounds"

    def round(self, number: int) -> "RunFolder":
        """Give the folder of a round before the last: its scores, plan and masks by the same names.

        :param number: From 1.
        """
        return RunFolder(self.rounds / str(number))

    @property
    def masks(self) -> Path:
        """Name the file that says which weights are kept."""
        return self.path / "masks.safetensors"

    @property
    def model(self) -> Path:
        """Name the folder of the pruned model."""
        return self.path / "model"

    @property
    def exports(self) -> Path:
        """Name the folder of all exports, a folder and a record each."""
        return self.path / "exports"

    @property
    def report(self) -> Path:
        """Name the file of the report, which says what the run came to; a run that has one is finished."""
        return self.path / "report.json"

    @property
    def evaluations(self) -> Path:
        """Name the file of what evaluators found, a line for each and for each stage."""
        return self.path / "evaluations.jsonl"

    @property
    def dense(self) -> Path:
        """Name the folder of what evaluators remember of the dense model, a file for each that compares with it."""
        return self.path / DENSE

    @property
    def refinements(self) -> Path:
        """Name the file of what refiners did, a line for each block and for the model."""
        return self.path / "refined.jsonl"

    @property
    def stage_times(self) -> Path:
        """Name the file of what each stage took, a line for each piece of it."""
        return self.path / "stages.jsonl"

    @property
    def warning_lines(self) -> Path:
        """Name the file of the warnings, a line each."""
        return self.path / "warnings.jsonl"

    @property
    def taken_over_lines(self) -> Path:
        """Name the file of what another run had found already, a line each."""
        return self.path / "taken_over.jsonl"

    @property
    def profile(self) -> Path:
        """Name the file that says where the time went, where that was asked; no list knows it, and nothing reads it."""
        return self.path / "profile.txt"

    @property
    def profiles(self) -> Path:
        """Name the folder of the same for each stage, as pstats reads it."""
        return self.path / "profile"

    @property
    def is_pruned(self) -> bool:
        """Say whether the pruned model is complete: its masks are written first, and ``model/`` appears whole."""
        return self.model.is_dir() and self.masks.is_file()

    def drop_blocks(self) -> None:
        """Delete the finished blocks, those of all rounds, which have served once the model is complete."""
        for blocks in (self.blocks, *self.rounds.glob("*/blocks")):
            delete_whole(blocks)

    @property
    def is_ours(self) -> bool:
        """Say whether a run was begun here; a ``recipe.yaml`` alone may be anybody's."""
        return self.recipe.is_file() and (self.lock.exists() or self.fingerprints.is_file())

    @property
    def holds_results(self) -> bool:
        """Say whether anything was found or made here that would have to be found again."""
        return any(path.exists() for path in (self.evaluations, self.dense, self.scores, *self._made_of_scores))

    @property
    def holds_dense_alone(self) -> bool:
        """Say whether evaluations of the dense model are all that was found here: of scores there is no line yet."""
        without_header = read_lines(self.scores)[1:]
        return not without_header and not any(path.exists() for path in self._made_of_scores)

    @property
    def _made_of_scores(self) -> tuple[Path, ...]:
        """Name all files and folders that come behind scoring."""
        found = (self.trials, self.refinements, self.plan, self.report, self.masks)
        return *found, self.blocks, self.rounds, self.model, self.exports

    @property
    def lock(self) -> Path:
        """Name the file that the process running in the folder holds locked."""
        return self.path / ".lock"

    @property
    def fingerprints(self) -> Path:
        """Name the file by which the folder's model, data, code and versions are known to be the same."""
        return self.path / "fingerprints.json"

    def read_recipe(self) -> dict[str, Any]:
        """Read the recipe that the folder was begun with, as plain values; an edited one is refused."""
        text = read_sealed_text(self.recipe, _UNDO, most=LARGEST).decode(errors="replace")
        recipe: dict[str, Any] = read_yaml(text, self.recipe, RunError).value
        return recipe

    def read_fingerprints(self) -> dict[str, Any]:
        """Read by what the folder's model and data are known; nothing is known of a folder without the file."""
        return read_sealed_json(self.fingerprints, _ANEW) if self.fingerprints.is_file() else {}

    def record_model(self, written: Path) -> None:
        """Keep which masks and which list of the model's files are this run's, before the model takes its place.

        :param written: The folder where the model lies until then, with the list of its files.
        """
        saved = {name: sha256_of(path) for name, path in self._saved(written).items()}
        write_sealed_json(self.fingerprints, {**self.read_fingerprints(), PRUNED_MODEL: saved})

    def check_model(self) -> None:
        """Refuse a pruned model of which a file is not what was written, or that is another run's, as masks may be.

        Of a run of an earlier version it is not known which list of files is its own.
        """
        check_sums(self.model, _PRUNED_ANEW, required=True)
        known, there = self.read_fingerprints().get(PRUNED_MODEL, {}), self._saved(self.model)
        kept = {name: path for name, path in there.items() if name in known and path.is_file()}
        others = [path for name, path in kept.items() if sha256_of(path) != known[name]]
        if others:
            raise FormatError(
                *(
                    f"{one} is not what this run wrote: it is damaged, or another run's. {_PRUNED_ANEW}"
                    for one in others
                )
            )

    def _saved(self, model: Path) -> dict[str, Path]:
        """Give the files by which a saved model is known, by what they are called in the folder."""
        return {f"model/{SUMS}": model / SUMS, self.masks.name: self.masks}

    def last_seals(self) -> dict[str, str]:
        """Give the seals by which it shows later whether lines are gone, by the file's name."""
        found = (self.trials, self.evaluations, self.refinements)
        paths = (*found, self.stage_times, self.warning_lines, self.taken_over_lines)
        return {path.name: last_seal(path) for path in paths if path.is_file()}

    def record_stage(self, stage: str, seconds: float, peak_memory: int) -> None:
        """Add to what a stage took so far, which is recorded piece by piece."""
        line = {"stage": stage, "seconds": round(seconds, 3), "peak_memory": peak_memory}
        append_line(self.stage_times, line)

    def stages(self) -> list[dict[str, Any]]:
        """Sum what each stage took over all the processes that worked on it, in order."""
        stages: dict[str, dict[str, Any]] = {}
        for line in read_lines(self.stage_times, {"stage": str, "seconds": float, "peak_memory": int}):
            stage = stages.setdefault(line["stage"], {"stage": line["stage"], "seconds": 0.0, "peak_memory": 0})
            stage["seconds"] = round(stage["seconds"] + line["seconds"], 3)
            stage["peak_memory"] = max(stage["peak_memory"], line["peak_memory"])
        return list(stages.values())

    def record_warning(self, message: str) -> None:
        """Keep a warning for the report, unless it was given before."""
        if message not in self.warnings():
            append_line(self.warning_lines, {"warning": message})

    def record_refined(self, what: Mapping[str, Any]) -> None:
        """Keep what a refiner did to a block or to the model, unless it is known: a killed process may have done it."""
        if _without_time(what) not in map(_without_time, self.refined()):
            append_line(self.refinements, what)

    def refined(self) -> list[dict[str, Any]]:
        """Read what refiners did, in order, that of earlier processes too."""
        return read_lines(self.refinements, {"name": str, "refiner": str, "before": dict, "after": dict})

    def record_taken_over(self, what: str) -> None:
        """Note that another run had found something already, so that no stage of this one holds the time it took.

        :param what: ``scores`` or ``dense evaluation``.
        """
        if what not in self.taken_over():
            append_line(self.taken_over_lines, {"what": what})

    def taken_over(self) -> list[str]:
        """Return what another run had found already; each once, in the order in which it was needed."""
        return [line["what"] for line in read_lines(self.taken_over_lines, {"what": str})]

    def warnings(self) -> list[str]:
        """Read the warnings, those of earlier processes too, each once."""
        return [line["warning"] for line in read_lines(self.warning_lines, {"warning": str})]


def _without_time(refined: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in refined.items() if key != "seconds"}
