"""House rules that no linter holds."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted(path for name in ("core", "plugins", "adapters", "exporters") for path in (ROOT / name).rglob("*.py"))
PARTS = [path for path in CODE if path.parts[len(ROOT.parts)] != "core" and path.name != "__init__.py"]
FOLDERS = ("core", "plugins", "adapters", "exporters", "recipes", "tests", "docs", "benchmarks", "examples", ".ci")
TEXTS = sorted(
    path
    for place in (*FOLDERS, "*.md", "*.yaml", "Makefile", "ecoflap/*.py")
    for found in ROOT.glob(place)
    for path in ([found] if found.is_file() else found.rglob("*"))
    if path.suffix in (".py", ".md", ".yaml", ".toml", "") and path.is_file()
)


def label(path):
    return str(path.relative_to(ROOT))


def calls(tree):
    """Each call with the dotted name of what is called."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def imports(tree):
    """Each imported module, with the names taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", CODE, ids=label)
def test_a_file_is_read_in_one_sitting(path):
    assert len(path.read_text("utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", PARTS, ids=label)
def test_a_part_begins_by_saying_what_it_is(path):
    assert path.read_text("utf-8").startswith('"""')


@pytest.mark.parametrize("path", CODE, ids=label)
def test_nothing_that_is_read_can_run_code(path):
    tree = ast.parse(path.read_text("utf-8"))
    for name, call in calls(tree):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        weights_only = given.get("weights_only")
        assert name != "torch.load" or (isinstance(weights_only, ast.Constant) and weights_only.value is True)
        assert name not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec")
        trusted = given.get("trust_remote_code")
        assert trusted is None or (isinstance(trusted, ast.Constant) and trusted.value is False)
    unsafe = {name for module, name in imports(tree) if module in ("pickle", "dill", "joblib", "marshal", "shelve")}
    # What processes of one run send each other is no file and nobody else's; torch.distributed pickles it, too.
    between_processes = path.parts[-3:] == ("core", "ranks", "parcels.py")
    assert between_processes or unsafe <= {"UnpicklingError", "PicklingError"}


@pytest.mark.parametrize("path", TEXTS, ids=label)
def test_nothing_is_left_to_do(path):
    left = re.compile("TO" + "DO|FIX" + "ME|X" + "XX")
    assert not left.search(path.read_text("utf-8"))


@pytest.mark.parametrize("path", CODE, ids=label)
def test_a_part_knows_no_other_kind_of_part(path):
    """A method knows no model and an adapter no method: what they share is in core."""
    kind = label(path).split("/")[0]
    others = {"plugins", "adapters", "exporters"} - {kind}
    foreign = [module for module, _ in imports(ast.parse(path.read_text("utf-8"))) if module]
    assert not [module for module in foreign if module.startswith(tuple(f"ecoflap.{other}" for other in others))]
