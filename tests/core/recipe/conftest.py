"""A registry of toy parts, and recipes that are read against it."""

import shutil
from pathlib import Path
from textwrap import dedent

import pytest

from ecoflap.core.errors import RecipeError
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry_from


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(scope="session")
def registry(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ECOFLAP_REGISTRY", raising=False)
        patch.syspath_prepend(folder)
        shutil.copy(Path(__file__).with_name("toy_parts.py"), folder / "recipe_parts.py")
        (folder / "registry.yaml").write_text(
            "version: 1\nplugins: {toy: recipe_parts}\naliases: {pruner: {obs: sparsegpt}}\n"
            "defaults: {dataset: {text: {samples: 16, more: [site.txt]}}}\n"
        )
        yield load_registry_from(folder / "registry.yaml")


@pytest.fixture
def parse(registry, folder):
    def parse(text, *set_, allow_code=False, **keywords):
        trusting = registry.trusting(allow_code)
        return parse_recipe(text, set_=set_, registry=trusting, file=folder / "sub" / "r.yaml", **keywords)

    return parse


@pytest.fixture
def told(registry):
    """What is said of a recipe, which must have problems; ``r.yaml`` is where it is."""

    def told(text, *set_):
        with pytest.raises(RecipeError) as caught:
            parse_recipe(dedent(text), set_=set_, registry=registry, file="r.yaml")
        assert "Traceback" not in str(caught.value)
        return str(caught.value)

    return told
