"""Holds the recipe of a finished run as its report records it: plain values, for a part may be gone by now."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_serializer, model_validator

from ecoflap.core.recipe.schema import Recipe


class RecordedPart(BaseModel):
    """Names a part. Its parameters are the extra fields, which are not checked: its plugin may be gone."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    use: str


class RecordedScorer(RecordedPart):
    """Names the scorer; the keys of the engine are among its parameters."""

    @property
    def granularity(self) -> str:
        """Name what shared one sparsity: ``layer``, ``block``, ``tower`` or ``model``."""
        return str((self.model_extra or {}).get("granularity", "group"))


class RecordedModelKeys(BaseModel):
    """``model:`` of a recipe, of which the report is asked the source alone."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    source: str


class RecordedRecipe(BaseModel):
    """Holds a recipe with every default written out. Keys that no reader of reports asks for are extra fields.

    :param sparsity: A share, or a pattern such as ``2:4``.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    seed: int
    model: RecordedModelKeys
    sparsity: float | str | None = None
    score: RecordedScorer | None = None
    allocate: RecordedPart
    prune: RecordedPart
    refine: tuple[RecordedPart, ...] = ()
    rounds: int | tuple[float, ...] | None = None

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "RecordedRecipe":
        """Record a recipe, given as plain values."""
        return cls.model_validate_json(json.dumps(plain))

    @model_validator(mode="after")
    def _only_keys_of_a_recipe(self) -> "RecordedRecipe":
        unknown = sorted((self.model_extra or {}).keys() - Recipe.model_fields.keys())
        if unknown:
            raise ValueError(f"no such key is known here: {', '.join(unknown)}")
        return self

    @model_serializer(mode="wrap")
    def _in_the_order_of_a_recipe(self, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Leave out what the recipe did not set."""
        written = write(self)
        return {key: written[key] for key in Recipe.model_fields if key in self.model_fields_set}

    def plain(self) -> dict[str, Any]:
        """Return the recipe as its file writes it, like :meth:`Recipe.plain`."""
        return self.model_dump(mode="json")


def is_recordable(plain: Mapping[str, Any]) -> bool:
    """Say whether plain values are a recipe as a run has written it."""
    try:
        RecordedRecipe.of(plain)
    except ValidationError:
        return False
    return True
