"""Write the files of a comparison: its data, a table as CSV and one as Markdown, and a page."""

from collections.abc import Iterator
from hashlib import sha256
from os import PathLike
from pathlib import Path

from ecoflap.core.compare.comparison import Comparison
from ecoflap.core.compare.data import as_csv, as_data
from ecoflap.core.compare.differences import what_differs
from ecoflap.core.compare.drawings import chapters
from ecoflap.core.compare.table import columns_of, markdown, notes, rows, run_rows, table_notes
from ecoflap.core.disk.paths import from_here
from ecoflap.core.disk.whole_files import write_whole
from ecoflap.core.errors import RunError
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.open_run import refuse_inside_run
from ecoflap.core.report.drawings import drawn_or_why_not
from ecoflap.core.report.run_page import TEMPLATES as SHARED_TEMPLATES
from ecoflap.core.sealing.sealed_text import write_sealed_json, write_sealed_text
from ecoflap.core.sealing.sums import SUMS
from ecoflap.core.text.columns import Column
from ecoflap.core.text.strict_yaml import write_yaml
from ecoflap.core.text.templates import render
from ecoflap.core.verifying.comparison_files import DATA, PAGE, UNSEALED, is_as_written, there

TEMPLATE = Path(__file__).with_name("templates") / "comparison.html.j2"


def refuse_target(folder: Path, *, is_named: bool, overwrite: bool) -> None:
    """Refuse a folder where a comparison would harm what is there.

    :param is_named: Whether somebody has named it: then not even a comparison is replaced unasked.
    :param overwrite: Whether what a comparison writes may replace what has the same name.
    :raises RunError: With the files, or with what the folder is.
    """
    if folder.is_file():
        raise RunError(f"{folder} is a file; a comparison is a folder of files. Name another folder with --out")
    refuse_owned(folder)
    if is_named and not overwrite:
        refuse_to_replace(folder)
    elif not overwrite:
        refuse_strangers(folder, "Name another folder with --out, or say --overwrite.")


def refuse_to_replace(folder: Path) -> None:
    """Refuse a folder that has a comparison, or a run's report, already.

    :raises RunError: With the files.
    """
    names = there(folder)
    if names:
        raise RunError(f"{folder} has {', '.join(names)} already: name another folder, or say --overwrite")


def refuse_owned(folder: Path, way_out: str = "Name another folder with --out") -> None:
    """Refuse a folder of a run, one of its own in it, and one whose files are listed: what is added is damage there.

    :param way_out: Ends the message.
    :raises RunError: With what is there.
    """
    path = from_here(folder)
    if RunFolder(path).is_ours:
        raise RunError(f"{folder} is a run's folder, whose own report a comparison would replace. {way_out}")
    refuse_inside_run(path, way_out)
    if (path / SUMS).is_file():
        raise RunError(f"{folder} has a {SUMS}, on which a comparison's files are not. {way_out}")


def refuse_strangers(folder: Path, way_out: str) -> None:
    """Refuse a folder where a comparison would replace a file of somebody's, or one of its own that was edited since.

    :param way_out: Ends the message.
    :raises RunError: With the files.
    """
    strangers = [name for name in there(folder) if not is_as_written(folder, name)]
    if strangers:
        raise RunError(
            f"{folder}: a comparison would replace {', '.join(strangers)}, which none has written, or which changed "
            f"since. {way_out}"
        )


def write_comparison(comparison: Comparison, folder: str | PathLike[str], title: str) -> Path:
    """Write ``report.json``, ``report.csv``, ``report.md``, and then ``report.html``, whose path is returned."""
    folder = from_here(folder)
    refuse_owned(folder)
    lines = [*markdown(rows(comparison)), "", *(f"{note}\n" for note in notes(comparison))]
    written = zip(UNSEALED, (as_csv(comparison), "\n".join(lines)), strict=True)
    texts = {name: text.encode(errors="backslashreplace") for name, text in written}
    # A process that is killed below leaves none that the data do not know, and that would pass for edited.
    for name in UNSEALED:
        (folder / name).unlink(missing_ok=True)
    files = {name: sha256(text).hexdigest() for name, text in texts.items()}
    write_sealed_json(folder / DATA, {**as_data(comparison), "files": files}, ensure_ascii=False)
    for name, text in texts.items():
        write_whole(folder / name, text)
    write_sealed_text(folder / PAGE, comparison_page(comparison, title))
    return folder / PAGE


def comparison_page(comparison: Comparison, title: str) -> str:
    """Return the whole page. Where nothing can be drawn it says why, and has everything else."""
    illustrated, without_drawings = drawn_or_why_not(lambda: chapters(comparison))
    results, runs = rows(comparison), run_rows(comparison)
    values = {
        "title": title,
        "result_columns": columns_of(results),
        "results": [list(row.values()) for row in results],
        "notes": list(table_notes(comparison)),
        "chapters": illustrated,
        "without_drawings": without_drawings,
        "differing_columns": (Column("key"), Column("value", wraps=True), Column("methods", wraps=True)),
        "differing": list(_differing(comparison)),
        "run_columns": columns_of(runs),
        "runs": [list(row.values()) for row in runs] if comparison.has_seeds else [],
        "recipes": [{"name": run.name, "text": write_yaml(run.report.recipe.plain())} for run in comparison.runs],
    }
    return render(TEMPLATE, values, SHARED_TEMPLATES)


def _differing(comparison: Comparison) -> Iterator[tuple[str, str, str]]:
    for key, values in what_differs(comparison).items():
        for value, methods in values.items():
            yield key, value, ", ".join(methods)
