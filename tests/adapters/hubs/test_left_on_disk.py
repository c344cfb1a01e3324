"""Models of transformers whose weights stay in files: also in one that is larger than memory and swap."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pico_blip2
import pico_causal
import pico_t5
import pytest
import torch
from offloaded import hold_both_copies, pico_model
from safetensors.torch import load_file, save_file
from sparse import memory_and_swap, write_zeros

from ecoflap.adapters.hubs.hugging_face import load_transformers_model
from ecoflap.core.model.anatomy import Source
from ecoflap.core.model.mapped_weights import MappedWeights
from ecoflap.core.model.source import open_source

transformers = pytest.importorskip(
    "transformers", minversion="5.0", reason="it leaves weights on the disk from version 5 on"
)
pytest.importorskip("accelerate")


@pytest.fixture
def larger_than_memory(tmp_path: Path) -> Source:
    """A Llama of zeros in one file, each matrix of which is less than memory."""
    inside = 1 << 19  # as wide as a configuration may say
    width = 8 * (memory_and_swap() // (4 * 2 * inside * 8) + 1)  # a quarter of memory for each of the six matrices
    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=inside, num_hidden_layers=2, num_attention_heads=2, vocab_size=16,
        dtype=torch.bfloat16,
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "model")
    with torch.device("meta"):
        state = transformers.LlamaForCausalLM(config).state_dict()
    stored = {name: ("BF16", tuple(one.shape)) for name, one in state.items()}
    write_zeros(tmp_path / "model" / "model.safetensors", stored)
    return open_source(str(tmp_path / "model"), tmp_path)


def test_one_file_that_is_larger_than_memory_is_mapped(larger_than_memory, tmp_path):
    mapped = MappedWeights(tmp_path / "scratch")
    model = load_transformers_model("AutoModelForCausalLM", replace(larger_than_memory, mapped=mapped), None, "cpu")
    assert {name for name, _ in model.named_parameters()} == set(mapped.places)
    assert sum(one.nbytes for one in model.parameters()) > memory_and_swap()
    assert not model.model.layers[1].mlp.up_proj.weight[-1].any()


def both(model: Any, kind: str, dtype: torch.dtype | None, folder: Path) -> list[dict[str, torch.Tensor]]:
    """Save a model, and give its weights as they are read into memory, and as they are mapped."""
    return both_of(lambda there: model.save_pretrained(there, max_shard_size="20KB"), kind, dtype, folder)


def both_of(
    write: Callable[[Path], None], kind: str, dtype: torch.dtype | None, folder: Path
) -> list[dict[str, torch.Tensor]]:
    """Give the weights of a model that is written so as they are read into memory, and as they are mapped."""
    write(folder / "model")
    source = open_source(str(folder / "model"), folder)
    mapped = MappedWeights(folder / "scratch")
    loaded = [load_transformers_model(kind, replace(source, mapped=one), dtype, "cpu") for one in (None, mapped)]
    buffers = {name for name, _ in loaded[1].named_buffers()}
    assert {name for name, _ in loaded[1].named_parameters()} == set(mapped.places) - buffers
    return [dict(one.state_dict()) for one in loaded]


def assert_same_bits(here: dict[str, torch.Tensor], there: dict[str, torch.Tensor]) -> None:
    assert {name: one.dtype for name, one in here.items()} == {name: one.dtype for name, one in there.items()}
    assert [name for name, one in here.items() if not torch.equal(one, there[name])] == []


KEPT_WIDE = {
    "t5": (pico_t5.build, "T5ForConditionalGeneration", torch.float16, "wo"),
    "blip2": (pico_blip2.build, "Blip2ForConditionalGeneration", torch.float16, "qformer"),
    "gpt_oss": (pico_causal.FAMILIES["gpt_oss"].build, "AutoModelForCausalLM", torch.float16, "norm"),
    "deepseek_v3": (pico_causal.FAMILIES["deepseek_v3"].build, "AutoModelForCausalLM", torch.bfloat16, "gate.weight"),
}
"""Models of whose weights transformers holds some in float32: how each is built and read, in which type, and which."""


@pytest.mark.parametrize("name", KEPT_WIDE)
@pytest.mark.parametrize("asked", [True, False], ids=["cast", "stored"])
def test_what_transformers_keeps_in_float32_is_float32_on_the_disk_too(name, asked, tmp_path):
    build, kind, dtype, kept = KEPT_WIDE[name]
    model = build() if asked else build().to(dtype)
    memory, disk = both(model, kind, dtype if asked else None, tmp_path)
    assert_same_bits(disk, memory)
    wide = {name for name, one in disk.items() if one.dtype == torch.float32}
    assert wide
    assert wide < set(disk)
    assert any(kept in one for one in wide)


@pytest.mark.parametrize(
    ("differ", "names"), [(0.0, ["model.embed_tokens.weight"]), (1.0, ["lm_head.weight", "model.embed_tokens.weight"])]
)
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_both_copies_of_a_tied_weight_in_the_files_are_tied_where_they_are_equal(differ, names, dtype, tmp_path):
    """One that differs is not, whatever the configuration says: so transformers has it in memory."""
    pico_model("llama-tied").save_pretrained(tmp_path / "model")
    hold_both_copies(tmp_path / "model", differ)
    source, mapped = open_source(str(tmp_path / "model"), tmp_path), MappedWeights(tmp_path / "scratch")
    memory, disk = (
        load_transformers_model("AutoModelForCausalLM", replace(source, mapped=one), dtype, "cpu")
        for one in (None, mapped)
    )
    assert_same_bits(dict(disk.state_dict()), dict(memory.state_dict()))
    assert (disk.lm_head.weight is disk.model.embed_tokens.weight) == (not differ)
    assert [name for name in sorted(mapped.places) if "layers" not in name and "norm" not in name] == names
    assert disk.all_tied_weights_keys == memory.all_tied_weights_keys
    assert {name for name, _ in disk.named_parameters()} == {name for name, _ in memory.named_parameters()}


def shards_below(index: Path) -> None:
    """Move the shards of a checkpoint into a folder below that of its index."""
    told = json.loads(index.read_text())
    below = index.parent / "shards"
    below.mkdir()
    for name in set(told["weight_map"].values()):
        (index.parent / name).rename(below / name)
    told["weight_map"] = {weight: f"shards/{name}" for weight, name in told["weight_map"].items()}
    index.write_text(json.dumps(told))


def another_shard_named(index: Path) -> None:
    """Have the index of a checkpoint name another of its shards for each weight of the first one."""
    told = json.loads(index.read_text())
    first, second, *_ = sorted(set(told["weight_map"].values()))
    others = {weight: second if name == first else name for weight, name in told["weight_map"].items()}
    told["weight_map"] = {**others, "of.no.shard": first}  # so that transformers reads that one, too
    index.write_text(json.dumps(told))


def in_two_shards(index: Path) -> None:
    """Write one weight into the last shard, too, with other numbers; the index still names the first one."""
    told = json.loads(index.read_text())
    first, *_, last = sorted(set(told["weight_map"].values()))
    weight = next(weight for weight, name in told["weight_map"].items() if name == first)
    numbers, others = load_file(index.parent / first)[weight], load_file(index.parent / last)
    save_file({**others, weight: numbers + 1}, index.parent / last, {"format": "pt"})


@pytest.mark.parametrize("change", [shards_below, another_shard_named, in_two_shards])
def test_weights_are_mapped_from_the_shards_that_hold_them_whatever_the_index_says(change, tmp_path):
    def write(folder: Path) -> None:
        pico_model("llama").save_pretrained(folder, max_shard_size="20KB")
        change(folder / "model.safetensors.index.json")

    memory, disk = both_of(write, "AutoModelForCausalLM", None, tmp_path)
    assert_same_bits(disk, memory)
