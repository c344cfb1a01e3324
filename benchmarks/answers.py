"""Answers a second of the vision-language models in the box: dense, by our kernel with nothing pruned, and packed.

    python benchmarks/answers.py make runs/answers --models blip2 llava
    python benchmarks/answers.py measure runs/answers --models blip2 llava --threads 1 2 --rounds 3
    python benchmarks/answers.py table

``make`` prunes each by the settings of its quickstart with SparseGPT; the LLaVA has been joined before
(examples/box/llava/build_llava.py). ``measure`` starts a process for each way to run it, all once before any is started
again, and appends a line for each to benchmarks/results/answers.jsonl. One question is asked at a time, with its
picture: what is measured is the whole answer, from pixels to text. Accuracy is that of the questions that were asked.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from kernel import machine  # type: ignore[import-not-found]
from one_runtime import pack_whole, resident  # type: ignore[import-not-found]

RESULTS = Path(__file__).with_name("results") / "answers.jsonl"
SPARSITIES = (0.5, 0.6, 0.7)
RECIPES = {"blip2": "quickstart", "llava": "quickstart-llava"}
WEIGHTS = {"packed": "packed", "packed int8": "packed-int8", "packed int8a8": "packed-int8a8"}


def ways() -> Iterator[tuple[str, str]]:
    """Give each way and the folder that it is read from."""
    yield "torch dense", "0.5"
    yield "ours dense", "0.5"
    for name in WEIGHTS:
        for sparsity in SPARSITIES:
            yield f"{name} {sparsity:.0%}", str(sparsity)


def make(folder: Path, models: Sequence[str]) -> None:
    import ecoflap

    for model in models:
        for sparsity in SPARSITIES:
            place = folder / model / str(sparsity)
            if not (place / "report.json").is_file():
                own = [f"sparsity={sparsity}", "prune=sparsegpt", "evaluate=null", "export=safetensors"]
                first = folder / model / str(SPARSITIES[0])
                own += [f"reuse={first}"] if sparsity != SPARSITIES[0] else []  # its scores
                ecoflap.run(RECIPES[model], folder=place, set_=own)
                shutil.rmtree(place / "model")


def measured(model: str, way: str, place: Path, questions: int, threads: int) -> dict[str, float]:
    """Load a model one way and ask it questions, one at a time."""
    import torch

    import ecoflap
    from ecoflap.core.recipe.load import find_recipe, load_recipe

    torch.set_num_threads(threads)
    torch.nn.functional.linear(torch.ones(4, 4), torch.ones(4, 4))
    asked = [f"evaluate.data.samples={questions}", "evaluate.batch_size=1"]
    recipe = load_recipe(find_recipe(RECIPES[model]), set_=asked, registry=ecoflap.load_registry())
    before = resident()
    loaded, adapter = load(way, place / "exports" / "safetensors")
    held = resident() - before
    wall, cpu = time.perf_counter(), time.process_time()
    found = recipe.evaluate[0].built(loaded, adapter, lambda note: None)
    times = {"wall": (time.perf_counter() - wall) / questions, "cpu": (time.process_time() - cpu) / questions}
    return {**times, "resident": held, "vqa": found["vqa"].value, "load": os.getloadavg()[0]}


def load(way: str, folder: Path) -> tuple[Any, Any]:
    """Give the model and its adapter, which has its processor."""
    import ecoflap
    from ecoflap.core.model.source import open_source
    from ecoflap.core.registry.adapter_for import adapter_for

    adapter = adapter_for(open_source(str(folder), Path.cwd()), ecoflap.load_registry())
    name = way.rpartition(" ")[0]
    settings: dict[str, Any] = {"weights": WEIGHTS[name], "embeddings": WEIGHTS[name]} if name in WEIGHTS else {}
    model = ecoflap.load_model(folder, adapter=adapter, **settings)
    if way == "ours dense":
        fill_up(model)
    return model, adapter


def fill_up(model: Any) -> None:
    """Have our kernel multiply all that is packed where something is pruned, with every weight kept."""
    import torch

    pruned = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear and is_pruned(module)]
    for name in pruned:
        weight = model.get_submodule(name).weight.data
        weight[weight == 0] = 1e-8  # so that nothing is left out; what is said does not matter
    pack_whole(model, pruned)


def is_pruned(module: Any) -> bool:
    return bool((module.weight == 0).float().mean() >= 0.35)


def measure(folder: Path, models: Sequence[str], threads: Sequence[int], rounds: int, questions: int) -> None:
    for model in models:
        for count in threads:
            for _ in range(rounds):
                for way, place in ways():
                    tell(model, way, started(folder / model / place, model, way, questions, count), count)


def started(place: Path, model: str, way: str, questions: int, threads: int) -> dict[str, Any]:
    """Measure a way in a process of its own."""
    told = [sys.executable, __file__, "one", str(place), "--models", model, "--way", way]
    settings = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    numbers = ["--questions", str(questions), "--threads", str(threads)]
    done = subprocess.run([*told, *numbers], check=True, stdout=subprocess.PIPE, env=settings, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def tell(model: str, way: str, found: dict[str, Any], threads: int) -> None:
    when = datetime.now(UTC).isoformat(timespec="seconds")
    row = {"model": model, "way": way, "threads": threads, **found, "machine": machine(), "when": when}
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(model, way, threads, {name: round(value, 4) for name, value in found.items()}, flush=True)


def table() -> None:
    """Print a table for each model and number of threads."""
    rows = [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()]
    for model, threads in dict.fromkeys((row["model"], row["threads"]) for row in rows):
        own = [row for row in rows if (row["model"], row["threads"]) == (model, threads)]
        print(f"\n{model}, {threads} thread(s), {own[0]['machine']}:\n")
        print("| | answers/s | of torch dense | of ours dense | memory, MB | right |")
        print("|---|---:|---:|---:|---:|---:|")
        for way in dict.fromkeys(row["way"] for row in own):
            print(line_of(way, own))


def line_of(way: str, rows: Sequence[dict[str, Any]]) -> str:
    def middle(name: str, figure: str) -> float:
        return median(row[figure] for row in rows if row["way"] == name)

    speeds = sorted(1 / row["wall"] for row in rows if row["way"] == way)
    ratios = [middle(base, "wall") / middle(way, "wall") for base in ("torch dense", "ours dense")]
    right = "" if way == "ours dense" else f"{middle(way, 'vqa'):.3f}"
    cells = [f"{median(speeds):.2f} ({speeds[0]:.2f} to {speeds[-1]:.2f})", *(f"{ratio:.2f}" for ratio in ratios)]
    cells += [f"{middle(way, 'resident'):.0f}", right]
    return f"| {way} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "measure", "table", "one"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/answers"))
    parser.add_argument("--models", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--way", help="of one")
    asked = parser.parse_args()
    if asked.what == "make":
        make(asked.folder, asked.models)
    elif asked.what == "measure":
        measure(asked.folder, asked.models, asked.threads, asked.rounds, asked.questions)
    elif asked.what == "one":
        print(json.dumps(measured(asked.models[0], asked.way, asked.folder, asked.questions, asked.threads[0])))
    else:
        table()


if __name__ == "__main__":
    main()
