"""Reads a whole recipe: its keys, the defaults that follow from other keys, and what the keys say to each other."""

import os
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ecoflap.core.model.hub import parts_of_hub_id
from ecoflap.core.recipe.agreement import note_disagreements
from ecoflap.core.recipe.defaults import ALLOCATORS, EVEN_ALLOCATOR
from ecoflap.core.recipe.keys import Key, key_of
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.recipe.read_budget import MISSING, is_patterned, read_budget, read_rounds
from ecoflap.core.recipe.read_keys import FAILED, KeyReader
from ecoflap.core.recipe.schema import Model, Recipe, TowerChoice
from ecoflap.core.recipe.where_written import WhereWritten
from ecoflap.core.text.strict_yaml import KeyPath, described

SOURCE = "required, and missing: a hub id, a folder or a file, such as model: ./folder."

MEMORY = "memory"
"""The source of a recipe that names none, for its model is given in memory."""


def read_recipe(reader: KeyReader, *, in_memory: bool) -> Recipe:
    """Check a document and make a recipe of it.

    :param in_memory: The model is given in memory, so ``model:`` may be missing.
    :raises RecipeError: With everything that is wrong.
    """
    # A key with nothing after it is as good as absent.
    written = {key: value for key, value in reader.document.value.items() if value is not None}
    special = {"model": _model(reader, written.get("model"), in_memory), "towers": _towers(reader, written)}
    rest = {key: value for key, value in reader.document.value.items() if key not in special}
    fields = {**reader.mapping(Recipe, rest, ()), **special, **read_budget(reader, written, ())}
    fields["rounds"] = read_rounds(reader, written.get("rounds"))
    _fill_in(reader, fields)
    if written.get("sparsity") is None and written.get("pattern") is None and _needs_sparsity(fields["allocate"]):
        reader.problems.add(("sparsity",), MISSING)
    note_disagreements(reader, fields)
    return _validated(reader, fields)


def _validated(reader: KeyReader, fields: Mapping[str, Any]) -> Recipe:
    recipe = None
    try:
        recipe = Recipe.model_validate(fields, context=WhereWritten(reader.document))
    except ValidationError as error:
        reader.problems.add_invalid((), error)
    reader.problems.raise_if_any()
    assert recipe is not None
    return recipe


def _model(reader: KeyReader, written: Any, in_memory: bool) -> Any:
    if written is None and not in_memory:
        reader.problems.add(("model",), SOURCE)
    if written is None:
        return {"source": MEMORY}
    if not isinstance(written, (str, dict)):
        reader.problems.add(("model",), f"should be a source, or {{source: …, dtype: …}}, not {described(written)}.")
        return {"source": MEMORY}
    fields = reader.mapping(Model, written, ("model",))
    if in_memory:
        fields.setdefault("source", MEMORY)
    if isinstance(fields.get("source"), str):
        fields["source"] = _source(reader, fields["source"])
        _check_revision(reader, fields["source"], fields.get("revision"))
    return fields


def _source(reader: KeyReader, text: str) -> str:
    """Make a path absolute; a hub id or ``package:NAME`` stays as it is."""
    path = ("model", "source")
    is_path = text.startswith(("./", "../", "/", "~")) or text in (".", "..") or text.endswith(".gguf")
    there = bool(text) and os.path.exists(reader.document.where(path).folder / text)  # which no text makes raise
    return str(reader.path(text, path)) if is_path or there else text


def _check_revision(reader: KeyReader, source: str, revision: Any) -> None:
    """Refuse a revision that is of no hub id, stands in the source too, or cannot be one."""
    if not isinstance(revision, str):
        return
    parts = parts_of_hub_id(source)
    if parts is None:
        reader.problems.add(
            ("model", "revision"), f"is of a hub id, org/name, and the source is {source}. Leave it out."
        )
    elif parts[1] is not None:
        reader.problems.add(("model", "revision"), f"stands in the source too: {source}. Leave one out.")
    elif parts_of_hub_id(f"{source}@{revision}") is None:
        reader.problems.add(("model", "revision"), f"should be a branch, a tag or a commit, not {revision!r}.")


def _towers(reader: KeyReader, written: Mapping[str, Any]) -> Any:
    towers = written.get("towers", {})
    if not isinstance(towers, dict):
        reader.problems.add(("towers",), f"should map towers to keep or to what is their own, not {described(towers)}.")
        return {}
    return {str(name): _tower(reader, ("towers", name), own) for name, own in towers.items()}


def _tower(reader: KeyReader, path: KeyPath, own: Any) -> Any:
    if own == "keep":
        return own
    if not isinstance(own, dict) or all(value is None for value in own.values()):
        reader.problems.add(path, f"should be keep, or {{sparsity: …, prune: …}}, not {described(own or None)}.")
        return "keep"
    fields = {**reader.mapping(TowerChoice, own, path), **read_budget(reader, own, path)}
    try:
        return TowerChoice(**fields)
    except ValidationError as error:
        reader.problems.add_invalid(path, error)
        return "keep"


def _fill_in(reader: KeyReader, fields: dict[str, Any]) -> None:
    """Set what follows from other keys where it is not written: the aggregate, the granularity and the allocator."""
    score = fields.get("score")
    if isinstance(score, dict):
        scorer = score["scorer"]
        score.setdefault("aggregate", "sum" if scorer is FAILED else scorer.options.aggregate)
        if scorer is not FAILED and scorer.options.gives == "weights":
            score.setdefault("granularity", "layer")  # which alone keeps what a threshold for single weights does
    if "allocate" not in fields:
        fields["allocate"] = reader.part("allocator", _allocator(fields), ("allocate",))
    for name, field in Recipe.model_fields.items():
        if name not in fields and field.is_required() and key_of(field).kind:
            fields[name] = _missing(reader, name, key_of(field))


def _allocator(fields: Mapping[str, Any]) -> Any:
    """Give the allocator of a recipe that names none: the pruner's own, or the one for what the scorer gives."""
    score, pruner = fields.get("score"), fields.get("prune", FAILED)
    if is_patterned(fields):
        return EVEN_ALLOCATOR
    if pruner is not FAILED and (own := _allocator_of(pruner)) is not None:
        return own
    if score is None:
        return EVEN_ALLOCATOR
    scorer = score["scorer"] if isinstance(score, dict) else FAILED
    return ALLOCATORS["number" if scorer is FAILED else scorer.options.gives]


def _allocator_of(pruner: PartSpec) -> Any:
    """Give the allocator that goes with a pruner, or with one that it mends, as a recipe writes it."""
    pruners = (spec for _, spec in pruner.with_inner("") if spec.kind == "pruner")
    return next((spec.options.allocate for spec in pruners if spec.options.allocate is not None), None)


def _needs_sparsity(allocator: PartSpec) -> bool:
    """Say whether a recipe has to say how much is pruned, because its allocator does not."""
    return allocator is FAILED or allocator.options.keeps is None


def _missing(reader: KeyReader, name: str, key: Key) -> PartSpec:
    known = ", ".join(reader.parts.registry.choices(key.kind)) or "none"
    reader.problems.add((name,), f"required, and missing. Known: {known}.")
    return FAILED
