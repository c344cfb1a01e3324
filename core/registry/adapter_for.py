"""Find the adapter of a model: the only one that claims it."""

from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.conformance import contract_problems
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.errors import ModelError, RegistryError
from ecoflap.core.model.anatomy import Source
from ecoflap.core.registry.registry import Registry


def adapter_for(source: Source, registry: Registry) -> Adapter:
    """Find the one registered adapter whose ``matches`` claims a model.

    :raises ModelError: Where none does, or several do.
    :raises RegistryError: Where that adapter breaks the contract, as one for another version of ecoflap may.
    """
    adapters: dict[str, Adapter] = {}
    claims = []
    for name in registry.names("adapter"):
        with blaming(f"the adapter {name}, asked whether it is the one for {source.name},"):
            adapters[name] = registry.find("adapter", name)()
            if adapters[name].matches(source):
                claims.append(name)
    if len(claims) == 1:
        problems = list(contract_problems("adapter", adapters[claims[0]], ()))
        if problems:
            raise RegistryError(*(f"the adapter {claims[0]}: {problem}" for problem in problems))
        return adapters[claims[0]]
    if claims:
        raise ModelError(
            f"{source.name}: these adapters all claim it: {', '.join(claims)}. Choose one with model.adapter"
        )
    kind = source.config.get("model_type", "unknown")
    raise ModelError(
        f"{source.name}: no adapter claims a model of type {kind!r}. Known adapters: {', '.join(sorted(adapters))}. "
        f"One that fits can be named with model.adapter"
    )
