"""Registry files: what a user's own adds to the one that ships, and what is wrong with one."""

import pytest

from ecoflap.core.registry.registry import load_registry_from

WIDE = """
from ecoflap import hookimpl

def wide(level=0, depth=0): ...

@hookimpl
def ecoflap_register_pruners():
    return {"wide": wide}
"""


def test_an_own_file_extends_the_shipped_one(world):
    registry = world.load(
        "plugins: {a: toy_a}\naliases: {pruner: {x: alpha}}\ndefaults: {pruner: {alpha: {level: 1}}}",
        "plugins: {b: toy_b}\naliases: {pruner: {x: beta}}\ndefaults: {pruner: {x: {level: 2}, alpha: {level: 3}}}",
    )
    assert registry.names("pruner") == ["alpha", "beta"]
    assert registry.find("pruner", "x").__name__ == "Beta"
    assert registry.defaults_for("pruner", "alpha")["level"].value == 3
    assert registry.defaults_for("pruner", "beta")["level"].value == 2
    assert str(registry.defaults_for("pruner", "x")["level"].place).endswith("own.yaml:4:32")
    assert registry.origin("pruner", "beta").source.endswith("own.yaml:2:14")


def test_the_environment_names_a_file(world, monkeypatch, problems):
    monkeypatch.setenv("ECOFLAP_REGISTRY", str(world.registry("plugins: {b: toy_b}", "env.yaml")))
    assert world.load("plugins: {a: toy_a}").names("pruner") == ["alpha", "beta"]
    monkeypatch.setenv("ECOFLAP_REGISTRY", "/no/such.yaml")
    assert "/no/such.yaml (named by ECOFLAP_REGISTRY) cannot be read" in problems(world.load)


def test_everything_wrong_with_a_file_is_told_at_once(world, problems):
    told = problems(
        world.load,
        "plugins: {a: toy_a}",
        "pluginz: 3\nplugins: {a: toy_b, c: 3}\ndisable: toy\naliases: {prunr: {}}\ndefaults: {pruner: 3}",
    )
    assert "own.yaml:2:1: pluginz: unknown key 'pluginz'. Did you mean 'plugins'?" in told
    assert "own.yaml:3:11: plugins.a: " in told
    assert "own.yaml:3:24: plugins.c: should be a module" in told
    assert "own.yaml:4:10: disable: should be a list" in told
    assert "own.yaml:5:11: aliases.prunr: no kind of part named 'prunr'. Did you mean 'pruner'?" in told
    assert "own.yaml:6:20: defaults.pruner: should be a mapping" in told


def test_the_version_is_wanted(world, problems):
    (world.folder / "v.yaml").write_text("plugins: {}")
    assert "v.yaml:1:1: version: should be 1, not nothing." in problems(load_registry_from, world.folder / "v.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("aliases: {pruner: {x: [alpha]}}", "aliases.pruner.x: should be the name of a pruner, not a list."),
        ("aliases: {pruner: {x: null}}", "aliases.pruner.x: should be the name of a pruner, not nothing."),
        ("disable: 0", "disable: should be a list of plugins, not 0."),
        ("plugins: {1: ''}", "plugins.1: should be a module, or module:Class, not ''."),
    ],
)
def test_a_value_of_another_type_is_told_where_it_is(world, problems, text, told):
    assert told in problems(world.load, "plugins: {a: toy_a}", text)


def test_a_name_that_reads_as_a_number_is_a_name(world, problems):
    assert world.load("plugins: {1: toy_a}", "disable: [1]").names("pruner") == []
    told = problems(world.load, "plugins: {1: toy_a}", "plugins: {1: toy_b}")
    assert "own.yaml:2:11: plugins.1: " in told
    assert "base.yaml:2:14 names a plugin so already. Choose another name." in told


def test_a_part_keeps_the_defaults_that_an_own_file_does_not_change(world):
    world.module("wide", WIDE)
    registry = world.load(
        "plugins: {wide: wide}\ndefaults: {pruner: {wide: {level: 1, depth: 2}}}",
        "defaults: {pruner: {wide: {depth: 3}}}",
    )
    assert {name: placed.value for name, placed in registry.defaults_for("pruner", "wide").items()} == {
        "level": 1,
        "depth": 3,
    }
