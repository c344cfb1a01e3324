"""Say with which model, data, code and versions a run folder was begun, and refuse to go on with others."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ecoflap.core.dtypes import dtype_name
from ecoflap.core.errors import RunError
from ecoflap.core.machine.environment import changed, changed_versions
from ecoflap.core.machine.part_code import PartCode, digests_of
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.sealing.sealed_text import write_sealed_json

FROM_PYTHON = (
    "(folder=, accept_change=True and fresh=True from Python); in a sweep, whose --fresh empties all of its runs, "
    "delete this folder alone"
)
"""Ends what says to run elsewhere, to go on all the same, or to begin anew."""

VERSIONS = "versions"
"""The key of the fingerprints that says by which versions of Python and libraries the run was begun."""

CODE = "code"
"""The key of the fingerprints that has the digest of the code of each part that does not come with ecoflap."""

ACCEPTED_CODE = "accepted code"
"""The same of code that was gone on with although it was another."""

ARITHMETIC = "arithmetic"
"""The key of the fingerprints that says what a narrow model is computed in: ``float32``, or its own type, ``model``."""

COMPUTED_BY = "computed by"
"""The key of the fingerprints that says by how many threads, on what and by which kernels a CPU computed at first."""

OTHER_BITS = (
    "the last bits of sums are others, so that weights that score alike may be pruned otherwise. OMP_NUM_THREADS sets "
    "threads, ECOFLAP_KERNEL kernels, and ATEN_CPU_CAPABILITY what torch takes the cpu for; ecoflap doctor says what "
    "there is"
)
"""Ends what says that a CPU computes by something else."""

CALIBRATION_DATA, SCORING_DATA = "calibration data", "scoring data"
"""The keys of the fingerprints of what pruners and scorer look at, and of what the scorer alone does."""

MAY_CHANGE = frozenset((CALIBRATION_DATA, SCORING_DATA))
"""Fingerprints that may change while a run goes on, if the user says so."""


def held_in_by(fingerprints: Mapping[str, Any]) -> torch.dtype | None:
    """Give the type that weights are held in while they are used, by what a run was begun with; None for their own."""
    return torch.float32 if fingerprints.get(ARITHMETIC) == dtype_name(torch.float32) else None


@dataclass(frozen=True)
class Identity:
    """Knows with what a run folder was begun, by its fingerprints; records what it learns, and refuses what is another.

    Whatever may be accepted all the same is recorded as such, and told.
    """

    folder: RunFolder

    def check(self, found: Mapping[str, Any], *, accept: bool = False) -> list[str]:
        """Refuse to go on where the model or the data are not those the folder was begun with.

        :param found: A fingerprint of each, or a mapping of them by file.
        :param accept: Go on with other data than before; nothing goes on with another model.
        :return: What was accepted, a sentence each.
        """
        before = self.folder.read_fingerprints()
        changed = {what: now for what, now in found.items() if before.get(what, now) != now}
        if changed and not (accept and changed.keys() <= MAY_CHANGE):
            named = " and another ".join(_which(what, before[what], now) for what, now in changed.items())
            go_on = "go on with what is there now with --accept-change, " if changed.keys() <= MAY_CHANGE else ""
            raise RunError(
                f"{self.folder.path} was begun with another {named} than is there now. "
                f"Run into another folder with --folder, {go_on}or begin this one anew with --fresh {FROM_PYTHON}"
            )
        if changed or not found.keys() <= before.keys():
            write_sealed_json(self.folder.fingerprints, {**before, **found})
        return [_accepted(what, before[what], now) for what, now in changed.items()]

    def check_versions(self, now: Mapping[str, str], *, working: bool, accept: bool = False) -> list[str]:
        """Refuse to go on with other versions of Python and libraries than the folder was begun with.

        :param now: Those of this process.
        :param working: Whether anything is left to do. Otherwise nothing is refused, nor recorded.
        :param accept: Go on all the same.
        :return: What was accepted, a sentence each.
        """
        before = self.folder.read_fingerprints()
        known: Mapping[str, str] = before.get(VERSIONS, now)
        changed = changed_versions(known, now)
        if changed and working and not accept:
            raise RunError(
                f"{self.folder.path} was begun with {changed}: what is left would be computed by other code than what "
                f"is there. Install the versions of before, go on all the same with --accept-change, run into another "
                f"folder with --folder, or begin this one anew with --fresh {FROM_PYTHON}"
            )
        if VERSIONS not in before or (known != now and working):
            write_sealed_json(self.folder.fingerprints, {**before, VERSIONS: dict(now)})
        return [f"it was begun with {changed}, which was accepted"] if changed and working else []

    def other_arithmetic(self, now: Mapping[str, str | int]) -> list[str]:
        """Say by what else it was begun on a CPU than this process computes by, and record that where it is begun.

        Nothing is refused: the numbers are right, and differ in last bits as on any other machine.

        :param now: By what this process computes.
        """
        found = self.folder.read_fingerprints()
        if COMPUTED_BY not in found:
            if not self.folder.holds_results:  # of what an earlier version found nothing is known
                write_sealed_json(self.folder.fingerprints, {**found, COMPUTED_BY: dict(now)})
            return []
        differing = changed(found[COMPUTED_BY], now, now)
        return [f"it was begun with {differing}: {OTHER_BITS}"] if differing else []

    def check_code(
        self, now: Mapping[str, PartCode], *, evaluated_by: Collection[str] = (), accept: bool = False
    ) -> list[str]:
        """Refuse other code of the run's own parts than the folder was begun with, also where nothing is left to do.

        Where the other code has found nothing the folder is taken as begun with what is there now.

        :param evaluated_by: The names in ``now`` of which evaluations of the dense model are by, too.
        :param accept: Go on all the same; what is there is by the code of before then.
        :return: What was accepted, a sentence each.
        """
        found = self.folder.read_fingerprints()
        changed = _changed_code(found, now)
        others = self._told_if_found(changed, evaluated_by)
        if others and not accept:
            raise RunError(
                f"{self.folder.path} was begun with {others} than is there now: what is there was computed by other "
                f"code. Run into another folder with --folder, begin this one anew with --fresh, or keep what is there "
                f"and go on with --accept-change {FROM_PYTHON}"
            )
        digests = digests_of(changed)
        begun, accepted = found.get(CODE, {}), found.get(ACCEPTED_CODE, {})
        if others:
            write_sealed_json(self.folder.fingerprints, {**found, ACCEPTED_CODE: {**accepted, **digests}})
            return [f"{name} changed since it was begun, which was accepted" for name in changed]
        if changed:
            self.folder.scores.unlink(missing_ok=True)  # there is a header at the most
            still = {name: digest for name, digest in accepted.items() if name not in changed}
            write_sealed_json(self.folder.fingerprints, {**found, CODE: {**begun, **digests}, ACCEPTED_CODE: still})
        elif CODE not in found and not self.folder.holds_results:  # of what an earlier version found nothing is known
            write_sealed_json(self.folder.fingerprints, {**found, CODE: digests_of(now)})
        return []

    def found_by_others(self, now: Mapping[str, PartCode], evaluated_by: Collection[str] = ()) -> str:
        """Name the code that is other than what has found something here: ``another scorer_of_mine (FILE)``.

        :return: Empty where none is, or where it has found nothing.
        """
        return self._told_if_found(_changed_code(self.folder.read_fingerprints(), now), evaluated_by)

    def _told_if_found(self, changed: Mapping[str, PartCode], evaluated_by: Collection[str]) -> str:
        if not changed:  # and no file is read
            return ""
        evaluated = {*evaluated_by} if self.folder.evaluations.exists() or self.folder.dense.exists() else set()
        if self.folder.holds_dense_alone and not {*changed} & evaluated:
            return ""
        return " and ".join(f"another {name} ({one.file})" for name, one in changed.items())

    def goes_on_with(self, code: Mapping[str, str]) -> bool:
        """Say whether code is what the folder was begun with, or was accepted last; of what it does not know it is.

        :param code: The digest of the code of each own part.
        """
        known = _known_code(self.folder.read_fingerprints())
        return all(known.get(name, digest) == digest for name, digest in code.items())

    def is_all_by(self, code: Mapping[str, str]) -> bool:
        """Say whether all that is here is known to be by this code, and by no other that was accepted."""
        found = self.folder.read_fingerprints()
        return code.items() <= found.get(CODE, {}).items() and code.keys().isdisjoint(found.get(ACCEPTED_CODE, {}))

    def code(self) -> dict[str, str]:
        """Tell of which code the run's own parts are, as reports do, and which was accepted since, by their digests."""
        found = self.folder.read_fingerprints()
        then = {name: f", then {digest[:12]}" for name, digest in found.get(ACCEPTED_CODE, {}).items()}
        begun = found.get(CODE, {})
        return {f"code of {name}": f"SHA-256 {digest[:12]}{then.get(name, '')}" for name, digest in begun.items()}


def _known_code(fingerprints: Mapping[str, Any]) -> dict[str, str]:
    """Give the digest of the code of each own part, as it was accepted last, or as the folder was begun."""
    return {**fingerprints.get(CODE, {}), **fingerprints.get(ACCEPTED_CODE, {})}


def _changed_code(fingerprints: Mapping[str, Any], now: Mapping[str, PartCode]) -> dict[str, PartCode]:
    """Give what is other code now than the fingerprints of a folder know."""
    known = _known_code(fingerprints)
    return {name: one for name, one in now.items() if known.get(name, one.sha256) != one.sha256}


def _accepted(what: str, before: Any, now: Any) -> str:
    return f"the {what} changed since it was begun, from SHA-256 {before} to {now}, which was accepted"


def _which(what: str, before: Any, now: Any) -> str:
    """Name what differs, with those of its files that do, where it has some: ``model (model.safetensors)``."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return what
    files = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    return f"{what} ({', '.join(files)})"
