"""Show what packed weights do for a language model: tokens a second and memory, dense and packed, on this machine.

    python examples/compare_speed.py runs/demo-ecoflap-60/exports/safetensors [--tokens 64] [--threads 2]

Each row is a process of its own, since what a model holds in memory can only be told of a whole one. All say the same
number of tokens, greedily; time is that of the fastest of three. How much of it zeros bring, and how much a
product that suits one token better than torch's, is told apart by benchmarks/runtime.py and not here: this is what a
user sees.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

WAYS: dict[str, dict[str, str]] = {
    "dense": {"weights": "dense"},
    "packed": {"weights": "packed", "embeddings": "packed"},
    "packed, int8": {"weights": "packed-int8", "embeddings": "packed-int8"},
    "packed, int8, x in int8": {"weights": "packed-int8a8", "embeddings": "packed-int8a8"},
}
PROMPT = "The old harbour of the city"


def measured(folder: Path, way: str, tokens: int, threads: int) -> dict[str, Any]:
    """Load the model one way, and say what it took to say some tokens, and which."""
    import torch
    from transformers import AutoTokenizer

    import ecoflap

    torch.set_num_threads(threads)
    torch.nn.functional.linear(torch.ones(4, 4), torch.ones(4, 4))
    before = resident()
    model: Any = ecoflap.load_model(folder, **WAYS[way])  # type: ignore[arg-type]
    model.generation_config.eos_token_id = None  # so that each says as many
    held = resident() - before
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = tokenizer(PROMPT, return_tensors="pt")
    seconds = []
    with torch.inference_mode():
        for _ in range(3):
            start = time.perf_counter()
            said = model.generate(**given, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
            seconds.append(time.perf_counter() - start)
    return {"speed": tokens / min(seconds), "memory": held, "said": tokenizer.decode(said[0], skip_special_tokens=True)}


def resident() -> float:
    """Megabytes of memory that the process holds; Linux alone says it."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return float("nan")
    lines = dict(line.split(":", 1) for line in status.read_text("utf-8").splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024


def in_a_process(folder: Path, way: str, tokens: int, threads: int) -> dict[str, Any]:
    arguments = (str(folder), "--way", way, "--tokens", str(tokens), "--threads", str(threads))
    settings = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, env=settings, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(rows: Mapping[str, Mapping[str, Any]], threads: int) -> Table:
    made = Table(title=f"{PROMPT} … – greedily, {threads} thread{'s' if threads > 1 else ''}")
    for name in ("weights", "tokens/s", "of dense", "memory, MB", "of dense"):
        made.add_column(name, justify="left" if name == "weights" else "right")
    base = rows["dense"]
    for way, row in rows.items():
        ratios = (row["speed"] / base["speed"], row["memory"] / base["memory"])
        made.add_row(way, f"{row['speed']:.1f}", f"{ratios[0]:.2f}", f"{row['memory']:.0f}", f"{ratios[1]:.2f}")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a packed export of a causal language model")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--way", choices=list(WAYS), help="only this one, as a line of JSON")
    asked = parser.parse_args()
    if asked.way:
        print(json.dumps(measured(asked.folder, asked.way, asked.tokens, asked.threads)))
        return
    if not asked.folder.is_dir():
        sys.exit(f"{asked.folder} is no folder: name the one that the exporter safetensors wrote a language model into")
    rows = {way: in_a_process(asked.folder, way, asked.tokens, asked.threads) for way in WAYS}
    Console().print(table(rows, asked.threads))
    for way, row in rows.items():
        Console().print(f"[bold]{way}:[/] {' '.join(row['said'].split())}", highlight=False)


if __name__ == "__main__":
    main()
