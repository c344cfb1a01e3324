"""Say which files of a run are gone that others know. A folder without them would hold to what is left of it.

What may be deleted is none of them: ``model/``, ``exports/``, rounds, ``dense/`` and ``scores/``, what observers write,
and of a run that is not finished all that it has not come to.
"""

from collections.abc import Iterator
from os.path import lexists
from pathlib import Path

from ecoflap.core.errors import RunError
from ecoflap.core.export.exports import record_of
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.manifest import MANIFEST
from ecoflap.core.record.report import Report

PAGE = "report.html"
_ANEW = "Restore it, or begin the run anew with --fresh."


def is_run(folder: RunFolder) -> bool:
    """Say whether a run was begun in a folder, by any of its files: one that is gone must not make it a stranger's.

    A recipe or a plan alone may be anybody's, and so may the report of a comparison, and a lock.
    """
    if folder.is_ours or (lexists(folder.fingerprints) and folder.holds_results):
        return True
    finished = lexists(folder.report) and lexists(folder.masks)
    return lexists(folder.plan) and (lexists(folder.lock) or finished)


def check_nothing_missing(folder: RunFolder) -> None:
    """Refuse a run of which a file is gone that there was before what is there.

    :raises RunError: With each of them, and what knows of it.
    """
    problems = [f"{path} is missing: {why}. {_ANEW}" for path, why in _gone(folder)]
    page = folder.path / PAGE
    if lexists(page) and not lexists(folder.report):
        cure = "Restore it, or run the recipe again, which writes it anew."
        problems.append(f"{folder.report} is missing: {page.name} was made of it. {cure}")
    if problems:
        raise RunError(*problems)


def check_plan(folder: RunFolder) -> None:
    """Refuse a run, or one of its rounds, that has masks without the plan that they were made by."""
    if lexists(folder.masks) and not lexists(folder.plan):
        raise RunError(f"{folder.plan} is missing: {folder.masks.name} was made by it. {_ANEW}")


def check_records(folder: RunFolder, report: Report) -> None:
    """Refuse an export that a report knows and whose record is gone, which alone knows the export's list."""
    records = [record_of(folder.exports, name) for name in report.exports if (folder.exports / name).is_dir()]
    gone = [record for record in records if not lexists(record)]
    if gone:
        known = f"{folder.report.name} knows the export. Restore it, or run the recipe again, which exports it anew."
        raise RunError(*(f"{record} is missing: {known}" for record in gone))


def _gone(folder: RunFolder) -> Iterator[tuple[Path, str]]:
    """Yield what a run writes before anything else and has not, then the masks, and the plan if it went with them."""
    if folder.holds_results:
        began = [path for path in (folder.recipe, folder.fingerprints) if not lexists(path)]
        yield from ((path, "a run writes it before it finds anything") for path in began)
    made = next(_made(folder), None)
    if made is not None and not lexists(folder.masks):
        pruned = [path for path in (folder.plan, folder.masks) if not lexists(path)]
        yield from ((path, f"{made} was made after it") for path in pruned)


def _made(folder: RunFolder) -> Iterator[str]:
    """Name what there is of what comes after plan and masks."""
    if lexists(folder.report):
        yield folder.report.name
    if folder.model.is_dir():
        yield "model/"
    yield from (f"exports/{path.parent.name}" for path in folder.exports.glob(f"*/{MANIFEST}"))
