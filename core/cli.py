"""The command line. Torch and everything else heavy is imported inside the commands, so that --help is instant."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from ecoflap.core.errors import EcoflapError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Make vision-language models smaller without retraining.",
)

RecipeArgument = Annotated[str, typer.Argument(help="A recipe's file, or the name of one that ships.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe: prune.use=sparsegpt."),
]
RegistryOption = Annotated[
    Path | None, typer.Option("--registry", help="A registry file of your own; it extends the shipped one.")
]


def main() -> None:
    """The ``ecoflap`` command. A user's mistake ends with 2 and a message, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no ± must not end a run
    try:
        app(standalone_mode=True)
    except EcoflapError as error:
        print(f"ecoflap: {error}", file=sys.stderr)
        sys.exit(2)


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
) -> None:
    pass


@app.command()
def run(
    recipe: RecipeArgument,
    set_: SetOption = None,
    folder: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME by default.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew, deleting what the folder holds.")] = False,
    registry: RegistryOption = None,
) -> None:
    """Run a recipe, or go on with a run that was cut off."""
    with _stoppable():
        from ecoflap.core.pipeline import run as run_recipe
        from ecoflap.core.registry import load_registry
        from ecoflap.core.tables import run_summary, show

        done = run_recipe(recipe, set_=set_ or (), folder=folder, fresh=fresh, registry=load_registry(registry))
        show(run_summary(done.report))
        print(f"report: {done.folder / 'report.html'}")


@app.command()
def plan(recipe: RecipeArgument, set_: SetOption = None, registry: RegistryOption = None) -> None:
    """Say what a run would do and need, and every problem of its recipe, without reading weights."""
    from ecoflap.core.preview import preview
    from ecoflap.core.recipe import find_recipe, load_recipe
    from ecoflap.core.registry import load_registry
    from ecoflap.core.tables import show

    loaded = load_registry(registry)
    show(preview(load_recipe(find_recipe(recipe), set_=set_ or (), registry=loaded), loaded))


@app.command(name="list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(help="scorer, allocator, pruner, adapter, exporter, dataset or evaluator.")
    ] = None,
    registry: RegistryOption = None,
) -> None:
    """List the parts that can be named in a recipe, with their parameters."""
    from ecoflap.core.registry import load_registry
    from ecoflap.core.tables import parts, show

    show(parts(load_registry(registry), kind))


@app.command()
def inspect(
    source: Annotated[str, typer.Argument(help="A hub id, a folder, file.gguf or package:NAME.")],
    adapter: Annotated[str | None, typer.Option(help="The adapter, where more than one fits.")] = None,
    registry: RegistryOption = None,
) -> None:
    """Show a model's towers, blocks and layers, without reading its weights."""
    from ecoflap.core.inspection import inspection
    from ecoflap.core.registry import load_registry
    from ecoflap.core.tables import show

    show(inspection(source, adapter, load_registry(registry)))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    to: Annotated[str, typer.Option("--to", help="An exporter: onnx, torchscript, safetensors, hugging_face.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the exporter: weights=coo."),
    ] = None,
    registry: RegistryOption = None,
) -> None:
    """Export the model of a finished run once more, into its exports/ folder."""
    with _stoppable():
        from ecoflap.core.export_run import export_run
        from ecoflap.core.manifest import MANIFEST
        from ecoflap.core.registry import load_registry
        from ecoflap.core.run import read_json
        from ecoflap.core.tables import export_tables, show

        folder = export_run(run, to, set_=set_ or (), registry=load_registry(registry))
        show(export_tables({folder.name: read_json(folder / MANIFEST)}))
        print(f"files: {folder}")


@app.command()
def densify(
    file: Annotated[Path, typer.Argument(help="A packed file: .onnx, or .packed.safetensors.")],
    target: Annotated[Path, typer.Argument(help="The ordinary file to write.")],
    registry: RegistryOption = None,
) -> None:
    """Turn a packed file into an ordinary one, which any library reads."""
    with _stoppable():
        from ecoflap.core.densify import densify as write_dense
        from ecoflap.core.registry import load_registry

        print(f"written: {write_dense(file, target, load_registry(registry))}")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="The folder of a finished run.")]) -> None:
    """Show what a finished run came to, and what its exports hold."""
    from ecoflap.core.run import read_json, require_finished
    from ecoflap.core.tables import export_tables, run_summary, show

    found = read_json(require_finished(run).report)
    show([*run_summary(found), *export_tables(found.get("exports", {}))])


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """Put finished runs side by side: sparsity, measures before and after, time, memory, bytes."""
    from ecoflap.core.report import comparison
    from ecoflap.core.report import markdown as as_markdown
    from ecoflap.core.tables import comparison_table, show

    rows = comparison(runs)
    if markdown:
        print("\n".join(as_markdown(rows)))
    else:
        show([comparison_table(rows)])


class _Terminated(KeyboardInterrupt):
    """Asked to end by SIGTERM, as a cluster's scheduler does."""


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM say how to go on instead of where it was."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt as stop:
        print("\necoflap: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(143 if isinstance(stop, _Terminated) else 130)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated
