"""Loading plugins from files of one's own: what is found, and what every failure says."""

import subprocess
import sys
from pathlib import Path

import pytest

from ecoflap.core.errors import RegistryError
from ecoflap.core.registry.parameters import KINDS
from ecoflap.core.registry.registry import load_registry, load_registry_from

TOY = """
from dataclasses import dataclass
from ecoflap import hookimpl

@dataclass(frozen=True)
class {name}:
    level: int = 1
    def __call__(self, weight, statistic, budget): ...

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
    world.module("toy_a", TOY.format(name="Alpha", offer="alpha"))
    world.module("toy_b", TOY.format(name="Beta", offer="beta"))
    yield world
    for name in written:
        sys.modules.pop(name, None)


def problems(call, *arguments, **keywords):
    with pytest.raises(RegistryError) as caught:
        call(*arguments, **keywords)
    return "\n".join(caught.value.problems)


def test_a_part_is_found_by_name_alias_and_import_path(world):
    registry = world.load("plugins: {a: toy_a, b: toy_b}\naliases: {pruner: {first: alpha}}")
    assert registry.names("pruner") == ["alpha", "beta"]
    assert registry.choices("pruner") == ["alpha", "beta", "first"]
    alpha = registry.find("pruner", "alpha")
    assert registry.find("pruner", "first") is registry.find("pruner", "toy_a:Alpha") is alpha
    assert str(registry.origin("pruner", "first")) == "toy_a:Alpha (built-in)"
    assert str(registry.origin("pruner", "toy_b:Beta")) == "toy_b:Beta (import path)"


def test_what_is_not_there_is_told_with_the_nearest(world):
    registry = world.load("plugins: {a: toy_a}")
    assert problems(registry.find, "pruner", "alpa") == "no pruner named 'alpa'. Did you mean 'alpha'? Known: alpha."
    assert "no kind of part named 'prunr'. Did you mean 'pruner'?" in problems(registry.find, "prunr", "alpha")
    assert "no kind of part named 'x'" in problems(registry.names, "x")
    assert "toy_a has no 'Alpa'. Did you mean 'Alpha'?" in problems(registry.find, "pruner", "toy_a:Alpa")
    assert "No module named 'no_such'" in problems(registry.find, "pruner", "no_such:X")
    assert "makes no part" in problems(registry.find, "pruner", "toy_a:__name__")


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


def test_the_environment_names_a_file(world, monkeypatch):
    monkeypatch.setenv("ECOFLAP_REGISTRY", str(world.registry("plugins: {b: toy_b}", "env.yaml")))
    assert world.load("plugins: {a: toy_a}").names("pruner") == ["alpha", "beta"]
    monkeypatch.setenv("ECOFLAP_REGISTRY", "/no/such.yaml")
    assert "/no/such.yaml (named by ECOFLAP_REGISTRY) cannot be read" in problems(world.load)


def test_what_is_disabled_is_not_imported(world):
    world.module("broken", "raise RuntimeError('never')")
    assert world.load("plugins: {a: toy_a, x: broken}", "disable: [x]").names("pruner") == ["alpha"]


def test_every_broken_plugin_is_named_with_the_way_out(world):
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


def test_two_plugins_with_one_name_are_both_named(world):
    world.module("rival", TOY.format(name="Rival", offer="alpha"))
    told = problems(world.load, "plugins: {a: toy_a, r: rival}")
    assert "two plugins offer the pruner 'alpha': toy_a:Alpha of plugin 'a'" in told
    assert "and rival:Rival of plugin 'r' (rival, built-in)" in told
    assert "Put 'a' or 'r' under disable: in your registry file." in told
    assert world.load("plugins: {a: toy_a, r: rival}\ndisable: [a]").find("pruner", "alpha").__name__ == "Rival"


def test_hooks_that_do_not_exist_are_told_with_the_nearest(world):
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


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "has no function marked @hookimpl"),
        ("@hookimpl\ndef ecoflap_register_pruners(): return [1]", "as a mapping from name to factory, not [1]"),
        ("@hookimpl\ndef ecoflap_register_pruners(): return None", "not None"),
        ("@hookimpl\ndef ecoflap_register_pruners(): return {'a': 3}", "offers the pruner 'a': 3"),
        ("@hookimpl\ndef ecoflap_register_pruners(): return {'a:b': int}", "a name without ':'"),
        ("@hookimpl\ndef ecoflap_register_pruners(): 1 / 0", "failed to offer its pruners: ZeroDivisionError"),
    ],
)
def test_plugins_that_offer_nothing_usable(world, body, said):
    world.module("odd", f"from ecoflap import hookimpl\n{body}\n")
    assert said in problems(world.load, "plugins: {odd: odd}")


def test_everything_wrong_with_a_file_is_told_at_once(world):
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


def test_the_version_is_wanted(world):
    (world.folder / "v.yaml").write_text("plugins: {}")
    assert "v.yaml:1:1: version: should be 1, not nothing." in problems(load_registry_from, world.folder / "v.yaml")


def test_names_nothing_offers_are_refused_everywhere(world):
    assert "disable: no plugin named 'aa'" in problems(world.load, "plugins: {a: toy_a}\ndisable: [aa]")
    told = problems(
        world.load,
        "plugins: {a: toy_a}\naliases: {pruner: {x: alpa, alpha: alpha}}\n"
        "defaults: {pruner: {alph: {level: 1}, alpha: {levl: 1}}}",
    )
    assert "aliases.pruner.x: no pruner named 'alpa'. Did you mean 'alpha'?" in told
    assert "aliases.pruner.alpha: is the name of a pruner already" in told
    assert "defaults.pruner.alph.level: no pruner named 'alph'. Did you mean 'alpha'?" in told
    assert "defaults.pruner.alpha.levl: alpha has no parameter 'levl'. Did you mean 'level'?" in told


def test_installed_plugins_are_found_and_can_be_off(world):
    world.distribution("toy-dist", "installed_b = toy_b\n")
    assert world.load("plugins: {a: toy_a}").names("pruner") == ["alpha"]
    registry = world.load("plugins: {a: toy_a}", installed=True)
    assert registry.names("pruner") == ["alpha", "beta"]
    assert str(registry.origin("pruner", "beta")) == "toy_b:Beta (toy-dist 1.0)"
    assert world.load("plugins: {a: toy_a}", "disable: [installed_b]", installed=True).names("pruner") == ["alpha"]


def test_a_broken_installed_plugin_is_named_with_its_distribution(world):
    world.distribution("toy-dist", "demo = no_such_module\n")
    told = problems(world.load, installed=True)
    assert "plugin 'demo' (no_such_module, toy-dist 1.0) did not load: ModuleNotFoundError" in told
    assert "put 'demo' under disable:" in told


def test_two_plugins_registered_under_one_name(world):
    world.distribution("toy-dist", "a = toy_b\n")
    assert "two plugins have one name: plugin 'a' (toy_a, built-in) and plugin 'a' (toy_b, toy-dist 1.0)" in problems(
        world.load, "plugins: {a: toy_a}", installed=True
    )


def test_a_plugin_named_twice_over_loads_once(world):
    world.distribution("toy-dist", "a = toy_a\nother = toy_a\n")
    assert world.load("plugins: {a: toy_a}", installed=True).names("pruner") == ["alpha"]


def test_the_shipped_registry_loads(monkeypatch):
    monkeypatch.delenv("ECOFLAP_REGISTRY", raising=False)
    registry = load_registry(installed=False)
    assert all(registry.names(kind) for kind in KINDS)
    assert "wanda" in registry.names("pruner")


def test_importing_stays_light():
    heavy = "{'transformers', 'open_clip', 'timm', 'onnx', 'datasets', 'matplotlib'}"
    code = (
        "import sys, ecoflap\n"
        "assert 'torch' not in sys.modules\n"
        "ecoflap.load_registry(installed=False)\n"
        f"print(sorted({heavy} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(sys.prefix), check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
