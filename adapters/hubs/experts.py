"""Have the experts of a model run in one way or another: by themselves, or all in products that can be exported."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

SETTING = "_experts_implementation"


def experts_one_by_one(model: nn.Module) -> AbstractContextManager[None]:
    """Run each expert by itself for as long as this lasts, so that what it reads can be seen.

    transformers may multiply the tokens of all experts at once with weights that it has gathered, in which no expert's
    matrix can be told from another's; its ``eager`` way does not.
    """
    return _experts_run(model, "eager")


def experts_in_one_product(model: nn.Module) -> AbstractContextManager[None]:
    """Run all experts in products that depend on no router's choice, as a graph has to, for as long as this lasts."""
    return _experts_run(model, "batched_mm")


@contextmanager
def _experts_run(model: nn.Module, how: str) -> Iterator[None]:
    """Set transformers' way of running experts for a while."""
    configs = {id(config): config for module in model.modules() if (config := _config(module)) is not None}
    before = {identity: vars(config).get(SETTING + "_internal") for identity, config in configs.items()}
    for config in configs.values():
        setattr(config, SETTING + "_internal", how)
    try:
        yield
    finally:
        for identity, config in configs.items():
            setattr(config, SETTING + "_internal", before[identity])


def _config(module: nn.Module) -> Any:
    """Give the configuration of a module that holds experts."""
    has_experts = any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))
    config = getattr(module, "config", None)
    return config if has_experts and hasattr(config, SETTING) else None
