"""Recipes drawn at random: which parts meet in a run is nobody's choice."""

from random import Random
from typing import Any

METRICS = (
    "magnitude", "magnitude_gradient", "multiflow", "optimal_brain_surgeon", "ria", "wanda", "wanda_plus_plus",
    {"use": "wanda", "alpha": 0.5},
)  # fmt: skip
SCORED = (
    "first_order",
    "hill",
    "local_metric",
    "magnitude",
    "outlier_share",
    "sensitivity",
    "weight_metric",
    "zeroth_order",
)
ALLOCATED = {
    "hill": ("alpha",),
    "outlier_share": ("owl",),
    "sensitivity": ("marginal",),
    "weight_metric": ("threshold",),
}
"""By which allocators scores are taken that not every one takes."""
REFINED = (
    ["reconstruct"],
    [{"use": "reconstruct", "steps": 4}],
    ["distill"],
    [{"use": "reconstruct", "each": "subblock", "steps": 3}, {"use": "distill", "steps": 4}],
)


def drawn_keys(random: Random) -> dict[str, Any]:
    """Draw how a model is pruned; None where a recipe leaves a key out."""
    keys: dict[str, Any] = {
        "seed": random.randrange(5),
        "sparsity": random.choice([0.3, 0.5, 0.6, 0.7, "2:4"]),
        "prune": drawn_pruner(random),
        "sequential": random.choice([True, None]),
        "refine": random.choice([None, None, *REFINED]),
        "score": None,
        "allocate": None,
    }
    if isinstance(keys["sparsity"], float):
        keys |= drawn_budget(random)
        rounds = random.choice([None, None, None, 2])
        of_curves = keys["score"] is not None and keys["score"]["use"] == "sensitivity"
        keys["rounds"] = None if of_curves else rounds  # levels that an earlier round has passed are refused
    return keys


def drawn_budget(random: Random) -> dict[str, Any]:
    """Draw what gives budgets, or nothing, where all layers are to be as sparse."""
    if random.random() < 0.2:
        return {}
    name = random.choice(SCORED)
    score: dict[str, Any] = {"use": name}
    if name in ("first_order", "local_metric", "sensitivity", "weight_metric", "zeroth_order"):
        score["samples"] = random.choice([2, 3])
    if name in ("local_metric", "weight_metric"):
        score["metric"] = random.choice(METRICS)
    if name == "zeroth_order":
        score |= {"joint": random.choice([True, False]), "noises": random.choice([1, 2])}
    if name == "sensitivity":
        score["levels"] = random.choice([[0.3, 0.6], [0.4, 0.6, 0.8]])
    return {
        "score": score,
        "allocate": random.choice(ALLOCATED.get(name, ("ecoflap", {"use": "ecoflap", "above": 0.15}))),
    }


def drawn_pruner(random: Random, depth: int = 2) -> Any:
    """Draw a pruner, one in another where that takes one."""
    compare = random.choice(["row", "layer"])
    if depth and random.random() < 0.4:
        return {"use": random.choice(["refit", "swap", "dsnot"]), "inner": drawn_pruner(random, depth - 1)}
    return random.choice([
        "magnitude", "sparsegpt",
        {"use": "wanda", "compare": compare},
        {"use": "by_metric", "metric": random.choice(METRICS), "compare": compare},
        {"use": "admm", "iterations": 4, "gradual": 2, "compare": compare},
        {"use": "alps", "iterations": 20},
    ])  # fmt: skip
