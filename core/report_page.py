"""A run's report as one page of HTML that needs nothing else."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from ecoflap.core.figures import NOTHING, bytes_text, export_sizes, forms, measure_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
th, td { padding: .25rem .75rem; text-align: left; border-bottom: 1px solid #ddd }
td.bar { width: 22rem } .bar span { display: block; height: .8rem; background: #3b6ea5 }
"""


EXPORT_COLUMNS = ("export", "model", "deflated", "dense file", "stored", "pruned weights", "notes")
CHECK_COLUMNS = ("export", "view", "runtime", "largest difference", "tolerance")


def page(name: str, report: Mapping[str, Any]) -> str:
    """The whole page, from what ``report.json`` holds."""
    sections = [
        ("What it came to", _table(("", ""), _facts(report))),
        ("Before and after", _table(("measure", "dense", "pruned", "over"), _measures(report["measures"]))),
        ("Sparsity by tower", _bars(report["towers"].items())),
        ("Sparsity by group", _bars((n, 1 - g["keep"] / g["size"]) for n, g in report["groups"].items())),
        ("Scores", _table(("group", "score", "standard error"), _scores(report["groups"]))),
        ("Exports", _table(EXPORT_COLUMNS, _exports(report.get("exports", {}))) if report.get("exports") else "none"),
        ("Read again", _table(CHECK_COLUMNS, _checks(report.get("exports", {})))),
        ("Stages", _table(("stage", "seconds", "peak memory"), _stages(report["stages"]))),
        ("Warnings", _table(("",), ((warning,) for warning in report["warnings"])) if report["warnings"] else "none"),
    ]
    body = "".join(f"<h2>{title}</h2>{content}" for title, content in sections)
    title = escape(name)
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{title}</h1>{body}</body></html>\n'


def _facts(report: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    recipe = report["recipe"]
    yield "model", recipe["model"]["source"]
    yield "prune", recipe["prune"]["use"]
    yield "allocate", recipe["allocate"]["use"]
    if recipe.get("score"):
        yield "score", recipe["score"]["use"]
    yield "sparsity", f"{100 * report['sparsity']:.4f} % of {report['prunable']:,} prunable weights"
    yield "kept", f"{report['kept']:,} weights, of which {report['kept_zeros']:,} happen to be zero"
    for name, size in report["bytes"].items():
        yield f"{name}, bytes of weights", f"{size:,}"
    yield "machine", ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    yield "versions", ", ".join(f"{key} {value}" for key, value in report["versions"].items())


def _measures(measures: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, ...]]:
    for name, pruned in measures["pruned"].items():
        over = f"{pruned['n']:,} {pruned['unit']}"
        yield name, measure_text(measures["dense"].get(name)), measure_text(pruned), over


def _scores(groups: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, ...]]:
    for name, group in groups.items():
        if group["score"] is not None:
            error = group["standard_error"]
            yield name, f"{group['score']:.6g}", NOTHING if error is None else f"{error:.2g}"


def _exports(manifests: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, ...]]:
    for name, manifest in manifests.items():
        sizes = (NOTHING if size is None else bytes_text(size) for size in export_sizes(manifest))
        yield name, *sizes, forms(manifest), " ".join(manifest["notes"])


def _checks(manifests: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, ...]]:
    for name, manifest in manifests.items():
        for check in manifest["checks"]:
            yield name, check["view"], check["runtime"], f"{check['difference']:.2g}", f"{check['tolerance']:.2g}"


def _stages(stages: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, ...]]:
    for stage in stages:
        yield stage["stage"], f"{stage['seconds']:.1f}", bytes_text(stage["peak_memory"])


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{titles}</tr>{body}</table>"


def _bars(shares: Iterable[tuple[str, float]]) -> str:
    return f"<table>{''.join(_bar(name, share) for name, share in shares)}</table>"


def _bar(name: str, share: float) -> str:
    percent = f"{100 * share:.2f}"
    bar = f'<td class="bar"><span style="width:{percent}%"></span></td>'
    return f"<tr><td>{escape(name)}</td><td>{percent} %</td>{bar}</tr>"
