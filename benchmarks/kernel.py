"""Measure products with packed weights: python benchmarks/kernel.py [--types bfloat16] [--batches 1 4] [--threads 1 2]

By turns in one process: torch's dense product, our kernel with nothing pruned, and packed at three sparsities; the last
two in int8 as well, with x in 16 bits and in 8, where the base is our kernel in the same int8 with nothing pruned. Each
has several copies of its matrix, together larger than the caches. What memory gives is measured among them, by a sum of
whole numbers as large as the dense matrix, and ``of_read`` is the share of it that a product reads. All of it lies
in huge pages where the system has them, as packed models and those that the command loads do. Times are medians, of the
CPU with one thread and of the clock with more; ratios are of those. A line of JSON for each is appended to
benchmarks/results/kernel.jsonl, with the machine and how busy it was.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it when it is imported

import torch
from torch import Tensor

from ecoflap.core.dtypes import dtype_name
from ecoflap.core.kernel.library import VALUES, Values
from ecoflap.core.kernel.matrix import pack_dense
from ecoflap.core.kernel.order import shape_of
from ecoflap.core.kernel.packed_linear import packed_linear
from ecoflap.core.kernel.route import route

RESULTS = Path(__file__).with_name("results") / "kernel.jsonl"
SPARSITIES = (0.0, 0.5, 0.6, 0.7)
READ = "read"
"""The name of what only reads."""
MEMORY = 256 << 20
"""Bytes of copies of one matrix."""


def main() -> None:
    asked = arguments()
    torch.manual_seed(0)
    for threads in asked.threads:
        torch.set_num_threads(threads)
        for dtype in (getattr(torch, name) for name in asked.types):
            for size in asked.sizes:
                matrices = held(*(int(number) for number in size.split("x")), dtype, asked.values)
                for batch in asked.batches:
                    for row in measured(matrices, batch, threads, asked.repeats):
                        told(row)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", nargs="+", default=["bfloat16", "float32", "float16"])
    parser.add_argument("--values", nargs="+", default=list(VALUES), choices=list(VALUES))
    parser.add_argument("--sizes", nargs="+", default=["4096x4096", "11008x4096"], metavar="OUTxIN")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8, 16, 128])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--repeats", type=int, default=15)
    return parser.parse_args()


def held(outputs: int, inputs: int, dtype: torch.dtype, kinds: Sequence[Values]) -> dict[str, list[Tensor]]:
    """Copies of a matrix: dense, and packed at each sparsity, with its values exact and in int8."""
    weight, share = torch.randn(outputs, inputs) * 0.02, torch.rand(outputs, inputs)
    copies = {"torch dense": several(weight.to(dtype))}
    for values in kinds:
        for sparsity in SPARSITIES:
            packed = pack_dense(weight.masked_fill(share < sparsity, 0).to(dtype), values=values)
            copies[name_of(sparsity, values)] = several(packed)
    return copies


def name_of(sparsity: float, values: Values) -> str:
    ours, packed = ("ours", "packed") if values == "exact" else (f"our {values}", values)
    return f"{packed} {100 * sparsity:.0f} %" if sparsity else f"{ours} dense"


def several(tensor: Tensor) -> list[Tensor]:
    return [tensor.clone() for _ in range(max(3, MEMORY // (tensor.numel() * tensor.itemsize)))]


def measured(matrices: Mapping[str, list[Tensor]], batch: int, threads: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Give a row for each kind, all measured once before any is measured again."""
    dense = matrices["torch dense"][0]
    x, outputs = torch.randn(batch, dense.shape[1]).to(dense.dtype), len(dense)
    products: dict[str, Callable[[Tensor], Tensor]] = {
        name: (lambda w: packed_linear(x, w, None, outputs)) for name in matrices
    }
    products["torch dense"] = lambda w: torch.nn.functional.linear(x, w)
    products[READ] = lambda w: w.sum()
    read = {READ: several(torch.ones(dense.numel() * dense.itemsize // 8, dtype=torch.int64))}
    seconds: dict[str, list[float]] = {name: [] for name in products}
    load = os.getloadavg()[0]
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            for name, copies in (matrices | read).items():
                taken = timed(lambda n=name, c=copies, r=repeat: products[n](c[r % len(c)]), threads)
                seconds[name] += [taken] * (repeat > 0)
    middle = {name: median(times) for name, times in seconds.items()}
    bandwidth = dense.numel() * dense.itemsize / middle[READ]
    for name, copies in matrices.items():
        nbytes, base = copies[0].numel() * copies[0].itemsize, list(matrices)[1]
        if name != "torch dense":
            shape = shape_of(copies[0])
            base = name_of(0.0, shape.values)
            nbytes = shape.kept * shape.itemsize if shape.keeps_all else nbytes  # its masks are not read
        yield {
            "what": name,
            "ms": round(1e3 * middle[name], 4),
            "over_torch": round(middle["torch dense"] / middle[name], 3),
            "over_ours_dense": round(middle[base] / middle[name], 3),
            "bytes": round(nbytes / (dense.numel() * dense.itemsize), 4),
            "gb_per_s": round(nbytes / middle[name] / 1e9, 2),
            "of_read": round(nbytes / middle[name] / bandwidth, 3),
            "out": outputs,
            "in": dense.shape[1],
            "type": dtype_name(dense.dtype),
            "batch": batch,
            "threads": threads,
            "clock": "cpu" if threads == 1 else "wall",
            "path": route().name,
            "machine": machine(),
            "load": [round(load, 2), round(os.getloadavg()[0], 2)],
            "torch": torch.__version__,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def timed(product: Callable[[], Tensor], threads: int) -> float:
    clock = time.thread_time if threads == 1 else time.perf_counter
    begin = clock()
    product()
    return clock() - begin


def machine() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in facts.items()}
    kind = f"{named.get('model name')} family {named.get('cpu family')} model {named.get('model')}"
    return f"{kind}, {os.cpu_count()} cores"


def told(row: Mapping[str, Any]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    shape = f"{row['type']} {row['out']}x{row['in']} batch {row['batch']} threads {row['threads']}"
    ratios = f"{row['over_torch']:.2f} × torch  {row['over_ours_dense']:.2f} × ours with nothing pruned"
    print(f"{shape:44} {row['what']:16} {row['ms']:9.3f} ms {row['gb_per_s']:6.1f} GB/s  {ratios}", flush=True)


if __name__ == "__main__":
    main()
