"""Recipes of models that stay in their files, and what two runs have to have in common."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import ecoflap
from ecoflap.core.contracts.events import LayerPruned


def pico_model(kind: str) -> Any:
    """Build a pico model: with a matrix a weight, with tied ones, or with experts in one of two layouts."""
    import pico_causal
    import pico_decoder

    return {**pico_causal.FAMILIES, **pico_decoder.FAMILIES}[kind].build()


def recipe_of(kind: str, folder: Path, **keys: Any) -> dict[str, Any]:
    """Save a pico model in several files, and give a recipe of it.

    :param keys: In the place of its own; None takes one out.
    """
    from pico_words import tokenizer

    pico_model(kind).save_pretrained(folder / "dense", max_shard_size="20KB")
    tokenizer().save_pretrained(folder / "dense")
    lines = (" ".join(f"w{(7 * line + word) % 40}" for word in range(30)) for line in range(20))
    (folder / "text.txt").write_text("\n".join(lines))
    text = {"use": "text", "path": str(folder / "text.txt"), "samples": 4, "sequence_length": 16}
    recipe = {
        "version": 1, "model": {"source": str(folder / "dense"), "offload": "disk"}, "calibration": text,
        "sparsity": 0.5, "score": {"use": "zeroth_order", "samples": 2, "granularity": "block"}, "allocate": "ecoflap",
        "prune": "sparsegpt",
        "evaluate": {"use": "perplexity", "data": text}, "export": "safetensors",
    }  # fmt: skip
    return {key: value for key, value in {**recipe, **keys}.items() if value is not None}


def hold_both_copies(folder: Path, differ: float = 0.0) -> None:
    """Put the weights of a model whose head is tied into one file that holds the head too.

    :param differ: By how much one of its weights is another than the embedding's.
    """
    weights = weights_in(folder)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["lm_head.weight"][-1, -1] += differ
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def in_memory(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Give the same recipe with the model in memory."""
    model = {key: value for key, value in recipe["model"].items() if key != "offload"}
    return {**recipe, "model": model}


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    """Read all weights of a model."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def stopping_behind(name: str) -> Any:
    """Give an observer that stops a run when a layer was pruned."""

    def stop(event: Any) -> None:
        if isinstance(event, LayerPruned) and name in event.name:
            raise KeyboardInterrupt

    return stop


def assert_alike(a: Path, b: Path) -> None:
    """Hold two runs to the same masks, the same weights under the same names, and the same figures."""
    assert (a / "masks.safetensors").read_bytes() == (b / "masks.safetensors").read_bytes()
    there, here = weights_in(a / "model"), weights_in(b / "model")
    assert {name: one.dtype for name, one in there.items()} == {name: one.dtype for name, one in here.items()}
    assert [name for name, one in there.items() if not torch.equal(one, here[name])] == []
    reports = [ecoflap.read_report(folder / "report.json") for folder in (a, b)]
    assert reports[0].measures == reports[1].measures
