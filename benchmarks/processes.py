"""One run in one process and in several of one thread each: seconds, CPU seconds and memory of each, and equal bits.

    python benchmarks/processes.py smollm2 blip2 [--processes 2] [--repeats 3] [--set KEY=VALUE ...]

Runs alternate, so that what else a machine does falls on both. Beside the ratio of seconds stands that of CPU seconds:
those of the one process over the most of any of several, which is what the first comes to on an idle machine with a
core for each. CPU seconds of waiting for others are none.

A machine's processors take caches, memory and clock from each other, so that even runs that know nothing of each other
are slower at once than alone. As many of one process each are run at once too: what all of them do in the time is the
most that any sharing of the work could be faster here, and is printed beside it as the ceiling.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

RECIPES = Path(__file__).parents[1] / "recipes"
SAME = ("plan.json", "scores.jsonl", "masks.safetensors", "model/model.safetensors")
MODELS = {
    "smollm2": (
        "box/smollm2.yaml",
        "calibration.samples=16",
        "calibration.batch_size=1",
        "score.calibration.batch_size=1",
        "prune=sparsegpt",
    ),
    "blip2": ("box/blip2.yaml", "score.calibration.samples=32", "prune=sparsegpt"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="set_")
    asked = parser.parse_args()
    for model in asked.models:
        with TemporaryDirectory() as folder:
            report(model, asked.processes, list(measured(model, asked, Path(folder))))


def measured(model: str, asked: argparse.Namespace, folder: Path) -> Iterator[dict[int, list[dict[str, Any]]]]:
    """Give what each process of a run measured, by how many there were, for each repeat; by 0 of runs at once."""
    for _ in range(asked.repeats):
        found = {size: one_run(model, size, asked.set_, folder / str(size)) for size in (1, asked.processes)}
        yield {**found, 0: at_once(model, asked.processes, asked.set_, folder)}
        same = {name: _bytes(folder / "1" / name) == _bytes(folder / str(asked.processes) / name) for name in SAME}
        print(f"{model}: the same in 1 and {asked.processes} processes: {same}", flush=True)


def _bytes(file: Path) -> bytes:
    """Give what a file holds; nothing where there is none, as there are no scores with ``--set score=null``."""
    return file.read_bytes() if file.is_file() else b""


def one_run(model: str, size: int, set_: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    _ended(_started(model, size, set_, folder))
    return [_measured(folder, rank) for rank in range(size)]


def at_once(model: str, runs: int, set_: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """Do several runs of one process each at the same time, which know nothing of each other."""
    own = [folder / f"alone{number}" for number in range(runs)]
    for process in [_started(model, 1, set_, one) for one in own]:
        _ended(process)
    return [_measured(one, 0) for one in own]


def _started(model: str, size: int, set_: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, __file__, "--several", str(size), model, str(folder), *set_], env=environment
    )


def _ended(process: subprocess.Popen[bytes]) -> None:
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, process.args)


def _measured(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder.with_name(f"{folder.name}-{rank}.json").read_text("utf-8"))
    return found


def report(model: str, several: int, repeats: Sequence[Mapping[int, Sequence[Mapping[str, Any]]]]) -> None:
    print(f"\n{model}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, medians of {len(repeats)}")
    for stage in [stage for stage in ("coarse", "fine") if stage in repeats[0][1][0]]:
        alone, together, apart = ([_worst(one[size], stage) for one in repeats] for size in (1, several, 0))
        (wall, cpu), (walls, cpus) = (
            [median(column) for column in zip(*found, strict=True)] for found in (alone, together)
        )
        ratios = [[a[n] / b[n] for a, b in zip(alone, together, strict=True)] for n in (0, 1)]
        by_wall, by_cpu = (median(one) for one in ratios)
        print(f"  {stage:7} {wall:7.1f} s → {walls:7.1f} s: {by_wall:.2f}×", end="")
        print(f";  CPU {cpu:7.1f} s → {cpus:7.1f} s: {by_cpu:.2f}×", end="")
        ceiling = median(several * a[0] / b[0] for a, b in zip(alone, apart, strict=True))
        print(f";  ceiling, of {several} runs at once: {ceiling:.2f}×")
    for size in (1, several):
        peaks = [max(one["peak"] for one in repeat[size]) for repeat in repeats]
        print(f"  memory of a process, of {size}: {median(peaks) / 1e9:.2f} GB")


def _worst(ranks: Sequence[Mapping[str, Any]], stage: str) -> tuple[float, float]:
    return max(one[stage]["wall"] for one in ranks), max(one[stage]["cpu"] for one in ranks)


def work(model: str, folder: Path, set_: Sequence[str]) -> None:
    """Be one process of a run, and write what it measured."""
    from ecoflap.core.machine.environment import peak_memory
    from ecoflap.core.ranks.join import joined
    from ecoflap.core.run import stages
    from ecoflap.core.run.pipeline import run

    found: dict[str, Any] = {}
    for stage, name in (("coarse", "score"), ("fine", "prune_and_refine")):
        setattr(stages, name, _timed(getattr(stages, name), found, stage))
    recipe, *own = MODELS[model]
    with joined() as ranks:
        run(
            RECIPES / recipe, set_=[*own, "evaluate=null", "export=null", *set_], folder=folder, fresh=True, ranks=ranks
        )
    found["peak"] = peak_memory()
    folder.with_name(f"{folder.name}-{ranks.rank}.json").write_text(json.dumps(found), "utf-8")


def _timed(function: Callable[..., Any], found: dict[str, Any], stage: str) -> Callable[..., Any]:
    def timed(*args: Any, **keys: Any) -> Any:
        with _clock(found, stage):
            return function(*args, **keys)

    return timed


@contextmanager
def _clock(found: dict[str, Any], stage: str) -> Iterator[None]:
    wall, cpu = perf_counter(), process_time()
    yield
    found[stage] = {"wall": perf_counter() - wall, "cpu": process_time() - cpu}


if __name__ == "__main__":
    if sys.argv[1] == "--several" and sys.argv[2] != "1":
        from ecoflap.core.ranks.launch import launch

        sys.exit(launch(int(sys.argv[2]), [sys.executable, __file__, "--several", "1", *sys.argv[3:]]))
    if sys.argv[1] == "--several":
        work(sys.argv[3], Path(sys.argv[4]), sys.argv[5:])
    else:
        main()
