"""The table of docs/scale.md: what the plan predicts of models that no machine here has room for.

    python benchmarks/predicted.py

Nothing is run. The configurations are those of LLaMA 2, written down here because its repositories ask for a licence;
no weight and no tokenizer is read, and a minute goes by.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ecoflap.core.needs.disk import disk_needs
from ecoflap.core.needs.memory import Places, memory_needs
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.preparing.prepared import Prepared
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import Registry, load_registry
from ecoflap.core.text.numbers import bytes_text

SHAPES = {
    "7 B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13 B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "70 B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}
EIGHT_KEYS = ("70 B",)
"""Those whose queries share eight keys and values; the others have one of each for every query."""
IN_MEMORY, OFFLOADED, SPILLED = Places(False, False), Places(True, False), Places(True, True)
PLACES = {"in memory": IN_MEMORY, "`offload: disk`": OFFLOADED, "`offload: disk` and `keep: disk`": SPILLED}


def main() -> None:
    print("\n".join(table()))


def table() -> Iterator[str]:
    """The lines of a Markdown table, and below it one of its rows for scores that are taken of all layers at once."""
    registry = load_registry()
    with TemporaryDirectory() as folder:
        plans = {
            name: {prune: plan(Path(folder), name, prune, registry) for prune in ("wanda", "sparsegpt")}
            for name in SHAPES
        }
        joint = [plan(Path(folder), name, "wanda", registry, joint=True) for name in SHAPES]
    yield f"| | {' | '.join(plans)} |"
    yield f"|---|{'---|' * len(plans)}"
    for where, places in PLACES.items():
        for prune in ("wanda", "sparsegpt"):
            peaks = [memory_needs(of[prune], places).peak for of in plans.values()]
            yield row(f"memory, `{prune}`, {where}", peaks)
    of_wanda = [of["wanda"] for of in plans.values()]
    yield row(
        "disk for `model/`, masks and a packed export",
        [sum(size for _, size in disk_needs(one, IN_MEMORY).files) for one in of_wanda],
    )
    for prune, where, places in (
        ("wanda", "wherever the model is", OFFLOADED),
        ("sparsegpt", "in memory", IN_MEMORY),
        ("sparsegpt", "`offload: disk`", OFFLOADED),
    ):
        besides = [disk_needs(of[prune], places).meanwhile for of in plans.values()]
        yield row(f"besides until `model/` is complete, `{prune}`, {where}", besides)
    yield "\nWith joint: true, wanda, offload: disk and keep: disk:"
    yield ", ".join(bytes_text(memory_needs(one, SPILLED).peak) for one in joint)


def row(name: str, sizes: list[int]) -> str:
    return f"| {name} | {' | '.join(map(bytes_text, sizes))} |"


def plan(folder: Path, name: str, prune: str, registry: Registry, joint: bool = False) -> Prepared:
    """Plan a run on 128 samples of 2048 tokens by budgets of zeroth order."""
    there = configuration(folder, name)
    recipe = {
        "version": 1,
        "model": {
            "source": f"meta-llama/{there.name}",
            "config": str(there),
            "dtype": "bfloat16",
            "compute": "model",  # on a CPU without products in bfloat16 a block would be widened besides
        },
        "calibration": {"use": "text", "samples": 128, "sequence_length": 2048},
        "sparsity": 0.5,
        "score": {"use": "zeroth_order", "joint": joint},
        "allocate": "ecoflap",
        "prune": prune,
        "export": "safetensors",
    }
    return prepare(parse_recipe(recipe, registry=registry), registry, planning=True)


def configuration(folder: Path, name: str) -> Path:
    """Write the configuration of a model as its repository has it."""
    shape: Mapping[str, Any] = SHAPES[name]
    keys = 8 if name in EIGHT_KEYS else shape["num_attention_heads"]
    written = folder / name.replace(" ", "")
    written.mkdir(exist_ok=True)
    (written / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", **shape,
                "num_key_value_heads": keys, "vocab_size": 32000, "max_position_embeddings": 4096,
                "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
            }
        )
    )  # fmt: skip
    return written


if __name__ == "__main__":
    main()
