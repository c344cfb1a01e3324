"""A report as ``report.json`` holds it, made up, for tests that need no run."""

from copy import deepcopy

BLOCKS = {
    "v.0": {"tower": "vision", "size": 100, "keep": 40},
    "v.1": {"tower": "vision", "size": 100, "keep": 60},
    "l.0": {"tower": "language", "size": 200, "keep": 100},
}
"""At half sparsity; at another the last one keeps what is left."""


def measure(value, larger=False):
    return {"value": value, "n": 9, "standard_error": 0.5, "unit": "tokens", "larger_is_better": larger}


def made_recipe(*, sparsity=0.5, seed=0, score=None, **keys):
    """A recipe with every default, of a run that prunes by wanda."""
    recipe = {
        "version": 1, "seed": seed, "model": {"source": "m"}, "calibration": {"use": "text", "seed": seed},
        "sparsity": sparsity, "towers": {}, "allocate": {"use": "ecoflap" if score else "uniform"},
        "prune": {"use": "wanda", "compare": "row"}, "evaluate": [{"use": "perplexity"}], "export": [], "reuse": [],
        **keys,
    }  # fmt: skip
    scored = {"score": {"use": score, "samples": 4, "granularity": "block"}} if score else {}
    return recipe | scored


def made_report(*, pruned=None, seconds=2.0, **recipe):
    """The report of a run of :func:`made_recipe`.

    :param pruned: The pruned model's measures.
    :param seconds: How long pruning took.
    """
    plain = made_recipe(**recipe)
    sparsity = 0.5 if isinstance(plain["sparsity"], str) else plain["sparsity"]
    kept = round(400 * (1 - sparsity))
    blocks = {**BLOCKS, "l.0": {**BLOCKS["l.0"], "keep": kept - 100}}
    scores = {"v.0": 3.0, "v.1": 1.0, "l.0": 2.0} if plain.get("score") else dict.fromkeys(BLOCKS)
    stages = [("load", 1.0, 10), *([("score", 5.0, 90)] if plain.get("score") else []), ("prune", seconds, 50)]
    report = {
        "version": 1, "finished": "2026-01-01T00:00:00+00:00", "recipe": plain, "parameters": 500, "prunable": 400,
        "kept": kept, "kept_zeros": 0, "sparsity": 1 - kept / 400, "towers": {"vision": 0.5, "language": 0.5},
        "groups": {name: {**blocks[name], "score": score, "standard_error": None} for name, score in scores.items()},
        "blocks": blocks,
        "measures": {"dense": {"ppl": measure(4.0)}, "pruned": pruned or {"ppl": measure(5.0)}},
        "bytes": {"model": 1000, "safetensors": 600},
        "stages": [{"stage": name, "seconds": time, "peak_memory": peak} for name, time, peak in stages],
        "warnings": [], "machine": {"device": "cpu"}, "versions": {"torch": "2.6"}, "exports": {},
        "lines": {},
    }  # fmt: skip
    return deepcopy(report)
