"""Modules, registry files and distributions of one's own, in place of those that ship."""

import sys

import pytest

from ecoflap.core.errors import RegistryError
from ecoflap.core.registry.registry import load_registry_from

TOY = """
from dataclasses import dataclass
from ecoflap import hookimpl

@dataclass(frozen=True)
class {name}:
    level: int = 1
    def __call__(self, weight, seen, budget, layer): ...

@hookimpl
def ecoflap_register_pruners():
    return {{"{offer}": {name}}}
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Writes modules and registry files; ``load`` loads them in place of the shipped ones."""
    monkeypatch.delenv("ECOFLAP_REGISTRY", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    class World:
        folder = tmp_path

        def module(self, name, text):
            (tmp_path / f"{name}.py").write_text(text)
            written.append(name)

        def pruner(self, module, name, offer):
            """Write a plugin that offers one pruner."""
            self.module(module, TOY.format(name=name, offer=offer))

        def registry(self, text, name="base.yaml"):
            path = tmp_path / name
            path.write_text(f"version: 1\n{text}")
            return path

        def load(self, base="plugins: {}", own=None, installed=False):
            base = self.registry(base)
            return load_registry_from(base, own and self.registry(own, "own.yaml"), installed=installed)

        def distribution(self, name, entry_points):
            info = tmp_path / f"{name}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text("[ecoflap]\n" + entry_points)

    world = World()
    world.pruner("toy_a", "Alpha", "alpha")
    world.pruner("toy_b", "Beta", "beta")
    yield world
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture
def problems():
    """Everything that a call says is wrong; it must say something."""

    def problems(call, *arguments, **keywords):
        with pytest.raises(RegistryError) as caught:
            call(*arguments, **keywords)
        return "\n".join(caught.value.problems)

    return problems
