"""Name methods: as a sweep does or by their parts, and by whatever tells one from others of that name."""

from collections.abc import Mapping, Sequence
from typing import Any

from ecoflap.core.recipe.schema import not_the_method, seed_keys
from ecoflap.core.record.report import Report


def method_names(given: Sequence[str], reports: Sequence[Report], contents: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the name of each run's method, so that runs of one name differ in seeds and sparsities alone.

    :param given: The names that a sweep gives them; empty where it gives none.
    :param contents: What runs have read that others of the same recipe have not.
    """
    bases = []
    for name, report in zip(given, reports, strict=True):
        sparsity = report.recipe.sparsity
        pattern = f" {sparsity}" if isinstance(sparsity, str) else ""
        bases.append((name or report.method) + pattern)
    facts = [recipe_of_method(report) | dict(own) for report, own in zip(reports, contents, strict=True)]
    return distinct_names(bases, facts)


def recipe_of_method(report: Report) -> dict[str, Any]:
    """Return the recipe without what may differ within a method, and without a scorer that nothing asked."""
    left_out = not_the_method() if report.looked_at_scores else (*not_the_method(), "score")
    return _without(report.recipe.plain(), left_out)


def _without(keys: Mapping[str, Any], left_out: Sequence[str], inside: str = "") -> dict[str, Any]:
    """Leave out keys, by their dotted names."""
    return {
        key: _without(value, left_out, f"{inside}{key}.") if isinstance(value, Mapping) else value
        for key, value in keys.items()
        if f"{inside}{key}" not in left_out
    }


def distinct_names(bases: Sequence[str], recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names; equal ones whose recipes differ with the keys that do: ``wanda (prune.compare=layer)``."""
    flats = [without_seeds(flat(recipe)) for recipe in recipes]
    names = []
    for base, own in zip(bases, flats, strict=True):
        namesakes = [other for name, other in zip(bases, flats, strict=True) if name == base]
        differing = ", ".join(f"{key}={own.get(key, 'not set')}" for key in varying(namesakes))
        names.append(f"{base} ({differing})" if differing else base)
    return names


def without_seeds(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Leave the seeds out of a flat recipe: runs that differ in them alone are of one method."""
    return {key: value for key, value in facts.items() if key not in seed_keys()}


def seeds_of(recipe: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
    """Return a recipe's seeds, its own and its parts', each with its key."""
    return frozenset((key, value) for key, value in flat(recipe).items() if key in seed_keys())


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return each value inside nested mappings and lists by its dotted path: ``{"evaluate.0.use": "vqa"}``."""
    if isinstance(value, Mapping):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list):
        items = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        return {} if value is None else {path: value}
    return {
        inside: found for key, inner in items for inside, found in flat(inner, f"{path}.{key}" if path else key).items()
    }


def varying(flats: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys in which flat recipes differ; where a part was exchanged, not those of its parameters."""
    keys = dict.fromkeys(key for one in flats for key in one)
    differing = [key for key in keys if any(one.get(key) != flats[0].get(key) for one in flats)]
    parts = [key.removesuffix("use") for key in differing if key.endswith(".use")]
    return [key for key in differing if key.endswith(".use") or not key.startswith(tuple(parts))]
