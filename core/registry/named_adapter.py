"""Make an adapter by its name, and refuse it where it does not fit a model that it does not know: with why."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ecoflap.core.contracts.answers import shown
from ecoflap.core.contracts.blame import PartError, blaming
from ecoflap.core.contracts.conformance import contract_problems
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.errors import ModelError, RegistryError
from ecoflap.core.model.anatomy import Source
from ecoflap.core.registry.registry import Registry


def adapter_named(name: str, registry: Registry) -> Adapter:
    """Make the adapter of a name or an import path.

    :raises RegistryError: Where there is none, or it breaks the contract.
    """
    with blaming(f"the adapter {name}"):
        adapter: Adapter = registry.find("adapter", name)()
    problems = [f"{name}: {problem}" for problem in contract_problems("adapter", adapter, ())]
    if problems:
        raise RegistryError(*problems)
    return adapter


def knows(adapter: Adapter, source: Source) -> bool:
    """Say whether an adapter claims a model; one that was named may not."""
    who = f"the adapter {type(adapter).__name__}, asked whether it is the one for {source.name},"
    with blaming(who):
        answer: Any = adapter.matches(source)
    if not isinstance(answer, bool):
        raise PartError(f"{who} answered {shown(answer)}; its matches answers True or False")
    return answer


@contextmanager
def refusing_misfit(adapter: Adapter, name: str | None, source: Source, where: str = "model.adapter") -> Iterator[None]:
    """Say of whatever goes wrong with an adapter that was named for a model it does not know that it does not fit.

    :param name: As it was named; None for one that was found, of which errors are passed on as they are.
    :param where: The key or argument by which it was.
    """
    if name is None or knows(adapter, source):
        yield
        return
    try:
        yield
    except (ModelError, PartError) as error:
        raise ModelError(
            *(
                f"{where}: {name} does not fit {_described(source)}, which it does not know: {problem}"
                for problem in error.problems
            ),
            f"Without {where}, the adapter that knows the model is looked for.",
        ) from error


def _described(source: Source) -> str:
    if source.model is not None:
        return f"this {type(source.model).__name__}"
    kind = source.config.get("model_type")
    made = source.config.get("architectures") or [f"model of type {kind!r}" if kind else "model of no known type"]
    return f"{source.name}, a {made[0]}"
