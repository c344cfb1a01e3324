"""What a correction of low rank gives back of 2:4: SmolLM2 pruned by two methods, and with ``eora`` of three ranks.

    python benchmarks/low_rank.py runs/low-rank benchmarks/results/low_rank.jsonl [--seeds 0 1]
    python benchmarks/low_rank.py --table benchmarks/results/low_rank.jsonl

Perplexity is of 32 windows of 512 tokens of held-out Wikipedia articles. The correction is added to the pruned weights
in memory, B A as PEFT adds it, so that nothing but perplexity is measured of it. All is in float32. A row that is there
is not done again, so this may be stopped and started as one likes.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from result_rows import do, parser, read
from safetensors.torch import load_file
from torch import Tensor, nn

import ecoflap
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.protocols import ignore
from ecoflap.exporters.eora import WEIGHTS
from ecoflap.plugins.datasets.text import Text
from ecoflap.plugins.evaluators.perplexity import Perplexity

RANKS = (16, 64, 128)
PRUNERS = ("wanda", "admm")
WIKIPEDIA = Path(__file__).parents[1] / "recipes" / "data" / "wikipedia.jsonl"
HELD_OUT = Text(WIKIPEDIA, portion=(0.7, 1), order="spread", samples=32, sequence_length=512)


@dataclass(frozen=True)
class Row:
    """One pruned model with all its corrections."""

    pruner: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.pruner} {self.seed}"


def figures(row: Row, work: Path) -> dict[str, Any]:
    """Prune, correct, and measure."""
    exports = ", ".join(f"{{use: eora, rank: {rank}}}" for rank in RANKS)
    held = f"{{use: text, path: '{WIKIPEDIA}', portion: [0.7, 1], order: spread, samples: 32, sequence_length: 512}}"
    asked = [
        "model.dtype=float32", "sparsity=2:4", "score=null", "allocate=uniform", f"prune={row.pruner}",
        f"seed={row.seed}", f"evaluate={{use: perplexity, data: {held}}}", f"export=[{exports}]",
    ]  # fmt: skip
    folder = work / row.name.replace(" ", "-")
    run = ecoflap.run("box/smollm2", folder=folder, set_=asked)
    measures, parameters = run.report.measures, sum(one.numel() for one in run.model.parameters())
    found: dict[str, Any] = {"dense": measures.dense["perplexity"].value, "0": measures.pruned["perplexity"].value}
    for number, rank in enumerate(RANKS, 1):
        correction = load_file(folder / "exports" / ("eora" if number == 1 else f"eora-{number}") / WEIGHTS)
        with corrected(run.model, correction):
            adapter = LlamaAdapter()
            adapter.processor = open_processor(folder)
            found[str(rank)] = Perplexity(HELD_OUT)(run.model, adapter, ignore)["perplexity"].value
        found[f"numbers {rank}"] = sum(one.numel() for one in correction.values()) / parameters
    shutil.rmtree(folder / "model", ignore_errors=True)
    return {"name": row.name, **asdict(row), **found}


def open_processor(folder: Path) -> Any:
    """Give the tokenizer that lies with the pruned model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "model")


@contextmanager
def corrected(model: nn.Module, correction: Mapping[str, Tensor]) -> Iterator[None]:
    """Add B A to the pruned weights for a while."""
    ends = ("base_model.model.", ".lora_A.weight")
    modules = [name.removeprefix(ends[0]).removesuffix(ends[1]) for name in correction if name.endswith(ends[1])]
    before = {module: model.get_parameter(f"{module}.weight").detach().clone() for module in modules}
    with torch.no_grad():
        for module in modules:
            a, b = (correction[f"{ends[0]}{module}.lora_{one}.weight"] for one in "AB")
            model.get_parameter(f"{module}.weight").add_(b @ a)
    yield
    with torch.no_grad():
        for module, weight in before.items():
            model.get_parameter(f"{module}.weight").copy_(weight)


def table(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Write a Markdown table: of each pruner the mean over seeds, by rank."""
    shares = [f"rank {rank} ({lines[0][f'numbers {rank}']:.0%} more numbers)" for rank in RANKS]
    yield f"| 2:4 by (dense {lines[0]['dense']:.2f}) | as it is | {' | '.join(shares)} |"
    yield f"|---|{'---:|' * (1 + len(RANKS))}"
    for pruner in PRUNERS:
        mine = [line for line in lines if line["pruner"] == pruner]
        if mine:
            cells = " | ".join(_cell([line[str(rank)] for line in mine]) for rank in (0, *RANKS))
            yield f"| `{pruner}` | {cells} |"


def _cell(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}{f' ± {stdev(values):.1f}' if len(values) > 1 else ''}"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    asked = arguments.parse_args()
    if asked.table:
        print("\n".join(table(read(asked.results))))
        return
    asked.work.mkdir(parents=True, exist_ok=True)
    rows = (Row(pruner, seed) for seed, pruner in product(asked.seeds, PRUNERS))
    do(rows, asked.results, "name", lambda row: row.name, lambda row: figures(row, asked.work))


if __name__ == "__main__":
    main()
