"""What it matters how much text calibrates, and which: SmolLM2 at 60 % by one pruner, measured on three kinds of text.

    python benchmarks/calibration.py runs/calibration benchmarks/results/calibration.jsonl [--seeds 0 1] [--only …]
    python benchmarks/calibration.py --table benchmarks/results/calibration.jsonl

The texts are the Wikipedia articles that ship, the documentation of Python's language that is in every Python, and what
the installed packages say of themselves (so these differ a little from one environment to another; a row has a digest
of them). Of each every third document is held out. ``mixed`` draws as many documents of each of the three. Everything
is in float32 unless ``--dtype`` says bfloat16, which is a table of its own. A row that is there is not done again, so
this may be stopped and started as one likes.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import distributions
from itertools import product
from math import log
from pathlib import Path
from pydoc_data.topics import topics
from statistics import mean, stdev
from typing import Any

from result_rows import do, parser, read  # type: ignore[import-not-found]

WIKIPEDIA = Path(__file__).parents[1] / "recipes" / "data" / "wikipedia.jsonl"
TEXTS = ("wikipedia", "python", "packages")
DOCUMENTS = 16
"""Of each text the longest ones, as many as the Wikipedia articles that calibrate: ``mixed`` has a third of each."""
WINDOW = 512
MEASURED = "samples: 32, sequence_length: 256"
"""Windows of each held-out text."""
ENDINGS = "samples: 64, sequence_length: 32"
"""Questions which ending a text has, and its last eight tokens are."""


@dataclass(frozen=True)
class Row:
    """One run.

    :param text: Which text calibrates.
    :param samples: How many windows of it.
    """

    pruner: str
    text: str
    samples: int
    seed: int
    dtype: str = "float32"

    @property
    def name(self) -> str:
        return f"{self.pruner} {self.text} {self.samples} {self.seed}" + f" {self.dtype}" * (self.dtype != "float32")


SETTINGS = (
    *(("admm", text, 64) for text in ("wikipedia", "mixed")),
    ("admm", "wikipedia", 16),
    *(("wanda", text, 64) for text in ("wikipedia", "mixed")),
    *(("admm", text, 64) for text in ("python", "packages")),
    *(("admm", text, 256) for text in ("wikipedia", "mixed")),
    *(("admm", "wikipedia", samples) for samples in (32, 128)),
)


def rows(seeds: Sequence[int], dtype: str) -> Iterator[Row]:
    yield from (Row(*setting, seed, dtype) for seed, setting in product(seeds, SETTINGS))


def documents(text: str) -> list[str]:
    """Give all documents of a text, in an order that depends on nothing but them."""
    if text == "wikipedia":
        return [json.loads(line)["text"] for line in WIKIPEDIA.read_text("utf-8").splitlines()]
    if text == "python":
        return [topics[name] for name in sorted(topics)]
    told = {one.name: one.metadata.get_payload() for one in distributions() if one.metadata}  # type: ignore[attr-defined]
    return [told[name] for name in sorted(told) if isinstance(told[name], str)]


def write(folder: Path) -> dict[str, str]:
    """Write of each text a file to calibrate on and one that is held out; a digest of each."""
    digests = {}
    for text in TEXTS:
        found = documents(text)
        held = found[2::3]
        rest = sorted((one for number, one in enumerate(found) if number % 3 != 2), key=len)[-DOCUMENTS:]
        for name, chosen in ((text, rest), (f"{text}-held", held)):
            lines = "".join(json.dumps({"text": one}) + "\n" for one in chosen)
            (folder / f"{name}.jsonl").write_text(lines, "utf-8")
            digests[name] = sha256(lines.encode()).hexdigest()[:16]
    return digests


def settings(row: Row, folder: Path) -> list[str]:
    """Give what is set in ``box/smollm2``."""
    paths = [str(folder / f"{text}.jsonl") for text in (TEXTS if row.text == "mixed" else (row.text,))]
    calibration = f"{{use: text, path: {json.dumps(paths)}, samples: {row.samples}, sequence_length: {WINDOW}}}"
    held = [f"{{use: text, path: '{folder / text}-held.jsonl', order: spread, %s}}" for text in TEXTS]
    measures = [f"{{use: perplexity, data: {one % MEASURED}}}" for one in held]
    measures += [f"{{use: continuation, ending: 8, data: {one % ENDINGS}}}" for one in held]
    return [
        f"model.dtype={row.dtype}", "sparsity=0.6", "score=null", "allocate=uniform", "export=null", f"seed={row.seed}",
        f"prune={row.pruner}", f"calibration={calibration}", f"evaluate=[{', '.join(measures)}]",
    ]  # fmt: skip


def figures(row: Row, work: Path) -> dict[str, Any]:
    """Do one row, and give what came out; the dense measures are those of the first row that there was."""
    digests, folder = write(work), work / row.name.replace(" ", "-")
    ended = (path.parent for path in work.glob("*/report.json") if path.parent != folder)
    finished = [one for one in ended if one.name.endswith("bfloat16") == (row.dtype == "bfloat16")][:1]
    asked = [*settings(row, work), *(f"reuse={path}" for path in finished)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "ecoflap", "run", "box/smollm2", "--folder", str(folder)]
    command += [part for one in asked for part in ("--set", one)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads((folder / "report.json").read_text("utf-8"))
    shutil.rmtree(folder / "model", ignore_errors=True)
    found = {when: {name: one["value"] for name, one in of.items()} for when, of in report["measures"].items()}
    stages = {stage["stage"]: round(stage["seconds"], 1) for stage in report["stages"]}
    return {
        "name": row.name, **asdict(row), **found, "cpu_seconds": round(after.ru_utime - before.ru_utime, 1),
        "stages": stages, "texts": digests, "machine": report["machine"],
    }  # fmt: skip


def table(lines: Sequence[Mapping[str, Any]], dtype: str) -> Iterator[str]:
    """Write a Markdown table: of each setting the mean over seeds."""
    lines = [line for line in lines if line.get("dtype", "float32") == dtype]
    dense = lines[0]["dense"]
    yield f"| pruner, what calibrates | {' | '.join(dense)} |\n|---|{'---:|' * len(dense)}"
    yield f"| dense | {' | '.join(f'{value:.3f}' for value in dense.values())} |"
    for pruner, text, samples in SETTINGS:
        mine = [line for line in lines if (line["pruner"], line["text"], line["samples"]) == (pruner, text, samples)]
        if mine:
            cells = " | ".join(_cell([line["pruned"][name] for line in mine], name, dense[name]) for name in dense)
            yield f"| `{pruner}`, {text}, {samples} × {WINDOW} | {cells} |"


def _cell(values: Sequence[float], name: str, dense: float) -> str:
    spread = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
    excess = f" ({log(mean(values) / dense):.3f})" if name.startswith("perplexity") else ""
    return f"{mean(values):.3f}{spread}{excess}"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    arguments.add_argument("--only", nargs="+", help="rows by their names")
    asked = arguments.parse_args()
    if asked.table:
        print("\n".join(table(read(asked.results), asked.dtype)))
        return
    asked.work.mkdir(parents=True, exist_ok=True)
    work = asked.work.absolute()
    wanted = (row for row in rows(asked.seeds, asked.dtype) if not asked.only or row.name in asked.only)
    do(wanted, asked.results, "name", lambda row: row.name, lambda row: figures(row, work))


if __name__ == "__main__":
    main()
