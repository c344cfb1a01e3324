"""Find the adapter of a model: of those that claim it, the one with the highest priority."""

from collections.abc import Mapping

from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.blame import PartError, blaming
from ecoflap.core.contracts.conformance import contract_problems, options_of
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.errors import ModelError, RegistryError
from ecoflap.core.model.anatomy import Source
from ecoflap.core.model.own_code import not_run
from ecoflap.core.registry.named_adapter import knows
from ecoflap.core.registry.registry import Registry


def adapter_for(source: Source, registry: Registry) -> Adapter:
    """Find the registered adapter whose ``matches`` claims a model, before others by its ``priority``.

    :raises ModelError: Where none does, or several with one priority do.
    :raises RegistryError: Where that adapter breaks the contract, as one for another version of ecoflap may.
    """
    adapters: dict[str, Adapter] = {}
    claims: dict[str, int] = {}
    for name in registry.names("adapter"):
        try:
            with blaming(f"the adapter {name}, asked whether it is the one for {source.name},"):
                adapters[name] = registry.find("adapter", name)()
                if knows(adapters[name], source):
                    claims[name] = options_of(AdapterOptions, adapters[name]).priority
        except PartError as error:
            ways = f"{registry.way_out('adapter', name)} With model.adapter in a recipe, no other is asked."
            raise PartError(*(f"{problem} {ways}" for problem in error.problems)) from error
    first = [name for name, priority in claims.items() if priority == max(claims.values())]
    if len(first) == 1:
        problems = list(contract_problems("adapter", adapters[first[0]], ()))
        if problems:
            raise RegistryError(*(f"the adapter {first[0]}: {problem}" for problem in problems))
        return adapters[first[0]]
    if first:
        raise ModelError(
            f"{source.name}: these adapters all claim it: {', '.join(first)}. Choose one: with model.adapter in a "
            f"recipe, with --adapter for inspect."
        )
    raise ModelError(_unclaimed(source, adapters))


def _unclaimed(source: Source, adapters: Mapping[str, Adapter]) -> str:
    """Say that no adapter knows a model. An adapter of another family would prune it wrongly, so none is proposed."""
    reasons = dict.fromkeys(
        why for one in adapters.values() if (why := options_of(AdapterOptions, one).why_not(source))
    )
    kind = source.config.get("model_type", "unknown")
    made = ", ".join(source.config.get("architectures") or ())
    found = f"a model of type {kind!r}{f' ({made})' if made else ''}."
    built = made if source.model is None else type(source.model).__name__
    if made and built not in made.split(", "):
        found = f"a {built} of type {kind!r}. Its configuration is of {made}: give that, the model with its head."
    return (
        f"{source.name}: no adapter claims {found} "
        f"{''.join(f'{reason} ' for reason in reasons)}Known adapters: {', '.join(sorted(adapters))}. docs/adapters.md "
        f"says how to write one for it.{not_run(source.config)}"
    )
