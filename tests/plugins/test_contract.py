"""Every part in plugins/ is held to the contract of its kind, as a third party's is."""

from pathlib import Path
from typing import Any

import pytest
from speaking import Given

from ecoflap import load_registry
from ecoflap.core.contracts.conformance import contract_problems
from ecoflap.core.registry.parameters import parameters_of
from ecoflap.plugins.allocators.uniform import Uniform

REGISTRY = load_registry(installed=False)
KINDS = ("scorer", "allocator", "pruner", "refiner", "metric", "dataset", "evaluator")
PARTS = [(kind, name) for kind in KINDS for name in REGISTRY.names(kind)]
GIVEN: dict[str, Any] = {
    "beta": 0.002,
    "data": Given([]),
    "metric": REGISTRY.find("metric", "magnitude")(),
    "of": (Uniform(), Uniform()),
    "path": Path("plan.json"),
    "run": Path("run"),
    "sparsity": 0.5,
    "tasks": ("arc_easy",),
}
"""Parameters that some parts need."""
ONE_OF_TWO = {"agreement": "data"}
"""Of parts that need one of two parameters, the one that they are given."""


def needed_by(name: str, factory: Any) -> dict[str, Any]:
    """Give the parameters that a part cannot be made without."""
    parameters, _ = parameters_of(factory)
    return {key: GIVEN[key] for key, one in parameters.items() if one.required or key == ONE_OF_TWO.get(name)}


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=str)
def test_a_part_keeps_its_kinds_contract(kind: str, name: str):
    factory = REGISTRY.find(kind, name)
    parameters, _ = parameters_of(factory)
    part = factory(**needed_by(name, factory))
    assert list(contract_problems(kind, part, parameters)) == []


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=str)
def test_a_part_remembers_nothing(kind: str, name: str):
    """Its fields are its parameters, and it cannot be changed."""
    factory = REGISTRY.find(kind, name)
    parameters, _ = parameters_of(factory)
    part = factory(**needed_by(name, factory))
    assert set(vars(part)) == set(parameters)
    assert type(part).__dataclass_params__.frozen
