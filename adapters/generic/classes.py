"""Look up which classes of transformers are made for what, without importing any of them."""

from collections.abc import Mapping
from typing import Any

from ecoflap.core.model.anatomy import Source


def names_in(mapping: str) -> Mapping[str, str]:
    """Give a table of transformers: the name of a class by the type of model.

    :param mapping: Its name: ``MODEL_FOR_CAUSAL_LM_MAPPING_NAMES``. One that this version lacks is empty.
    """
    from transformers.models.auto import modeling_auto

    found: Any = getattr(modeling_auto, mapping, {})
    return {kind: name for kind, name in found.items() if isinstance(name, str)}


def class_named(source: Source, otherwise: str) -> str:
    """Give the name of the class that a configuration names, where transformers has it.

    :param otherwise: Given where it names none, or one that transformers does not have.
    """
    import transformers

    names = source.config.get("architectures") or []
    return next((name for name in names if hasattr(transformers, name)), otherwise)
