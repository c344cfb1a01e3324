"""Offer the command line. What is heavy, torch above all, is imported in the commands: so --help needs no time."""

import os
import sys
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from ecoflap.core.cli.processes import FailureOption, ProcessesOption, RunsAtOnceOption
from ecoflap.core.cli.stopping import GOES_ON, end_at_once, ended, leave_last_word, leave_word_of_sigbus, stoppable
from ecoflap.core.disk.paths import why_unusable
from ecoflap.core.disk.reading import what_to_mend
from ecoflap.core.errors import EcoflapError, SaidElsewhereError, cut
from ecoflap.core.ranks.launch import are_several, is_first, launch, quieten, refuse_left_over, refuse_several
from ecoflap.core.sweep.failures import failing_into
from ecoflap.core.text.printable import printable

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Make vision-language models smaller without retraining.",
)


def _usable(value: Path | list[Path] | None) -> Path | list[Path] | None:
    """Refuse a path that no file can have, before anything asks the system about it."""
    for path in value if isinstance(value, list) else [value]:
        why = None if path is None else why_unusable(path)
        if why is not None:
            raise typer.BadParameter(f"{cut(str(path))!r} is no path that can be read: {why}.")
    return value


RecipeArgument = Annotated[str, typer.Argument(help="A recipe's file, or the name of one that ships.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe: prune.use=sparsegpt."),
]
RegistryOption = Annotated[
    Path | None,
    typer.Option("--registry", help="A registry file of your own; it extends the shipped one.", callback=_usable),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
AcceptChangeOption = Annotated[
    bool,
    typer.Option("--accept-change", help="Go on though calibration data, libraries or your own parts are others now."),
]
AllowCodeOption = Annotated[
    bool,
    typer.Option("--allow-code", help="Run code that is named by an import path; say it only of what you trust."),
]


def command() -> None:
    """Be the process of the ``ecoflap`` command: :func:`main`, and nothing after it."""
    try:
        main()
    finally:
        end_at_once()


def main() -> None:
    """Run the ``ecoflap`` command. A user's mistake ends it with 2 and a message, without a traceback."""
    # torch reads it when it is imported: memory in pages of 2 MB, so that a matrix that is widened anew for each
    # forward costs no more for its pages than for its numbers (2.3 ns a weight from bfloat16 to float32, 1.3 with it).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no ± must not end a run
    with stoppable("stopped"):
        sys.exit(ended(_done))


def _done() -> int:
    """Do what the command line says, and give the code to end with."""
    try:
        app(standalone_mode=True)
    except SaidElsewhereError:
        return 2
    except (EcoflapError, OSError) as error:
        told = what_to_mend(error)
        if told is None:  # as of a pipe that nobody reads
            raise
        print(f"ecoflap: {printable(told)}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _show_version(asked: bool) -> bool:
    if asked:
        print(version("ecoflap"))
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


@app.command()
def run(
    recipe: RecipeArgument,
    set_: SetOption = None,
    folder: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME by default.", callback=_usable)] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew, deleting what the folder holds.")] = False,
    registry: RegistryOption = None,
    allow_code: AllowCodeOption = False,
    accept_change: AcceptChangeOption = False,
    processes: ProcessesOption = 1,
    profile: Annotated[bool, typer.Option("--profile", help="Write where the time went into profile.txt.")] = False,
    failure: FailureOption = None,
) -> None:
    """Run a recipe, or go on with a run that was cut off."""
    refuse_left_over(processes)
    if processes > 1 and not are_several():
        sys.exit(launch(processes, [sys.executable, "-P", "-m", "ecoflap", *sys.argv[1:]]))
    quieten()
    with stoppable(GOES_ON if is_first() else ""), failing_into(failure):
        from ecoflap.core.cli.run_table import run_table
        from ecoflap.core.cli.tables import show
        from ecoflap.core.ranks.join import joined
        from ecoflap.core.registry.registry import load_registry
        from ecoflap.core.run.pipeline import run as run_recipe

        parts = load_registry(registry, allow_code=allow_code).heard_by("last word", leave_last_word)
        if profile:
            from ecoflap.core.cli.profiling import StageProfiles, process_began

            parts = parts.heard_by("profile", StageProfiles(process_began()))
        with joined() as ranks:
            done = run_recipe(
                recipe,
                set_=set_ or (),
                folder=folder,
                fresh=fresh,
                registry=parts,
                accept_change=accept_change,
                ranks=ranks,
            )
        if not is_first():
            return
        show(run_table(done.report))
        page = done.folder / "report.html"  # written by an observer, which may be switched off
        print(f"report: {page if page.is_file() else done.folder / 'report.json'}")


@app.command()
def plan(
    recipe: RecipeArgument,
    set_: SetOption = None,
    registry: RegistryOption = None,
    allow_code: AllowCodeOption = False,
) -> None:
    """Say what a run would do and need, and every problem of its recipe, without reading weights."""
    from ecoflap.core.cli.plan_report import plan_tables, prepared_tables
    from ecoflap.core.cli.tables import show
    from ecoflap.core.preparing.prepare import DataNotReady
    from ecoflap.core.recipe.load import find_recipe, load_recipe
    from ecoflap.core.registry.registry import load_registry

    loaded = load_registry(registry, allow_code=allow_code)
    try:
        show(plan_tables(load_recipe(find_recipe(recipe), set_=set_ or (), registry=loaded), loaded))
    except DataNotReady as error:  # what a run would need is asked before the data are fetched
        show(prepared_tables(error.prepared))
        raise


@app.command()
def sweep(
    what: Annotated[str, typer.Argument(help="A sweep's file or a recipe's, or the name of one that ships.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE,VALUE", help="Values that a key takes in turn: sparsity=0.5,0.6."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N or A,B", help="How many seeds, counted from 0, or which.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="The sweep's folder; runs/sweeps/NAME by default.", callback=_usable)
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do all anew, deleting what these runs have left.")] = False,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Keep each run's model/, not only exports.")
    ] = False,
    processes: RunsAtOnceOption = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and list the runs, and stop.")] = False,
    registry: RegistryOption = None,
    allow_code: AllowCodeOption = False,
    accept_change: AcceptChangeOption = False,
) -> None:
    """Run every combination of methods, values and seeds, and compare them; go on with what was cut off."""
    refuse_several("sweep")
    with stoppable():
        from ecoflap.core.cli.sweep_table import sweep_table
        from ecoflap.core.cli.tables import show
        from ecoflap.core.compare.page import refuse_owned, refuse_strangers
        from ecoflap.core.record.sweep_list import is_sweep
        from ecoflap.core.registry.registry import load_registry
        from ecoflap.core.sweep.request import SweepRequest
        from ecoflap.core.sweep.sweep import planned_sweep
        from ecoflap.core.sweep.sweep import sweep as run_sweep

        loaded = load_registry(registry).heard_by("last word", leave_last_word)
        request = SweepRequest(
            what,
            set_=set_ or (),
            seeds=seeds,
            folder=folder,
            fresh=fresh,
            keep_models=keep_models,
            allow_code=allow_code,
            accept_change=accept_change,
            processes=processes,
            registry=registry,
        )
        if dry_run:
            show(sweep_table(request, planned_sweep(request, loaded)))
            return
        refuse_owned(request.target, "Name another folder with --folder")
        if is_sweep(request.target):
            refuse_strangers(request.target, "The sweep's own comparison goes there: move them away.")
        done = run_sweep(request, registry=loaded)
        if done.finished:
            _compare([done.folder], done.folder, as_markdown=False)
    if done.failed:
        failures = "".join(f"\n  {path.name}: {message}" for path, message in done.failed.items())
        said = f"{len(done.failed)} failed; the same command tries again{failures}"
        print(f"ecoflap: {printable(said)}", file=sys.stderr)
        sys.exit(1)


@app.command(name="list")
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(help="scorer, allocator, pruner, refiner, metric, adapter, exporter, dataset or evaluator."),
    ] = None,
    registry: RegistryOption = None,
) -> None:
    """List the parts that can be named in a recipe, with their parameters."""
    from ecoflap.core.cli.parts_table import parts_table
    from ecoflap.core.cli.tables import show
    from ecoflap.core.registry.registry import load_registry

    show(parts_table(load_registry(registry), kind))


@app.command()
def inspect(
    source: Annotated[str, typer.Argument(help="A hub id, a folder, file.gguf or package:NAME.")],
    adapter: Annotated[str | None, typer.Option(help="The adapter, where more than one fits.")] = None,
    registry: RegistryOption = None,
    allow_code: AllowCodeOption = False,
) -> None:
    """Show a model's towers, blocks and layers, without reading its weights."""
    from ecoflap.core.cli.inspection import inspection
    from ecoflap.core.cli.tables import show
    from ecoflap.core.registry.registry import load_registry

    show(inspection(source, adapter, load_registry(registry, allow_code=allow_code)))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The folder of a run whose model is pruned.", callback=_usable)],
    to: Annotated[str, typer.Option("--to", help="An exporter, such as onnx; ecoflap list has all.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the exporter: weights=coo."),
    ] = None,
    registry: RegistryOption = None,
    allow_code: AllowCodeOption = False,
    accept_change: AcceptChangeOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Export the pruned model of a run once more, into its exports/ folder."""
    refuse_several("export")
    with stoppable(maps_files=True):
        from ecoflap.core.cli.export_table import export_table
        from ecoflap.core.cli.tables import show
        from ecoflap.core.export.export_again import export_run
        from ecoflap.core.record.folder import RunFolder
        from ecoflap.core.record.manifest import MANIFEST, read_manifest
        from ecoflap.core.registry.registry import load_registry

        trusting = load_registry(registry, allow_code=allow_code)
        folder = export_run(
            run, to, set_=set_ or (), registry=trusting, accept_change=accept_change, overwrite=overwrite
        )
        show(export_table({folder.name: read_manifest(folder / MANIFEST)}))
        print(f"files: {folder}")
        if not (report := run / "report.json").is_file():
            print(f"no report yet: `{RunFolder(run).command}` writes {report}")


@app.command()
def densify(
    file: Annotated[Path, typer.Argument(help="A packed file: .onnx, or .packed.safetensors.", callback=_usable)],
    target: Annotated[Path, typer.Argument(help="The ordinary file to write.", callback=_usable)],
    registry: RegistryOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Turn a packed file into an ordinary one, which any library reads."""
    refuse_several("densify")
    with stoppable(maps_files=True):
        from ecoflap.core.export.densify import densify as write_dense
        from ecoflap.core.registry.registry import load_registry

        print(f"written: {write_dense(file, target, load_registry(registry), overwrite=overwrite)}")


@app.command()
def verify(
    folder: Annotated[
        Path, typer.Argument(help="A run's folder, a sweep's, an export's, or a run's model/.", callback=_usable)
    ],
) -> None:
    """Hold each file of a folder to what was written, and say which differ; end with 3 where a run is unfinished."""
    leave_word_of_sigbus()
    from ecoflap.core.cli.tables import show
    from ecoflap.core.cli.verify_table import verify_table
    from ecoflap.core.verifying.verify import verify as checked

    found = checked(folder)
    show(verify_table(found))
    if found.unfinished:
        raise typer.Exit(3)


@app.command()
def doctor() -> None:
    """Say how products with packed weights are computed here, and why not faster."""
    from ecoflap.core.cli.doctor import doctor_tables
    from ecoflap.core.cli.tables import show

    show(doctor_tables())


@app.command()
def report(run: Annotated[Path, typer.Argument(help="The folder of a finished run.", callback=_usable)]) -> None:
    """Show what a finished run came to, and what its exports hold."""
    from ecoflap.core.cli.export_table import export_table
    from ecoflap.core.cli.run_table import run_table
    from ecoflap.core.cli.tables import show
    from ecoflap.core.record.open_run import require_finished
    from ecoflap.core.record.report import read_report

    found = read_report(require_finished(run).report)
    show([*run_table(found), *export_table(found.exports)])


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, or of sweeps.", callback=_usable)],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the report goes; a sweep's own folder, or runs/comparison, by default.", callback=_usable
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Put finished runs side by side, in a table and in a report: measures, sparsity, scores, time, memory, bytes."""
    refuse_several("compare")
    from ecoflap.core.compare.page import refuse_target
    from ecoflap.core.record.sweep_list import is_sweep

    target = out or (runs[0] if len(runs) == 1 and is_sweep(runs[0]) else Path("runs") / "comparison")
    refuse_target(target, is_named=out is not None, overwrite=overwrite)
    _compare(runs, target, as_markdown=markdown)


def _compare(runs: list[Path], target: Path, *, as_markdown: bool) -> None:
    from ecoflap.core.cli.comparison_table import comparison_table
    from ecoflap.core.cli.tables import show
    from ecoflap.core.compare.comparison import compared
    from ecoflap.core.compare.page import write_comparison
    from ecoflap.core.compare.table import markdown, notes, rows

    found = compared(runs)
    if as_markdown:
        print("\n".join(markdown(rows(found))))
    else:
        show(comparison_table(found))
        print("\n".join(notes(found)))
    print(f"report: {write_comparison(found, target, target.resolve().name)}", file=sys.stderr)
