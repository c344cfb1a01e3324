"""Loading plugins: in which order, which not, and what every failure says."""

import re

import pytest

from ecoflap import EcoflapError


def test_what_is_disabled_is_not_imported(world):
    world.module("broken", "raise RuntimeError('never')")
    assert world.load("plugins: {a: toy_a, x: broken}", "disable: [x]").names("pruner") == ["alpha"]


def test_every_broken_plugin_is_named_with_the_way_out(world, problems):
    world.module("broken", "import no_such_module")
    world.module("worse", "1 / 0")
    told = problems(world.load, "plugins: {a: toy_a, x: broken, y: worse, z: 'toy_a:Gamma'}")
    assert "plugin 'x' (broken, built-in) did not load: ModuleNotFoundError: No module named 'no_such_module'" in told
    assert "To go on without it, put 'x' under disable: in your registry file." in told
    assert "plugin 'y' (worse, built-in) did not load: ZeroDivisionError" in told
    assert "toy_a has no 'Gamma'" in told


def test_a_class_is_registered_as_an_instance(world):
    world.module("stateful", (
        "from ecoflap import hookimpl\n"
        "class Ears:\n"
        "    def __init__(self): self.heard = []\n"
        "    @hookimpl\n"
        "    def ecoflap_on_event(self, event): self.heard.append(event)\n"
        "class Deaf:\n"
        "    @hookimpl\n"
        "    def ecoflap_on_event(self): raise RuntimeError('heard')\n"
    ))  # fmt: skip
    (ears, hear), (deaf, call) = world.load("plugins: {ears: 'stateful:Ears', deaf: 'stateful:Deaf'}").observers()
    hear("event")
    assert (ears, deaf, hear.__self__.heard) == ("ears", "deaf", ["event"])
    with pytest.raises(RuntimeError, match="heard"):
        call("event")


def test_a_plugin_that_would_end_the_process_is_named(world, problems):
    world.module("leaves", "raise SystemExit(3)\n")
    assert "plugin 'h' (leaves" in (told := problems(world.load, "plugins: {h: leaves}"))
    assert "did not load: SystemExit: 3." in told
    world.module("offers", (
        "from ecoflap import hookimpl\n"
        "@hookimpl\n"
        "def ecoflap_register_pruners(): raise SystemExit(4)\n"
    ))  # fmt: skip
    assert "failed to offer its pruners: SystemExit: 4." in problems(world.load, "plugins: {h: offers}")


def test_hooks_that_do_not_exist_are_told_with_the_nearest(world, problems):
    world.module("hooks", (
        "from ecoflap import hookimpl\n"
        "@hookimpl\n"
        "def ecoflap_register_scorer(): return {}\n"
        "@hookimpl\n"
        "def ecoflap_on_event(evnt): ...\n"
    ))  # fmt: skip
    told = problems(world.load, "plugins: {h: hooks}")
    assert "no hook named 'ecoflap_register_scorer'. Did you mean 'ecoflap_register_scorers'?" in told
    assert "ecoflap_on_event has no argument evnt. The hook is ecoflap_on_event(event)." in told


def test_installed_plugins_are_found_and_can_be_off(world):
    world.distribution("toy-dist", "installed_b = toy_b\n")
    assert world.load("plugins: {a: toy_a}").names("pruner") == ["alpha"]
    registry = world.load("plugins: {a: toy_a}", installed=True)
    assert registry.names("pruner") == ["alpha", "beta"]
    assert str(registry.origin("pruner", "beta")) == "toy_b:Beta (toy-dist 1.0)"
    assert world.load("plugins: {a: toy_a}", "disable: [installed_b]", installed=True).names("pruner") == ["alpha"]


def test_a_broken_installed_plugin_is_named_with_its_distribution(world, problems):
    world.distribution("toy-dist", "demo = no_such_module\n")
    told = problems(world.load, installed=True)
    assert "plugin 'demo' (no_such_module, toy-dist 1.0) did not load: ModuleNotFoundError" in told
    assert "put 'demo' under disable:" in told


def test_two_plugins_registered_under_one_name(world, problems):
    world.distribution("toy-dist", "a = toy_b\n")
    assert "two plugins have one name: plugin 'a' (toy_a, built-in) and plugin 'a' (toy_b, toy-dist 1.0)" in problems(
        world.load, "plugins: {a: toy_a}", installed=True
    )


def test_a_plugin_named_twice_over_loads_once(world):
    world.distribution("toy-dist", "a = toy_a\nother = toy_a\n")
    assert world.load("plugins: {a: toy_a}", installed=True).names("pruner") == ["alpha"]


def test_a_hook_that_pluggy_refuses_is_told_with_the_way_out(world, problems):
    world.module("odd", (
        "from ecoflap import hookimpl\n"
        "@hookimpl(wrapper=True)\n"
        "def ecoflap_register_pruners(): return {}\n"
    ))  # fmt: skip
    told = problems(world.load, "plugins: {odd: odd}")
    assert told.startswith("plugin 'odd' (odd, built-in) cannot be registered: PluginValidationError: ")
    assert told.endswith("To go on without it, put 'odd' under disable: in your registry file.")
    assert "\n" not in told


def test_what_a_plugin_says_to_users_is_told_as_it_says_it(world, problems):
    world.module("asks", "from ecoflap import EcoflapError\nraise EcoflapError('install numpy 3')")
    assert problems(world.load, "plugins: {asks: asks}").startswith(
        "plugin 'asks' (asks, built-in) did not load: install numpy 3. To go on without it, put 'asks' under"
    )


def test_where_a_plugin_raises_is_told_with_its_line(world, problems):
    world.module("mutable", (
        "from dataclasses import dataclass\n"
        "\n"
        "@dataclass\n"
        "class Part:\n"
        "    levels: list = []\n"
    ))  # fmt: skip
    told = problems(world.load, "plugins: {m: mutable}")
    assert "mutable default <class 'list'> for field levels" in told
    assert re.search(r"It happened in mutable\.py:\d, <module>\.", told)


def test_a_dotted_name_is_told_how_code_is_named(world):
    with pytest.raises(EcoflapError, match=r"If it is code of a module, it is written my_parts\.pruners:Mine\."):
        world.load("plugins: {a: toy_a}").find("pruner", "my_parts.pruners.Mine")
