"""What one sparsity and ECoFLaP's budgets cost the LLaVA in the box: pruners and chains, by sparsity, in three seeds.

    python examples/box/llava/build_llava.py
    python benchmarks/llava.py runs/llava benchmarks/results/llava.jsonl
    python benchmarks/llava.py --table benchmarks/results/llava.jsonl

Each row is a run of ``quickstart-llava`` with 128 samples, 32 to score on, and all 2,000 questions of the test set. Its
figures are appended when it ends, and a row that is there is not done again, so this may be stopped and started as one
likes. First the table of two pruners and three sparsities is filled, then the best rows and the chains' are done. With
``--seeds 0`` and ``--seeds 1 2`` two processes share the work. ``--dtype float32`` is for a CPU without products in
bfloat16, which is what the model has; its rows say so.
"""

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from result_rows import do, read  # type: ignore[import-not-found]

import ecoflap

QUESTIONS = Path(__file__).parents[1] / "examples" / "box" / "llava" / "built" / "questions" / "calibration.jsonl"
TWO_AT_ONCE = f"{{use: image_question_answer, path: '{QUESTIONS}', samples: 128, batch_size: 2}}"
BUDGETS = {
    "uniform": ("score=null", "allocate=uniform"),
    "zeroth order": ("score.samples=32",),
    "first order": (f"score={{use: first_order, samples: 32, calibration: {TWO_AT_ONCE}}}",),
}
TEXT, TRAINED, MORE = "tokens=text", "refine=[reconstruct]", "calibration.samples=512"
PRUNERS = {
    "wanda": ("prune=wanda",),
    "sparsegpt": ("prune=sparsegpt",),
    "wanda on text tokens": ("prune=wanda", TEXT),
    "wanda on text tokens → reconstruct": ("prune=wanda", TEXT, TRAINED),
    "admm": ("prune=admm",),
    "admm on text tokens": ("prune=admm", TEXT),
    "admm → reconstruct": ("prune=admm", TRAINED),
    "admm on text tokens → reconstruct": ("prune=admm", TEXT, TRAINED),
    "admm on 512 questions → reconstruct": ("prune=admm", MORE, TRAINED),
}
"""Statistics of text tokens alone, in the language tower, leave out the 64 of 79 positions that an image takes."""
SPARSITIES, SEEDS = (0.5, 0.6, 0.7, 0.8), (0, 1, 2)
TABLE = list(product(BUDGETS, SPARSITIES[:3], ("wanda", "sparsegpt")))
BEST = [
    ("first order", 0.7, "admm → reconstruct"),
    ("first order", 0.8, "admm on 512 questions → reconstruct"),
    ("first order", 0.5, "wanda on text tokens"),
    ("first order", 0.6, "admm"),
    ("first order", 0.5, "wanda on text tokens → reconstruct"),
]
"""What is best at each sparsity, and what is best that chooses by Wanda."""
CHAINS = [
    ("first order", 0.7, "admm on 512 questions → reconstruct"),
    ("first order", 0.7, "admm"),
    ("first order", 0.8, "admm → reconstruct"),
    ("first order", 0.8, "admm on text tokens → reconstruct"),
    ("first order", 0.8, "admm"),
    ("first order", 0.8, "admm on text tokens"),
    ("zeroth order", 0.7, "admm"),
    ("zeroth order", 0.8, "admm on text tokens"),
    ("zeroth order", 0.5, "wanda on text tokens"),
    ("uniform", 0.7, "admm"),
    ("uniform", 0.7, "admm → reconstruct"),
    ("uniform", 0.8, "admm → reconstruct"),
]
WHOLE = ("calibration.samples=128", "evaluate.data.samples=null", "export=null")


@dataclass(frozen=True)
class Row:
    """One cell of the table for one seed."""

    budget: str
    pruner: str
    sparsity: float
    seed: int

    @property
    def folder(self) -> str:
        plain = f"{self.budget}-{self.pruner}-{self.sparsity}-{self.seed}"
        return plain.replace(" → ", "+").replace(" ", "-")

    @property
    def settings(self) -> list[str]:
        own = (*PRUNERS[self.pruner], f"sparsity={self.sparsity}", f"seed={self.seed}")
        return [*WHOLE, *BUDGETS[self.budget], *own]


def rows() -> Iterator[Row]:
    """Give the rows in the order they are done, the first seed's before the others'."""
    for cells, seeds in product((TABLE, BEST, CHAINS), (SEEDS[:1], SEEDS[1:])):
        for (budget, sparsity, pruner), seed in product(cells, seeds):
            yield Row(budget, pruner, sparsity, seed)


def run_rows(wanted: Sequence[Row], work: Path, results: Path, dtype: str) -> None:
    """Do what is not done, one row after another."""
    do(wanted, results, "folder", lambda row: row.folder, lambda row: figures(row, work, dtype))


def figures(row: Row, work: Path, dtype: str) -> dict[str, Any]:
    """Prune and ask, and give what came out."""
    reuse = [str(folder) for folder in sorted(work.glob("*")) if (folder / "report.json").is_file()]
    settings = [*row.settings, f"model.dtype={dtype}", *([f"reuse=[{', '.join(reuse)}]"] if reuse else [])]
    report = ecoflap.run("quickstart-llava", folder=work / row.folder, set_=settings).report
    shutil.rmtree(work / row.folder / "model", ignore_errors=True)
    measures = {"dense": report.measures.dense, "pruned": report.measures.pruned}
    return {
        "folder": row.folder, **asdict(row), "dtype": dtype, "sparsity_of": dict(report.towers),
        **{when: {name: round(one.value, 5) for name, one in found.items()} for when, found in measures.items()},
        "standard_error": round(report.measures.pruned["vqa"].standard_error or 0, 5),
        "questions": report.measures.pruned["vqa"].n,
        "seconds": {stage.stage: round(stage.seconds, 1) for stage in report.stages},
    }  # fmt: skip


def table(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Write the lines of a Markdown table, mean ± standard deviation over the seeds that there are."""
    dense = lines[0]["dense"]["vqa"]
    yield f"vqa, dense {dense:.4f} ({lines[0]['questions']:,} questions), of vision / language in % beside it:\n"
    yield f"| budget → pruner | {' | '.join(f'{100 * share:.0f} %' for share in SPARSITIES)} |"
    yield f"|---|{'---:|' * len(SPARSITIES)}"
    for pruner, budget in product(PRUNERS, BUDGETS):
        cells = [cell([x for x in lines if matches(x, budget, pruner, share)]) for share in SPARSITIES]
        if set(cells) != {"–"}:
            yield f"| {budget} → {pruner} | {' | '.join(cells)} |"


def by_type(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Write a second table: each seed's share of right answers, and the mean over seeds for each type of question."""
    kinds = [name for name in lines[0]["pruned"] if name.startswith("vqa ") and name != "vqa ended"]
    yield f"| budget → pruner | sparsity | right, seed by seed | {' | '.join(name[4:] for name in kinds)} |"
    yield f"|---|---:|---|{'---:|' * len(kinds)}"
    yield f"| dense | 0 % | {lines[0]['dense']['vqa']:.4f} | {shares([line['dense'] for line in lines[:1]], kinds)} |"
    for pruner, share, budget in product(PRUNERS, SPARSITIES, BUDGETS):
        found = sorted((x for x in lines if matches(x, budget, pruner, share)), key=lambda line: int(line["seed"]))
        if found:
            right = ", ".join(f"{line['pruned']['vqa']:.4f}" for line in found)
            own = shares([line["pruned"] for line in found], kinds)
            yield f"| {budget} → {pruner} | {100 * share:.0f} % | {right} | {own} |"


def shares(found: Sequence[Mapping[str, float]], kinds: Sequence[str]) -> str:
    return " | ".join(f"{mean(one[kind] for one in found):.3f}" for kind in kinds)


def matches(line: Mapping[str, Any], budget: str, pruner: str, sparsity: float) -> bool:
    return bool((line["budget"], line["pruner"], line["sparsity"]) == (budget, pruner, sparsity))


def cell(lines: Sequence[Mapping[str, Any]]) -> str:
    """Write one cell: ``0.985 ± 0.002 (1 / 59)``; with one seed no deviation."""
    if not lines:
        return "–"
    values = [line["pruned"]["vqa"] for line in lines]
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    towers = [f"{100 * mean(line['sparsity_of'][tower] for line in lines):.0f}" for tower in lines[0]["sparsity_of"]]
    return f"{mean(values):.3f}{spread} ({' / '.join(towers)})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune the LLaVA in the box by every method.")
    parser.add_argument("work", type=Path, nargs="?", help="a folder for the runs")
    parser.add_argument("results", type=Path, help="the file with a line for each row")
    parser.add_argument("--seeds", type=int, nargs="+", choices=SEEDS, default=SEEDS, help="do the rows of these alone")
    parser.add_argument("--only", nargs="+", help="do these rows alone, by their folders' names")
    parser.add_argument("--dtype", default="bfloat16", help="what the model is computed in")
    parser.add_argument("--table", action="store_true", help="write the table of what is there, and run nothing")
    asked = parser.parse_args()
    if asked.table:
        lines = read(asked.results)
        print("\n".join([*table(lines), "", *by_type(lines)]))
    else:
        wanted = [row for row in rows() if row.seed in asked.seeds and (not asked.only or row.folder in asked.only)]
        run_rows(wanted, asked.work, asked.results, asked.dtype)


if __name__ == "__main__":
    main()
