"""A run's report as one page of HTML that needs nothing else."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ecoflap.core.report.charts import Line, Panel, Strip, by_block, can_draw
from ecoflap.core.report.html import bars, document, figures, folded, paragraphs, table
from ecoflap.core.text.numbers import NOTHING, bytes_text, export_sizes, forms, measure_text, time_text
from ecoflap.core.text.strict_yaml import write_yaml

NO_DRAWINGS = "Drawings need matplotlib: pip install 'ecoflap[report]'."
EXPORT_COLUMNS = ("export", ">model", ">deflated", ">dense file", ">stored", "pruned weights", "<notes")
CHECK_COLUMNS = ("export", "view", "runtime", ">largest difference", ">tolerance")


def page(name: str, report: Mapping[str, Any]) -> str:
    """The whole page, from what ``report.json`` holds."""
    exports = report.get("exports", {})
    return document(
        name,
        [
            ("What it came to", table(("", "<"), _facts(report))),
            ("Before and after", table(("measure", ">dense", ">pruned", ">over", ""), _measures(report["measures"]))),
            ("Sparsity by tower", bars((n, f"{100 * share:.2f} %", share) for n, share in report["towers"].items())),
            ("Sparsity and scores by block", _by_block(report)),
            ("Groups", table(("group", ">sparsity", ">score", ">standard error"), _groups(report["groups"]))),
            ("Weights on disk", bars(_sizes(report["bytes"]))),
            ("Exports", table(EXPORT_COLUMNS, _exports(exports))),
            ("Exports read again", table(CHECK_COLUMNS, _checks(exports))),
            ("Time by stage", bars(_stages(report["stages"]))),
            ("Peak memory by the end of a stage", bars(_memory(report["stages"]))),
            ("Warnings", table(("<",), ((warning,) for warning in report["warnings"])) or "none"),
            ("Recipe", folded("with every default", write_yaml(report["recipe"]))),
        ],
    )


def _facts(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    recipe = report["recipe"]
    yield "model", recipe["model"]["source"]
    yield "prune", recipe["prune"]["use"]
    yield "allocate", recipe["allocate"]["use"]
    if recipe.get("score"):
        yield "score", recipe["score"]["use"]
    yield "seed", str(recipe["seed"])
    yield "sparsity", f"{100 * report['sparsity']:.4f} % of {report['prunable']:,} prunable weights"
    yield "kept", f"{report['kept']:,} weights, of which {report['kept_zeros']:,} happen to be zero"
    yield "machine", ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    yield "versions", ", ".join(f"{key} {value}" for key, value in report["versions"].items())
    yield "finished", report["finished"]


def better(measure: Mapping[str, Any]) -> str:
    """Which way is better; nothing where an evaluator does not say."""
    larger = measure.get("larger_is_better")
    return "" if larger is None else f"{'larger' if larger else 'smaller'} is better"


def _measures(measures: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for name, pruned in measures["pruned"].items():
        over = f"{pruned['n']:,} {pruned['unit']}"
        yield name, measure_text(measures["dense"].get(name)), measure_text(pruned), over, better(pruned)


def _by_block(report: Mapping[str, Any]) -> str:
    blocks = blocks_of(report.get("blocks", {}))
    strips = [Strip("pruned in %", "block", _panels(blocks), is_share=True)] if blocks else []
    scored = {name: group for name, group in report["groups"].items() if group["score"] is not None}
    if scored:
        strips.append(Strip("score", scored_unit(report), _panels(scores_of(scored))))
    if not strips:
        return ""
    return figures([(by_block("blocks", strips), "")]) if can_draw() else paragraphs([NO_DRAWINGS])


def blocks_of(blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, list[float]]:
    """By tower, the sparsity of each block in the order the model runs them."""
    towers: dict[str, list[float]] = {}
    for block in blocks.values():
        towers.setdefault(block["tower"], []).append(1 - block["keep"] / block["size"])
    return towers


def scores_of(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, list[float]]:
    """By tower, the score of each group; groups of several towers are together."""
    towers: dict[str, list[float]] = {}
    for group in groups.values():
        towers.setdefault(group["tower"] or "all towers", []).append(group["score"])
    return towers


def scored_unit(report: Mapping[str, Any]) -> str:
    """What shares one sparsity: ``block``, ``layer``, …"""
    return str((report["recipe"].get("score") or {}).get("granularity", "group"))


def _panels(towers: Mapping[str, Sequence[float]]) -> list[Panel]:
    return [Panel(name, [Line.counted("", ([share] for share in v))]) for name, v in towers.items()]


def _groups(groups: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for name, group in groups.items():
        score, error = group["score"], group["standard_error"]
        told = (NOTHING if score is None else f"{score:.6g}", NOTHING if error is None else f"{error:.2g}")
        yield name, f"{100 * (1 - group['keep'] / group['size']):.2f} %", *told


def _sizes(sizes: Mapping[str, int]) -> Iterator[tuple[str, str, float]]:
    largest = max(sizes.values(), default=0) or 1
    for name, size in sizes.items():
        yield name, f"{bytes_text(size)} ({size:,} bytes)", size / largest


def _exports(manifests: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for name, manifest in manifests.items():
        sizes = (NOTHING if size is None else bytes_text(size) for size in export_sizes(manifest))
        yield name, *sizes, forms(manifest), " ".join(manifest["notes"])


def _checks(manifests: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for name, manifest in manifests.items():
        for check in manifest["checks"]:
            yield name, check["view"], check["runtime"], f"{check['difference']:.2g}", f"{check['tolerance']:.2g}"


def _stages(stages: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, str, float]]:
    longest = max((stage["seconds"] for stage in stages), default=0) or 1
    return [(stage["stage"], time_text(stage["seconds"]), stage["seconds"] / longest) for stage in stages]


def _memory(stages: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, str, float]]:
    most = max((stage["peak_memory"] for stage in stages), default=0) or 1
    return [(stage["stage"], bytes_text(stage["peak_memory"]), stage["peak_memory"] / most) for stage in stages]
