"""What is better at equal bytes, fewer weights or fewer bits: the models in the box pruned, rounded, and both.

    python benchmarks/equal_bytes.py runs/equal benchmarks/results/equal_bytes.jsonl [--models blip2 clip llava]
    python benchmarks/equal_bytes.py --table benchmarks/results/equal_bytes.jsonl

None of these models was in few bits before. Bits are those of a prunable weight, of which a pruned one takes one, for
the mask; all other weights stay as they are on both sides. Numbers are rounded to the nearest of the levels
−2^(b−1)+1 … 2^(b−1)−1 times a scale in 16 bits for each 32 of a row, those that are kept where the row is pruned. The
scale is the one of eleven with the least squared error, from the largest number down to half of it. GPTQ and AWQ, which
look at data for that, are not tried; pruning looks at data here, so that it has that advantage.

A row that is there is not done again, so this may be stopped and started as one likes.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from result_rows import do, read  # type: ignore[import-not-found]
from torch import Tensor, nn

import ecoflap
from ecoflap.core.contracts.protocols import ignore
from ecoflap.core.model.source import open_source
from ecoflap.core.recipe.load import find_recipe, load_recipe
from ecoflap.core.registry.adapter_for import adapter_for

GROUP = 32
"""Weights that share a scale, which takes half a bit of each so."""
CLIPPED = torch.linspace(1, 0.5, 11)
BITS, SPARSITIES = (8, 6, 5, 4, 3, 2), (0.5, 0.6, 0.7, 0.8)
LLAVA_QUESTIONS = Path(__file__).parents[1] / "examples" / "box" / "llava" / "built" / "questions" / "calibration.jsonl"
TWO_AT_ONCE = f"{{use: image_question_answer, path: '{LLAVA_QUESTIONS}', samples: 128, batch_size: 2}}"
RECIPES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "blip2": ("box/blip2-best", ()),
    "clip": ("box/clip-best", ()),
    "llava": (
        "quickstart-llava",
        ("calibration.samples=128", f"score={{use: first_order, samples: 32, calibration: {TWO_AT_ONCE}}}",
         "prune=admm", "evaluate.data.samples=500"),
    ),
}  # fmt: skip
MEASURES = {"blip2": "vqa", "clip": "TR@1", "llava": "vqa"}


@dataclass(frozen=True)
class Row:
    """One way to make one model smaller.

    :param sparsity: The share of prunable weights that is pruned; 0 for none.
    :param bits: Of a number that is kept; 16 as the model has it.
    """

    model: str
    sparsity: float
    bits: int

    @property
    def name(self) -> str:
        return f"{self.model} {self.sparsity:.0%} {self.bits}"

    @property
    def bits_a_weight(self) -> float:
        mask, scale = (1 if self.sparsity else 0), (16 / GROUP if self.bits < 16 else 0)
        return mask + (1 - self.sparsity) * (self.bits + scale)


def rows(models: Sequence[str]) -> Iterator[Row]:
    for model in models:
        yield Row(model, 0, 16)
        yield from (Row(model, 0, bits) for bits in BITS)
        yield from (Row(model, sparsity, bits) for sparsity, bits in product(SPARSITIES, (16, 8, 6, 4)))


def rounded(weight: Float[Tensor, "outputs inputs"], bits: int) -> Float[Tensor, "outputs inputs"]:
    """Round the numbers of a matrix that are not 0, by scales of :data:`GROUP` of them in a row."""
    found = torch.zeros_like(weight)
    for row, result in zip(weight.float(), found, strict=True):
        kept = row.nonzero()[:, 0]
        numbers = row[kept]
        padded = nn.functional.pad(numbers, (0, -len(numbers) % GROUP)).reshape(-1, GROUP)
        result[kept] = _nearest(padded, bits).reshape(-1)[: len(numbers)].to(result)
    return found


def _nearest(groups: Float[Tensor, "groups size"], bits: int) -> Float[Tensor, "groups size"]:
    """Round each group by the scale, of those that are tried, that changes it least."""
    top = 2 ** (bits - 1) - 1
    scales = (CLIPPED[:, None, None] * groups.abs().amax(1, keepdim=True) / top).half().float().clamp(min=2**-24)
    tried = (groups / scales).round().clamp(-top, top) * scales
    best = (tried - groups).square().sum(2).argmin(0)
    return tried[best, torch.arange(len(groups))]


def figures(row: Row, work: Path) -> dict[str, Any]:
    """Prune, round and evaluate, and give what came out."""
    name, settings = RECIPES[row.model]
    registry = ecoflap.load_registry()
    pruned = work / f"{row.model}-{row.sparsity or SPARSITIES[0]}"
    set_ = [*settings, f"sparsity={row.sparsity or SPARSITIES[0]}", "export=null"]
    earlier = [str(folder) for folder in sorted(work.glob(f"{row.model}-*")) if (folder / "report.json").is_file()]
    set_ += [f"reuse=[{', '.join(earlier)}]"] if earlier else []
    done = ecoflap.run(name, folder=pruned, set_=set_)
    recipe = load_recipe(find_recipe(name), set_=set_, registry=registry)
    source = open_source(str(recipe.model.source), Path.cwd())
    adapter = adapter_for(source, registry)
    dense = adapter.load(source, next(done.model.parameters()).dtype, "cpu").eval()
    model = done.model if row.sparsity else dense
    if row.bits < 16:
        state = dict(model.named_parameters())
        with torch.no_grad():
            for layer in done.plan.layers:
                state[layer].copy_(rounded(state[layer], row.bits))
    found = recipe.evaluate[0].built(model, adapter, ignore)[MEASURES[row.model]]
    return {
        "name": row.name, **asdict(row), "bits a weight": round(row.bits_a_weight, 3), "measure": MEASURES[row.model],
        "value": round(found.value, 5), "standard error": round(found.standard_error or 0, 5), "of": found.n,
    }  # fmt: skip


def table(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Write a Markdown table for each model, from many bits to few."""
    for model in dict.fromkeys(line["model"] for line in lines):
        own = sorted((line for line in lines if line["model"] == model), key=lambda line: -line["bits a weight"])
        yield f"| {model}: bits a weight | pruned | bits of a kept number | {own[0]['measure']} |"
        yield "|---:|---:|---:|---:|"
        for line in own:
            value = f"{line['value']:.3f} ± {line['standard error']:.3f}"
            yield f"| {line['bits a weight']:.2f} | {line['sparsity']:.0%} | {line['bits']} | {value} |"
        yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Hold pruning against rounding at equal bytes.")
    parser.add_argument("work", type=Path, nargs="?", help="a folder for the runs")
    parser.add_argument("results", type=Path, help="the file with a line for each row")
    parser.add_argument("--models", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--table", action="store_true", help="write the tables of what is there, and run nothing")
    asked = parser.parse_args()
    if asked.table:
        print("\n".join(table(read(asked.results))))
    else:
        asked.work.mkdir(parents=True, exist_ok=True)
        do(rows(asked.models), asked.results, "name", lambda row: row.name, lambda row: figures(row, asked.work))


if __name__ == "__main__":
    main()
