"""What CI installs is pinned by constraints.txt, which anyone can install from."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LINES = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PINS = [Requirement(line) for line in LINES]


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(extra):
    """What an extra asks for directly, those that it names of ecoflap's own included."""
    for text in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if plain(requirement.name) == "ecoflap":
            for inner in requirement.extras:
                yield from wanted(inner)
        else:
            yield requirement


@pytest.mark.parametrize("line", LINES)
def test_a_pin_is_one_version_that_every_index_has(line):
    """No local version, such as torch's +cpu, and no address: those are this or that machine's."""
    assert re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*( ; .+)?", line)


def test_all_that_is_asked_for_is_pinned_to_what_suits():
    """A change of pyproject.toml that the pins do not follow: make lock."""
    asked = [*map(Requirement, PROJECT["dependencies"]), *wanted("dev")]
    assert len(asked) > 20
    pinned = {plain(pin.name): [] for pin in PINS}
    for pin in PINS:
        pinned[plain(pin.name)].append(next(iter(pin.specifier)).version)
    problems = [
        f"{requirement}: {versions}"
        for requirement in asked
        for versions in [pinned.get(plain(requirement.name), [])]
        if not versions or not all(requirement.specifier.contains(found) for found in versions)
    ]
    assert not problems


def test_one_version_is_pinned_for_each_python():
    """Two pins of one package exclude each other by their markers."""
    seen = {}
    for pin in PINS:
        if pin.marker is None or pin.marker.evaluate():
            assert pin.name not in seen, pin
            seen[pin.name] = pin
    assert "torch" in seen
