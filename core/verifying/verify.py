"""Do ``ecoflap verify``: hold every file of a folder to what was written, and tell all that differs at once."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from os.path import lexists
from pathlib import Path

from ecoflap.core.budget.weight_scores import WeightScores
from ecoflap.core.disk.reading import unread
from ecoflap.core.disk.whole_files import sha256_of
from ecoflap.core.errors import EcoflapError, FormatError, RunError
from ecoflap.core.export.exports import read_record
from ecoflap.core.packed.into_model import is_packed
from ecoflap.core.planning.plan_file import check_scores_of, read_plan
from ecoflap.core.planning.scores import folder_of, read_scores
from ecoflap.core.pruning.block_files import check_block_file, is_block_file
from ecoflap.core.pruning.masks import read_masks
from ecoflap.core.record.evaluations import remembered_seals
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.manifest import MANIFEST, read_manifest
from ecoflap.core.record.open_run import is_held
from ecoflap.core.record.readback import masks_as_planned
from ecoflap.core.record.remembered import check_remembered
from ecoflap.core.record.report import Report, check_lines, check_recipe, read_report
from ecoflap.core.record.sweep_list import SWEEP, swept_runs
from ecoflap.core.refining import finished_refiners, kept_steps
from ecoflap.core.sealing.sealed import check_sealed, open_sealed
from ecoflap.core.sealing.sealed_lines import last_seal
from ecoflap.core.sealing.sealed_text import read_sealed_text
from ecoflap.core.sealing.sums import SUMS, check_sums, read_sums
from ecoflap.core.verifying.comparison_files import check_comparison_file, there
from ecoflap.core.verifying.missing import PAGE, check_nothing_missing, check_plan, check_records, is_run

_REFINING = {one.FILE: one.FORMAT for one in (kept_steps, finished_refiners)}
"""The files of refiners of the whole model among finished blocks, with their formats."""
DEEPEST = 5
"""So deep below a folder that is none of ours, such as a home directory, folders of runs are looked for."""
_WAY_OUT = "Restore it, or begin the run anew with --fresh."
_ANEW = "Restore it, or make the folder anew."


@dataclass
class Verified:
    """Counts what was checked.

    :param files: Those that are as they were written.
    :param strangers: Files that hold no seal and that no list names, and folders that are not looked into, because they
        are links or lie too deep: nothing is known of them.
    :param unfinished: Runs without a report. Of those nobody knows what there should be besides.
    """

    files: list[Path] = field(default_factory=list)
    strangers: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Bytes of the files that were checked, but for those that a process working there has deleted since."""
        return sum(path.stat().st_size for path in self.files if path.exists())

    def hold(self, check: Callable[[], object], *files: Path) -> bool:
        """Count files as checked, unless the check refuses them, or the system to have them read.

        :return: Whether they are as they were written.
        """
        try:
            check()
        except EcoflapError as error:
            self.problems += error.problems
            return False
        except OSError as error:
            self.problems.append(unread(error, files[0] if files else None))
            return False
        self.files += [file for file in files if file not in self.files]
        return True

    def inside(self, folder: Path) -> list[Path]:
        """List a folder of ours, if it is there. One that may not be looked into is a problem, and no empty folder."""
        found: list[Path] = []
        if lexists(folder):
            self.hold(lambda: found.extend(sorted(folder.iterdir())))
        return [path for path in found if not path.name.startswith(".")]


def verify(folder: Path) -> Verified:
    """Check every byte of a run's folder, a sweep's, an export's, or a run's ``model/`` or ``exports/``.

    :raises FormatError: With every file that is not what was written, and in what it differs.
    :raises RunError: Where nothing in the folder was written by ecoflap.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder: name a run's, a sweep's, or an export's")
    found = Verified()
    if found.hold(lambda: list(folder.iterdir())):
        found.hold(partial(_folder, folder, found))
    if found.problems:
        raise FormatError(*dict.fromkeys(found.problems))
    if not found.files:
        raise RunError(f"{folder}: nothing in it carries a seal or is listed in a {SUMS}; ecoflap wrote none of it")
    return found


def _folder(folder: Path, found: Verified, deep: int = 0) -> None:
    if lexists(folder / SUMS):
        _listed(folder, found, partial(check_sums, folder, _ANEW, required=True))
    elif is_run(RunFolder(folder)):
        _run_at_rest(RunFolder(folder), found)
    elif lexists(folder / SWEEP):
        _sweep(folder, found)
    elif (run := _run_of(folder)) is not None:
        _exports(run, found)
    else:
        _others(folder, (), found, deep)


def _run_of(exports: Path) -> RunFolder | None:
    """Give the run whose exports a folder holds; None where it is no such folder."""
    run = RunFolder(exports.absolute().parent)
    return run if run.exports == exports.absolute() and is_run(run) else None


def _sweep(folder: Path, found: Verified) -> None:
    found.hold(partial(swept_runs, folder), folder / SWEEP)
    compared = there(folder)
    for name in compared:
        found.hold(partial(check_comparison_file, folder, name), folder / name)
    runs = [path for path in found.inside(folder) if path.is_dir() and not path.is_symlink()]
    for path in runs:
        found.hold(partial(_folder, path, found, 1))
    _others(folder, (folder / SWEEP, *(folder / name for name in compared), *runs), found)


def _others(folder: Path, known: tuple[Path, ...], found: Verified, deep: int = 0) -> None:
    """Go through what a folder holds besides: folders of runs, packed files, and files of whoever put them there.

    :param deep: How far below the folder that was named this one lies, with none of ours between.
    """
    try:
        inside = sorted(folder.iterdir())
    except OSError:  # one that may not be looked into
        found.strangers.append(folder)
        return
    for path in inside:
        if path.name.startswith(".") or path in known:
            continue
        try:
            _other(path, found, deep)
        except OSError:  # a folder whose files may not be asked for
            found.strangers.append(path)


def _other(path: Path, found: Verified, deep: int) -> None:
    if path.is_dir() and not path.is_symlink() and deep < DEEPEST:
        _folder(path, found, deep + 1)
    elif is_packed(path.name) and path.suffix == ".safetensors" and not path.is_dir():
        _tensors(path, found)
    else:
        found.strangers.append(path)


def _listed(folder: Path, found: Verified, check: Callable[[], object]) -> None:
    if found.hold(check):
        found.files += [folder / SUMS, *(folder / name for name in read_sums(folder))]


def _tensors(path: Path, found: Verified) -> None:
    def read_all() -> None:
        with open_sealed(path, None) as file:
            for name in file.hashes:
                file.read(name)

    found.hold(read_all, path)


def _run_at_rest(folder: RunFolder, found: Verified) -> None:
    """Hold a run, unless a process works in it: files that differ then may only have been read at two times."""
    before = len(found.problems)
    found.hold(partial(_run, folder, found))
    if len(found.problems) > before and is_held(folder.lock):
        found.problems[before:] = [
            f"{folder.path}: another process is working there, and what differs may be what it writes just now. Verify "
            f"again when it has ended."
        ]


def _run(folder: RunFolder, found: Verified) -> None:
    found.hold(partial(check_nothing_missing, folder))
    if lexists(folder.recipe):
        found.hold(folder.read_recipe, folder.recipe)
    for path in (folder.fingerprints, folder.path / PAGE):
        if lexists(path):
            found.hold(partial(read_sealed_text, path, _WAY_OUT), path)
    rounds = [path for path in found.inside(folder.rounds) if path.is_dir()]
    for one in (folder, *map(RunFolder, rounds)):
        _decided(one, found)
    _dense(folder, found)
    if lexists(folder.model):
        _listed(folder.model, found, folder.check_model)
    _exports(folder, found)
    if lexists(folder.report):
        _reported(folder, found)
    else:
        found.unfinished.append(folder.path)
    if lexists(folder.profiles):
        _others(folder.profiles, tuple(folder.profiles.glob("*.prof")), found)
    _others(folder.path, (*_own(folder), *found.files), found)


def _reported(folder: RunFolder, found: Verified) -> None:
    """Hold a report, and what it says against the folder."""
    read: list[Report] = []
    if found.hold(lambda: read.append(read_report(folder.report)), folder.report):
        for check in (check_lines, check_records, check_recipe, _check_tokens):
            found.hold(partial(check, folder, read[0]))


def _check_tokens(folder: RunFolder, report: Report) -> None:
    """Refuse a report that names another choice of tokens than the plan, of which it has it."""
    if not lexists(folder.plan):
        return  # it was named before
    planned = read_plan(folder.plan).tokens
    if report.tokens != planned:
        told, known = (json.dumps(choice) for choice in (report.tokens, planned))
        raise RunError(
            f"{folder.report}: tokens is {told}, and {known} in {folder.plan.name}. Restore the one that was changed; "
            f"or delete {folder.report.name} and run the recipe again, which writes the report anew."
        )


def _decided(folder: RunFolder, found: Verified) -> None:
    """Hold what was scored, planned and pruned in a run's last round, or in one before."""
    for path in found.inside(folder.path):
        if path.suffix == ".jsonl":
            found.hold(partial(last_seal, path), path)
    _plan(folder, found)
    _weight_scores(folder, found)
    for path in found.inside(folder.blocks):
        if path.name in _REFINING:
            found.hold(partial(check_sealed, path, _REFINING[path.name]), path)
        elif is_block_file(path):
            found.hold(partial(check_block_file, path), path)
        elif not path.is_dir():  # folders in it have weights of blocks, whose files know them, or are trials' own
            found.strangers.append(path)


def _own(folder: RunFolder) -> Iterator[Path]:
    """Yield what was looked at, whatever was found, and what is the run's and carries no seal."""
    yield from (
        folder.recipe,
        folder.fingerprints,
        folder_of(folder.scores),
        folder.plan,
        folder.masks,
        folder.report,
        folder.blocks,
        folder.dense,
        folder.rounds,
        folder.model,
    )
    yield from (folder.exports, folder.path / PAGE, *folder.path.glob("*.jsonl"), folder.profile, folder.profiles)


def _weight_scores(folder: RunFolder, found: Verified) -> None:
    """Hold each file of numbers of single weights to the line that knows it; one may have been deleted."""
    inside = folder_of(folder.scores)
    if not lexists(inside):
        return
    # Once there is a plan nothing of the run looks at them again, and scores.jsonl is what the plan was made of.
    way_out = "Delete it alone: this run needs it no more" if folder.plan.is_file() else "Delete it, and score anew"
    known: dict[Path, WeightScores] = {}
    found.hold(lambda: known.update({one.file: one for one in read_scores(folder.scores).weight_scores.values()}))
    files = [path for path in found.inside(inside) if path.suffix == ".safetensors"]
    for path in files:
        if path in known:
            found.hold(partial(known[path].numbers, way_out), path)
        else:
            _tensors(path, found)
    _others(inside, tuple(files), found)


def _dense(folder: RunFolder, found: Verified) -> None:
    """Hold each file of what is remembered of the dense model to the line that knows it; one may have been deleted."""
    if not lexists(folder.dense):
        return
    seals: dict[str, str] = {}
    found.hold(lambda: seals.update(remembered_seals(folder.evaluations)))  # lines that differ were named above
    files = [path for path in found.inside(folder.dense) if path.suffix == ".safetensors"]
    for path in files:
        if path.name in seals:
            found.hold(partial(check_remembered, path, seals[path.name]), path)
        else:
            _tensors(path, found)
    _others(folder.dense, tuple(files), found)


def _plan(folder: RunFolder, found: Verified) -> None:
    found.hold(partial(check_plan, folder))
    if lexists(folder.plan):
        found.hold(lambda: read_plan(folder.plan), folder.plan)
        found.hold(partial(check_scores_of, folder.plan, folder.scores))
    if lexists(folder.masks):
        found.hold(partial(_masks, folder), folder.masks)


def _masks(folder: RunFolder) -> None:
    if lexists(folder.plan):
        masks_as_planned(folder.masks, read_plan(folder.plan))
    else:
        read_masks(folder.masks)


def _exports(folder: RunFolder, found: Verified) -> None:
    if not lexists(folder.exports):
        return
    records = [path for path in found.inside(folder.exports) if path.suffix == ".json"]
    for record in records:
        found.hold(partial(_export, folder, record), record)
    _others(folder.exports, tuple(records), found)


def _export(folder: RunFolder, path: Path) -> None:
    """Hold an export to its record, and to the run that it says it comes from."""
    record = read_record(path)
    inside = path.with_suffix("")
    if not inside.is_dir():
        return  # it was moved away
    wanted = record.files.get(SUMS)
    if wanted is None or not (inside / SUMS).is_file() or sha256_of(inside / SUMS) != wanted.sha256:
        raise FormatError(f"{inside / SUMS} is not the list that {path.name} knows. Export it again with --overwrite.")
    run = read_manifest(inside / MANIFEST).run
    for file, sha256 in ((folder.plan, run.plan), (folder.masks, run.masks)) if run else ():
        if file.is_file() and sha256_of(file) != sha256:
            raise FormatError(
                f"{inside / MANIFEST} says that it comes from a {file.name} of SHA-256 {sha256[:16]}…, and {file} is "
                f"another. Export it again with --overwrite."
            )
