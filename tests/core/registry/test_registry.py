"""Parts are found by their names, and what offers none or two of one name is told."""

import subprocess
import sys
from pathlib import Path

import pytest

from ecoflap.core.contracts.kinds import KINDS
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.registry.registry import load_registry


def test_a_part_is_found_by_name_alias_and_import_path(world):
    registry = world.load("plugins: {a: toy_a, b: toy_b}\naliases: {pruner: {first: alpha}}")
    assert registry.names("pruner") == ["alpha", "beta"]
    assert registry.choices("pruner") == ["alpha", "beta", "first"]
    alpha = registry.find("pruner", "alpha")
    assert registry.find("pruner", "first") is registry.trusting(True).find("pruner", "toy_a:Alpha") is alpha
    assert str(registry.origin("pruner", "first")) == "toy_a:Alpha (built-in)"
    assert str(registry.trusting(True).origin("pruner", "toy_b:Beta")) == "toy_b:Beta (import path)"


def test_what_is_not_there_is_told_with_the_nearest(world, problems):
    registry = world.load("plugins: {a: toy_a}").trusting(True)
    assert problems(registry.find, "pruner", "alpa") == "no pruner named 'alpa'. Did you mean 'alpha'? Known: alpha."
    assert "no kind of part named 'prunr'. Did you mean 'pruner'?" in problems(registry.find, "prunr", "alpha")
    assert "no kind of part named 'x'" in problems(registry.names, "x")
    assert problems(registry.find, "pruner", "toy_a:Alpa") == (
        "the pruner 'toy_a:Alpa' cannot be imported: toy_a has no 'Alpa'. Did you mean 'Alpha'?"
    )
    assert "No module named 'no_such'" in problems(registry.find, "pruner", "no_such:X")
    assert "makes no part" in problems(registry.find, "pruner", "toy_a:__name__")


def test_code_that_raises_as_it_is_imported_is_told_with_its_line(world, problems):
    world.module("toy_wrong", "import math\n\nHALF = 1 / math.sin(0)\n")
    told = problems(world.load("").trusting(True).find, "pruner", "toy_wrong:Mine")
    said = "the pruner 'toy_wrong:Mine' cannot be imported: ZeroDivisionError: float division by zero."
    assert told == f"{said} It happened in toy_wrong.py:3, <module>."


@pytest.mark.parametrize(
    ("kind", "name", "told"),
    [
        ("refiner", "refit", "The pruner of this name is written prune: refit."),
        ("pruner", "ria", "The metric of this name is written prune: {use: by_metric, metric: ria}."),
        ("scorer", "ria", "The metric of this name is written score: {use: local_metric, metric: ria}."),
        ("allocator", "ria", "The metric of this name is written score: {use: local_metric, metric: ria}."),
        ("exporter", "llama", "The adapter of this name is written model.adapter: llama."),
        (
            "allocator",
            "wanda",
            "The pruner of this name is written prune: wanda. "
            "The metric of this name is written score: {use: local_metric, metric: wanda}.",
        ),
    ],
)
def test_a_name_of_another_kind_is_told_with_how_it_is_written(problems, kind, name, told):
    said = problems(load_registry(installed=False).find, kind, name)
    assert said.startswith(f"no {kind} named {name!r}.")
    assert said.split("Known: ")[1].split(". ", 1)[1] == told


def test_an_object_in_the_place_of_its_class_is_told_with_the_class(world, problems):
    text = """
from functools import partial
from ecoflap import hookimpl

class Made:
    def __call__(self, weight, seen, budget, layer): ...

@hookimpl
def ecoflap_register_pruners():
    return {"made": Made(), "partly": partial(Made)}
"""
    world.module("toy_o", text)
    said = problems(world.load, "plugins: {o: toy_o}")
    for name, made in (("made", "Made"), ("partly", "partial")):
        assert f"offers the pruner '{name}' as an object, a {made}, and what makes one is wanted" in said
        assert (f"offer the class {made}" in said) == (made != "partial")
    assert "offer the class Made, or a function that makes one." in said


def test_a_metric_that_nothing_takes_is_told_too(world, problems):
    world.module("toy_m", METRIC)
    registry = world.load("plugins: {a: toy_a, m: toy_m}")
    assert problems(registry.find, "pruner", "toy") == "no pruner named 'toy'. Known: alpha. A metric has this name."


METRIC = """
from ecoflap import hookimpl

class Toy:
    def __call__(self, weight, seen): ...

@hookimpl
def ecoflap_register_metrics():
    return {"toy": Toy}
"""


def test_parts_are_written_after_keys_that_recipes_have():
    keys = {kind: one.key.split(".")[0] for kind, one in KINDS.items() if one.key}
    assert set(keys.values()) <= set(Recipe.model_fields)
    assert [kind for kind in KINDS if kind not in keys] == ["metric"]


def test_two_plugins_with_one_name_are_both_named(world, problems):
    world.pruner("rival", "Rival", "alpha")
    told = problems(world.load, "plugins: {a: toy_a, r: rival}")
    assert "two plugins offer the pruner 'alpha': toy_a:Alpha of plugin 'a'" in told
    assert "and rival:Rival of plugin 'r' (rival, built-in)" in told
    assert "Put 'a' or 'r' under disable: in your registry file." in told
    assert world.load("plugins: {a: toy_a, r: rival}\ndisable: [a]").find("pruner", "alpha").__name__ == "Rival"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "has no function marked @hookimpl"),
        ("@hookimpl\ndef ecoflap_register_pruners(): return [1]", "as a mapping from name to factory, not [1]"),
        ("@hookimpl\ndef ecoflap_register_pruners(): return None", "not None"),
        ("@hookimpl\ndef ecoflap_register_pruners(): return {'a': 3}", "offers the pruner 'a': 3"),
        ("@hookimpl\ndef ecoflap_register_pruners(): return {'a:b': int}", "a name without ':'"),
        ("@hookimpl\ndef ecoflap_register_pruners(): return {'': int}", "offers the pruner ''"),
        ("@hookimpl\ndef ecoflap_register_pruners(): 1 / 0", "failed to offer its pruners: ZeroDivisionError"),
    ],
)
def test_plugins_that_offer_nothing_usable(world, body, said, problems):
    world.module("odd", f"from ecoflap import hookimpl\n{body}\n")
    assert said in problems(world.load, "plugins: {odd: odd}")


def test_names_nothing_offers_are_refused_everywhere(world, problems):
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
