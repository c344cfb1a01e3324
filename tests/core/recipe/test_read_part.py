"""A part is read once, and what breaks its kind's contract is refused where the recipe has it."""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from ecoflap.core.errors import EcoflapError
from ecoflap.core.recipe.load import load_recipe, parse_recipe
from ecoflap.core.record.evaluations import digests
from ecoflap.core.registry.registry import load_registry


class Scores:
    """A scorer with nothing but its duty."""

    data = False

    def __call__(self, replay, layers):
        return iter(())


@dataclass(frozen=True)
class Agregates(Scores):
    """A scorer with a misspelt member."""

    agregate = "mean"


@dataclass(frozen=True)
class Strict(Scores):
    """A scorer that says one thing at a time of what is wrong with it."""

    order: Literal["random", "given"] = "random"
    beams: int = 1
    tokens: int = 8
    least: int = 2
    most: int = 4

    def __post_init__(self):
        for name in ("beams", "tokens"):
            if getattr(self, name) < 1:
                raise EcoflapError(f"{name} is {getattr(self, name)}; at least 1 is needed")
        if self.least > self.most:
            raise EcoflapError(f"least is {self.least}, which is more than most, {self.most}")
        if self.least == 2 and self.most == 3:
            raise KeyError("least 2")


def problems_of(registry, **parameters):
    score = {"use": Strict, **parameters}
    recipe = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude", "score": score}
    with pytest.raises(EcoflapError) as told:
        parse_recipe(recipe, registry=registry)
    return [problem.removeprefix("recipe: score.").partition(":")[0] for problem in told.value.problems]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"beams": 0, "tokens": -4}, ["beams", "tokens"]),
        ({"order": "randm", "tokens": 0}, ["order", "tokens"]),
        ({"order": "randm", "beams": 0, "tokens": 0, "least": 9}, ["order", "beams", "tokens", "least"]),
        ({"order": "randm", "beams": 3}, ["order"]),
        ({"beams": 0, "least": 9}, ["beams", "least"]),
        ({"least": 9, "most": 8, "beams": 2}, ["least"]),  # and not what is wrong with most and least's default
        ({"least": "9", "most": 1}, ["least"]),  # as its default is 2, which nobody wrote
        ({"least": 5, "most": 3}, ["least"]),  # by its default the code raises what is no error of users
        ({"tokens": "8", "orders": 3, "beams": 0}, ["orders", "tokens", "beams"]),
    ],
)
def test_all_that_a_part_refuses_is_told_at_once(registry, parameters, expected):
    assert problems_of(registry, **parameters) == expected


BUILT = []


class Counted(Scores):
    """A scorer that counts how often one is made."""

    samples = 3

    def __init__(self):
        BUILT.append(self)


def test_the_recipe_refuses_it_at_its_place(registry):
    recipe = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude", "score": Agregates()}
    with pytest.raises(EcoflapError, match=r"score: .*Agregates: it has a member 'agregate', which nothing reads"):
        parse_recipe(recipe, registry=registry)


def test_an_object_that_no_recipe_could_write_is_told_how_it_can_be(registry):
    recipe = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude", "score": Scores()}
    said = r"score: should be a scorer: .* how it was made: make its class a dataclass, or give the class\. Known:"
    with pytest.raises(EcoflapError, match=said):
        parse_recipe(recipe, registry=registry)
    assert parse_recipe({**recipe, "score": Scores}, registry=registry).score.scorer.use == f"{__name__}:Scores"


def test_an_adapter_from_python_is_told_so_too(registry):
    recipe = {"version": 1, "model": {"source": "m", "adapter": Scores()}, "sparsity": 0.5, "prune": "magnitude"}
    with pytest.raises(EcoflapError, match=r"model\.adapter: should be an adapter: .* make its class a dataclass, or"):
        parse_recipe(recipe, registry=registry)


def test_what_yaml_could_have_is_told_as_what_it_is(registry):
    recipe = {"version": 1, "model": "m", "sparsity": 0.5, "prune": 3}
    with pytest.raises(EcoflapError, match=r"prune: should be a pruner: .*; this is 3\. Known:"):
        parse_recipe(recipe, registry=registry)


def scored(replay, layers):
    """What a scorer does, and no function that makes one."""
    return ((layer.name, 1.0) for layer in layers)


def makes(scored: int) -> Scores:
    """A function that makes one, of a parameter."""
    return Scores()


@pytest.mark.parametrize("score", [scored, lambda replay, layers: iter(()), {"use": scored}])
def test_a_function_that_is_itself_the_part_is_told_from_one_that_makes_it(registry, score):
    recipe = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude", "score": score}
    said = r"(scored|<lambda>): it is no class, and does not say that it makes a scorer\. Name a class; or, "
    with pytest.raises(EcoflapError, match=said):
        parse_recipe(recipe, registry=registry)
    with pytest.raises(EcoflapError, match=r"makes needs scored:, which is missing"):
        parse_recipe({**recipe, "score": makes}, registry=registry)
    assert parse_recipe({**recipe, "score": {"use": makes, "scored": 3}}, registry=registry).score.scorer.built


def test_a_part_is_built_once_when_the_recipe_is_checked(registry):
    BUILT.clear()
    recipe = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude", "score": {"use": Counted}}
    spec = parse_recipe(recipe, registry=registry).score.scorer
    assert spec.options.samples == 3
    assert [spec.built] == BUILT


class Explodes(Scores):
    """A scorer that cannot be made, for a reason that is no user's."""

    def __init__(self):
        raise KeyError("layers")


def test_a_part_whose_code_raises_is_named_with_the_line(registry):
    recipe = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude"}
    recipe["score"] = Explodes
    said = r"score: .*Explodes: the scorer raised KeyError: 'layers'\. It happened in test_read_part\.py:\d+, "
    with pytest.raises(EcoflapError, match=said):
        parse_recipe(recipe, registry=registry)


@dataclass(frozen=True)
class Own:
    """What a parameter may be: a class of somebody's own."""

    file: Path | None = None
    width: int = 1
    limit: float = float("inf")
    other: Path = Path("default.txt")


@dataclass(frozen=True)
class Nested(Scores):
    """A scorer with parameters that hold others."""

    own: Own = Own()
    by_name: dict[str, Path] = field(default_factory=dict)
    names: frozenset[str] = frozenset()


def read(registry, folder, **parameters):
    file = folder / "r.yaml"
    score = json.dumps({"use": f"{__name__}:Nested", **parameters})
    file.write_text(f"version: 1\nmodel: m\nsparsity: 0.5\nprune: magnitude\nscore: {score}\n")
    return load_recipe(file, registry=registry)


@pytest.fixture
def importing(registry, monkeypatch):
    """The registry, for which this file is a module that a recipe may name."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Nested.__module__])
    return replace(registry, allow_code=True)


class OfATensor(Scores):
    def __init__(self, offset: torch.Tensor | None = None): ...


def test_an_object_that_yaml_cannot_have_is_told_in_a_sentence(registry):
    score = {"use": OfATensor, "offset": 2}
    recipe = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude", "score": score}
    with pytest.raises(EcoflapError, match=r"score\.offset: this takes an object of Python's, and none can be written"):
        parse_recipe(recipe, registry=registry)


def test_a_path_inside_of_a_parameter_is_relative_to_the_file_too(importing, tmp_path):
    part = read(importing, tmp_path, own={"file": "a.txt"}, by_name={"x": "b.txt", "y": "/c.txt"}).score.scorer
    assert part.built.own.file == tmp_path / "a.txt"
    assert part.built.own.other == Path.cwd() / "default.txt"  # as where nothing is written
    assert read(importing, tmp_path).score.scorer.built.own.other == Path.cwd() / "default.txt"
    assert part.built.by_name == {"x": tmp_path / "b.txt", "y": Path("/c.txt")}
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    assert {str(tmp_path / "a.txt"), str(tmp_path / "b.txt")} <= digests(part).keys()


def test_a_key_inside_of_a_parameter_that_nothing_reads_is_named(importing, tmp_path):
    with pytest.raises(EcoflapError, match=r"r\.yaml:5:.*: score\.own\.widht: unknown key 'widht'. Did you mean"):
        read(importing, tmp_path, own={"widht": 3})


def test_a_set_is_recorded_in_one_order(importing, tmp_path):
    names = [f"name{number}" for number in range(30)]
    assert read(importing, tmp_path, names=names).score.scorer.plain()["names"] == sorted(names)


def forgets(power: float = 1.0) -> Scores:
    """A function that makes a scorer, and does not return it."""


@dataclass(frozen=True)
class Rounds(Scores):
    """A scorer with a parameter that no recipe could set, for the key is the engine's."""

    granularity: int = 4


class Bare(Scores):
    """A scorer whose author forgot ``@dataclass``."""

    power: float = 1.0


@dataclass(frozen=True)
class Untyped(Scores):
    """A scorer whose author forgot a type."""

    power = 1.0


class ByPlace(Scores):
    """A scorer that takes its parameter by its place."""

    def __init__(self, power: float = 1.0, /): ...


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (forgets, r"score: .*forgets: what makes it has returned nothing: return the scorer, as `return MyClass"),
        (
            Rounds,
            r"Rounds has a parameter 'granularity', which nothing could set here: granularity: is a key of the re",
        ),
        ({"use": Rounds, "granularity": "layer"}, r"has a parameter 'granularity', which nothing could set here"),
        (
            {"use": Bare, "power": 2},
            r"no parameter 'power'\. Its class has power, and is no dataclass: write @dataclass",
        ),
        ({"use": Untyped, "power": 2}, r"'power'\. Its class has power without a type: as `power: float = …` it is a"),
        ({"use": ByPlace, "power": 2}, r"'power'\. power is taken by its place alone; .*: remove the / behind it\."),
        ({"use": Bare, "powr": 2}, r"no parameter 'powr'\. Known: none\.$"),
    ],
)
def test_what_an_author_forgot_is_told(registry, score, said):
    recipe = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude", "score": score}
    with pytest.raises(EcoflapError, match=said):
        parse_recipe(recipe, registry=registry)


@dataclass(frozen=True)
class Tries:
    """An allocator that names others by a member, none of which it was given."""

    candidates = ("uniform",)

    def __call__(self, groups, keep):
        return [keep]


def test_candidates_that_are_no_parameters_are_refused(registry):
    recipe = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude", "allocate": Tries}
    with pytest.raises(
        EcoflapError, match=r"Tries: its candidates are allocators that its parameters were given, .* '?u"
    ):
        parse_recipe(recipe, registry=registry)


@dataclass(frozen=True)
class Brings:
    """A pruner that brings its allocator by a bare name."""

    allocate = "alpha"

    def __call__(self, weight, seen, budget, layer): ...


def test_a_pruner_may_bring_its_allocator_by_a_bare_name():
    registry = load_registry(installed=False)
    recipe = {"version": 1, "model": "m", "sparsity": 0.5, "prune": Brings, "score": "hill"}
    parsed = parse_recipe(recipe, registry=registry)
    assert (parsed.allocate.use, parsed.allocated_at) == ("alpha", "prune")
    assert parse_recipe({**recipe, "allocate": "uniform"}, registry=registry).allocated_at == "allocate"
