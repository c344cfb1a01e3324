"""Recipes that name paths which no file can have, and those from which the broken ones are made."""

import re
from copy import deepcopy

import pytest
from bases import RECIPES
from mutants import written


def test_what_is_not_broken_is_planned(bases, ecoflap_command):
    """Otherwise what is wrong with a broken one would not be what it is refused for."""
    for name in RECIPES:
        assert ecoflap_command("plan", bases / f"{name}.yaml")[0] == 0, name
    assert ecoflap_command("list", "--registry", bases / "own.yaml")[0] == 0


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model", "x" * 5000, "is not there|File name too long|file name too long"),
        ("model", "~no_such_user_of_mine/x", "begins with a user's home, and there is no such user"),
        ("path", "é" * 300, "file name too long"),
        ("path", "a\0b", "a character that names of files have not"),
        ("reuse", "é" * 300, "file name too long"),
    ],
)
def test_a_path_that_no_file_can_have(key, value, told, bases, ecoflap_command):
    recipe = deepcopy(RECIPES["llama"])
    if key == "path":
        recipe["calibration"]["path"] = value
    else:
        recipe[key] = value
    file = bases / "m.yaml"
    file.write_bytes(written(recipe))
    code, _, err = ecoflap_command("plan", file)
    assert code == 2
    assert re.search(told, err)
