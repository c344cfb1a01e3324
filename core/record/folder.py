"""Keep a run folder: its files by name, what is noted in it, and whose model and data it is of."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecoflap.core.disk.sealed_lines import append_line, last_seal, read_lines
from ecoflap.core.disk.sealed_text import read_sealed_json, read_sealed_text, write_sealed_json
from ecoflap.core.disk.sums import check_sums
from ecoflap.core.disk.whole_files import delete_whole
from ecoflap.core.errors import RunError
from ecoflap.core.machine.environment import changed_versions
from ecoflap.core.machine.part_code import Source, digests_of
from ecoflap.core.record.remembered import DENSE
from ecoflap.core.text.strict_yaml import LARGEST, read_yaml

FROM_PYTHON = (
    "(folder=, accept_change=True and fresh=True from Python); in a sweep, whose --fresh empties all of its runs, "
    "delete this folder alone"
)
"""Ends what says to run elsewhere, to go on all the same, or to begin anew."""
_ANEW = "Restore it, or begin the run anew with --fresh."
_UNDO = (
    "Undo the change: a folder keeps the recipe that it was begun with. To run another, copy it to a place of its own "
    "and name another folder with --folder, or begin this one anew with --fresh."
)


@dataclass(frozen=True)
class RunFolder:
    """Names the files of a run, and reads back the few that tell how far it came."""

    path: Path

    @property
    def recipe(self) -> Path:
        """Give the recipe with every default; it says that the folder is a run's."""
        return self.path / "recipe.yaml"

    @property
    def scores(self) -> Path:
        """Give the scores, a line each."""
        return self.path / "scores.jsonl"

    @property
    def plan(self) -> Path:
        """Say how many weights each layer keeps."""
        return self.path / "plan.json"

    @property
    def trials(self) -> Path:
        """Give what was found of plans that were tried, a line each."""
        return self.path / "trials.jsonl"

    @property
    def blocks(self) -> Path:
        """Give the folder of finished blocks, which is there until the model is complete."""
        return self.path / "blocks"

    @property
    def rounds(self) -> Path:
        """Give the folder of all rounds but the last, whose files are the run's own."""
        return self.path / "rounds"

    def round(self, number: int) -> "RunFolder":
        """Give the folder of a round before the last: its scores, plan and masks by the same names.

        :param number: From 1.
        """
        return RunFolder(self.rounds / str(number))

    @property
    def masks(self) -> Path:
        """Say which weights are kept."""
        return self.path / "masks.safetensors"

    @property
    def model(self) -> Path:
        """Give the folder of the pruned model."""
        return self.path / "model"

    @property
    def exports(self) -> Path:
        """Give the folder of all exports, a folder and a record each."""
        return self.path / "exports"

    @property
    def report(self) -> Path:
        """Give what the run came to; a run that has one is finished."""
        return self.path / "report.json"

    @property
    def evaluations(self) -> Path:
        """Give what evaluators found, a line for each and for each stage."""
        return self.path / "evaluations.jsonl"

    @property
    def dense(self) -> Path:
        """Give the folder of what evaluators remember of the dense model, a file for each that compares with it."""
        return self.path / DENSE

    @property
    def refinements(self) -> Path:
        """Give what refiners did, a line for each block and for the model."""
        return self.path / "refined.jsonl"

    @property
    def profile(self) -> Path:
        """Say where the time went, where that was asked; no list knows it, and nothing reads it."""
        return self.path / "profile.txt"

    @property
    def profiles(self) -> Path:
        """Give the folder of the same for each stage, as pstats reads it."""
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
        """Give all that comes behind scoring."""
        found = (self.trials, self.refinements, self.plan, self.report, self.masks)
        return *found, self.blocks, self.rounds, self.model, self.exports

    @property
    def lock(self) -> Path:
        """Give the file that the process running in the folder holds locked."""
        return self.path / ".lock"

    @property
    def fingerprints(self) -> Path:
        """By what the folder's model and data are known to be the same."""
        return self.path / "fingerprints.json"

    def read_recipe(self) -> dict[str, Any]:
        """Read the recipe that the folder was begun with, as plain values; an edited one is refused."""
        text = read_sealed_text(self.recipe, _UNDO, most=LARGEST).decode(errors="replace")
        recipe: dict[str, Any] = read_yaml(text, self.recipe, RunError).value
        return recipe

    def read_fingerprints(self) -> dict[str, Any]:
        """Read by what the folder's model and data are known; nothing is known of a folder without the file."""
        return read_sealed_json(self.fingerprints, _ANEW) if self.fingerprints.is_file() else {}

    def check_model(self) -> None:
        """Refuse a pruned model of which a file is not what was written."""
        way_out = "Restore it; or delete model/ and run the recipe again, which prunes anew by the same plan."
        check_sums(self.model, way_out, required=True)

    def identify(self, found: Mapping[str, Any], *, accept: bool = False) -> list[str]:
        """Refuse to go on where the model or the data are not those the folder was begun with.

        :param found: A fingerprint of each, or a mapping of them by file.
        :param accept: Go on with other data than before; nothing goes on with another model.
        :return: What was accepted, a sentence each.
        """
        before = self.read_fingerprints()
        changed = {what: now for what, now in found.items() if before.get(what, now) != now}
        if changed and not (accept and changed.keys() <= MAY_CHANGE):
            named = " and another ".join(_which(what, before[what], now) for what, now in changed.items())
            go_on = "go on with what is there now with --accept-change, " if changed.keys() <= MAY_CHANGE else ""
            raise RunError(
                f"{self.path} was begun with another {named} than is there now. "
                f"Run into another folder with --folder, {go_on}or begin this one anew with --fresh {FROM_PYTHON}"
            )
        if changed or not found.keys() <= before.keys():
            write_sealed_json(self.fingerprints, {**before, **found})
        return [_accepted(what, before[what], now) for what, now in changed.items()]

    def identify_versions(self, now: Mapping[str, str], *, working: bool, accept: bool = False) -> list[str]:
        """Refuse to go on with other versions of Python and libraries than the folder was begun with.

        :param now: Those of this process.
        :param working: Whether anything is left to do. Otherwise nothing is refused, nor recorded.
        :param accept: Go on all the same.
        :return: What was accepted, a sentence each.
        """
        before = self.read_fingerprints()
        known: Mapping[str, str] = before.get(VERSIONS, now)
        changed = changed_versions(known, now)
        if changed and working and not accept:
            raise RunError(
                f"{self.path} was begun with {changed}: what is left would be computed by other code than what is "
                f"there. Install the versions of before, go on all the same with --accept-change, run into another "
                f"folder with --folder, or begin this one anew with --fresh {FROM_PYTHON}"
            )
        if VERSIONS not in before or (known != now and working):
            write_sealed_json(self.fingerprints, {**before, VERSIONS: dict(now)})
        return [f"it was begun with {changed}, which was accepted"] if changed and working else []

    def identify_code(
        self, now: Mapping[str, Source], *, evaluated_by: Collection[str] = (), accept: bool = False
    ) -> list[str]:
        """Refuse other code of the run's own parts than the folder was begun with, also where nothing is left to do.

        Where the other code has found nothing the folder is taken as begun with what is there now.

        :param evaluated_by: The names in ``now`` of which evaluations of the dense model are by, too.
        :param accept: Go on all the same; what is there is by the code of before then.
        :return: What was accepted, a sentence each.
        """
        found = self.read_fingerprints()
        changed = _changed_code(found, now)
        others = self._told_if_found(changed, evaluated_by)
        if others and not accept:
            raise RunError(
                f"{self.path} was begun with {others} than is there now: what is there was computed by other code. Run "
                f"into another folder with --folder, begin this one anew with --fresh, or keep what is there and go on "
                f"with --accept-change {FROM_PYTHON}"
            )
        digests = digests_of(changed)
        begun, accepted = found.get(CODE, {}), found.get(ACCEPTED_CODE, {})
        if others:
            write_sealed_json(self.fingerprints, {**found, ACCEPTED_CODE: {**accepted, **digests}})
            return [f"{name} changed since it was begun, which was accepted" for name in changed]
        if changed:
            self.scores.unlink(missing_ok=True)  # there is a header at the most
            still = {name: digest for name, digest in accepted.items() if name not in changed}
            write_sealed_json(self.fingerprints, {**found, CODE: {**begun, **digests}, ACCEPTED_CODE: still})
        elif CODE not in found and not self.holds_results:  # of what an earlier version found nothing is known
            write_sealed_json(self.fingerprints, {**found, CODE: digests_of(now)})
        return []

    def found_by_others(self, now: Mapping[str, Source], evaluated_by: Collection[str] = ()) -> str:
        """Name the code that is other than what has found something here: ``another scorer_of_mine (FILE)``.

        :return: Empty where none is, or where it has found nothing.
        """
        return self._told_if_found(_changed_code(self.read_fingerprints(), now), evaluated_by)

    def _told_if_found(self, changed: Mapping[str, Source], evaluated_by: Collection[str]) -> str:
        if not changed:  # and no file is read
            return ""
        evaluated = {*evaluated_by} if self.evaluations.exists() or self.dense.exists() else set()
        if self.holds_dense_alone and not {*changed} & evaluated:
            return ""
        return " and ".join(f"another {name} ({one.file})" for name, one in changed.items())

    def goes_on_with(self, code: Mapping[str, str]) -> bool:
        """Say whether code is what the folder was begun with, or was accepted last; of what it does not know it is.

        :param code: The digest of the code of each own part.
        """
        known = _known_code(self.read_fingerprints())
        return all(known.get(name, digest) == digest for name, digest in code.items())

    def is_all_by(self, code: Mapping[str, str]) -> bool:
        """Say whether all that is here is known to be by this code, and by no other that was accepted."""
        found = self.read_fingerprints()
        return code.items() <= found.get(CODE, {}).items() and code.keys().isdisjoint(found.get(ACCEPTED_CODE, {}))

    def code(self) -> dict[str, str]:
        """Tell of which code the run's own parts are, as reports do, and which was accepted since, by their digests."""
        found = self.read_fingerprints()
        then = {name: f", then {digest[:12]}" for name, digest in found.get(ACCEPTED_CODE, {}).items()}
        begun = found.get(CODE, {})
        return {f"code of {name}": f"SHA-256 {digest[:12]}{then.get(name, '')}" for name, digest in begun.items()}

    def last_seals(self) -> dict[str, str]:
        """Give the seals by which it shows later whether lines are gone, by the file's name."""
        names = (self.evaluations.name, self.refinements.name, "stages.jsonl", "warnings.jsonl", "taken_over.jsonl")
        return {name: last_seal(self.path / name) for name in names if (self.path / name).is_file()}

    def record_stage(self, stage: str, seconds: float, peak_memory: int) -> None:
        """Add to what a stage took so far, which is recorded piece by piece."""
        line = {"stage": stage, "seconds": round(seconds, 3), "peak_memory": peak_memory}
        append_line(self.path / "stages.jsonl", line)

    def stages(self) -> list[dict[str, Any]]:
        """Sum what each stage took over all the processes that worked on it, in order."""
        stages: dict[str, dict[str, Any]] = {}
        for line in read_lines(self.path / "stages.jsonl", {"stage": str, "seconds": float, "peak_memory": int}):
            stage = stages.setdefault(line["stage"], {"stage": line["stage"], "seconds": 0.0, "peak_memory": 0})
            stage["seconds"] = round(stage["seconds"] + line["seconds"], 3)
            stage["peak_memory"] = max(stage["peak_memory"], line["peak_memory"])
        return list(stages.values())

    def record_warning(self, message: str) -> None:
        """Keep a warning for the report, unless it was given before."""
        if message not in self.warnings():
            append_line(self.path / "warnings.jsonl", {"warning": message})

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
            append_line(self.path / "taken_over.jsonl", {"what": what})

    def taken_over(self) -> list[str]:
        """Return what another run had found already; each once, in the order in which it was needed."""
        return [line["what"] for line in read_lines(self.path / "taken_over.jsonl", {"what": str})]

    def warnings(self) -> list[str]:
        """Read the warnings, those of earlier processes too, each once."""
        return [line["warning"] for line in read_lines(self.path / "warnings.jsonl", {"warning": str})]


VERSIONS = "versions"
"""The key of the fingerprints that says by which versions of Python and libraries the run was begun."""

CODE = "code"
"""The key of the fingerprints that has the digest of the code of each part that does not come with ecoflap."""

ACCEPTED_CODE = "accepted code"
"""The same of code that was gone on with although it was another."""

ARITHMETIC = "arithmetic"
"""The key of the fingerprints that says what a narrow model is computed in: ``float32``, or its own type, ``model``."""

CALIBRATION_DATA, SCORING_DATA = "calibration data", "scoring data"
"""The keys of the fingerprints of what pruners and scorer look at, and of what the scorer alone does."""

MAY_CHANGE = frozenset((CALIBRATION_DATA, SCORING_DATA))
"""Fingerprints that may change while a run goes on, if the user says so."""


def _known_code(fingerprints: Mapping[str, Any]) -> dict[str, str]:
    """Give the digest of the code of each own part, as it was accepted last, or as the folder was begun."""
    return {**fingerprints.get(CODE, {}), **fingerprints.get(ACCEPTED_CODE, {})}


def _changed_code(fingerprints: Mapping[str, Any], now: Mapping[str, Source]) -> dict[str, Source]:
    """Give what is other code now than the fingerprints of a folder know."""
    known = _known_code(fingerprints)
    return {name: one for name, one in now.items() if known.get(name, one.sha256) != one.sha256}


def _without_time(refined: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in refined.items() if key != "seconds"}


def _accepted(what: str, before: Any, now: Any) -> str:
    return f"the {what} changed since it was begun, from SHA-256 {before} to {now}, which was accepted"


def _which(what: str, before: Any, now: Any) -> str:
    """Name what differs, with those of its files that do, where it has some: ``model (model.safetensors)``."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return what
    files = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    return f"{what} ({', '.join(files)})"
