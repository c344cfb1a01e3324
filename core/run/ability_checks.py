"""Says why a model cannot be asked for what an evaluator wants of it, before anything is run."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from ecoflap.core.contracts.abilities import offers
from ecoflap.core.registry.registry import Registry


def ability_problems(part: str, wants: Any, adapter: Any, model: nn.Module, registry: Registry) -> Iterator[str]:
    """Why a model cannot be asked for what an evaluator wants of it.

    :param part: The evaluator's name.
    :param wants: Of :data:`ABILITIES`, or None for nothing beside a loss.
    """
    if wants is None:
        return
    if not offers(adapter, wants):
        known = [name for name in registry.names("adapter") if offers(registry.find("adapter", name), wants)]
        yield (
            f"{part} needs a model that can {wants.does}, and the adapter {_name(adapter, registry)} has none. "
            f"Adapters that do: {', '.join(known) or 'none'}. Evaluators for this model: {_fitting(adapter, registry)}."
        )
        return
    why = adapter.refuses(model, wants) if hasattr(adapter, "refuses") else None
    if why:
        yield f"{part} needs a model that can {wants.does}: {why}"


def _fitting(adapter: Any, registry: Registry) -> str:
    names = registry.names("evaluator")
    wants = {name: getattr(registry.find("evaluator", name), "wants", None) for name in names}
    return ", ".join(name for name in names if wants[name] is None or offers(adapter, wants[name]))


def _name(adapter: Any, registry: Registry) -> str:
    """As a recipe would name it."""
    named = {registry.find("adapter", name): name for name in registry.names("adapter")}
    return named.get(type(adapter), type(adapter).__name__)
