"""A finished sweep as measured/box.md has it: methods down, sparsities across, mean ± standard deviation over seeds.

python benchmarks/table.py SWEEP MEASURE [MEASURE ...]
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def main(folder: str, *measures: str) -> None:
    report = json.loads((Path(folder) / "report.json").read_text("utf-8"))
    known = dict.fromkeys(group["metric"] for group in report["groups"])
    missing = [name for name in measures if name not in known]
    if missing or not measures:
        sys.exit(f"measures of this sweep: {', '.join(known)}; not there: {', '.join(missing) or 'none'}")
    for measure in measures:
        dense = report["dense"][measure]
        print(f"\n{measure}, dense {told(dense['value'], None)} ({dense['n']:,} {dense['unit']}):\n")
        print("\n".join(table([group for group in report["groups"] if group["metric"] == measure])))


def table(groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    sparsities = sorted({group["sparsity"] for group in groups})
    yield f"| method | {' | '.join(f'{100 * share:.0f} %' for share in sparsities)} |"
    yield f"|---|{'---:|' * len(sparsities)}"
    for method in dict.fromkeys(group["method"] for group in groups):
        own = {group["sparsity"]: group for group in groups if group["method"] == method}
        cells = [told(own[share]["mean"], own[share]["sd"]) if share in own else "–" for share in sparsities]
        yield f"| {method} | {' | '.join(cells)} |"


def told(mean: float, spread: float | None) -> str:
    """``0.681 ± 0.004``, or ``44.95 ± 0.61`` of what is larger."""
    digits = 3 if abs(mean) < 10 else 2 if abs(mean) < 100 else 1
    return f"{mean:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
