"""docs/architecture.md is held to the folders, to the import contract and to the code that it leads through."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from ecoflap.core.contracts.kinds import KINDS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
OUTSIDE = ("adapters", "exporters", "plugins")
CODE = sorted(path for name in ("core", *OUTSIDE) for path in (ROOT / name).rglob("*.py"))
FOLDERS = sorted({path.parent for path in CODE})
TEST_FOLDERS = sorted({path.parent for path in (ROOT / "tests").rglob("*.py")})
MOST_FILES = 15


def label(path):
    return str(path.relative_to(ROOT))


def table(first):
    """The rows of the table whose first column has this heading, each as its cells."""
    lines = iter(PAGE.splitlines())
    assert any(line.startswith(f"| {first} |") for line in lines), f"no table begins with {first!r}"
    next(lines)
    found = []
    while (line := next(lines, "")).startswith("|"):
        found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


def quoted(text):
    return re.findall(r"`([^`]+)`", text)


def paths(text):
    return [name for name in quoted(text) if re.fullmatch(r"[\w./-]+(/|\.(py|md|yaml|toml))", name)]


def names_in(path):
    """Every function and class of a file."""
    nodes = ast.walk(ast.parse((ROOT / path).read_text("utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_the_rooms_are_those_there_are():
    named = [room for floor, _ in table("room") for room in quoted(floor)]
    folders = [path for path in FOLDERS if path.parent == ROOT / "core"]
    modules = [path for path in CODE if path.parent == ROOT / "core" and path.name != "__init__.py"]
    assert sorted(named) == sorted(path.stem for path in (*folders, *modules))


def test_the_floors_are_those_of_the_import_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["containers"] == ["ecoflap.core"])
    assert [sorted(quoted(floor)) for floor, _ in table("room")] == [sorted(floor.split(" | ")) for floor in layers]


def test_the_folders_outside_the_engine_are_those_there_are():
    named = {path.strip("/") for row in table("folder") for cell in row for path in paths(cell)}
    expected = {label(path) for path in FOLDERS if label(path).split("/")[0] in OUTSIDE} - {"plugins"}
    assert named == expected


def test_every_path_on_the_page_exists():
    left_by_a_run = {name for *_, leaves in table("step") for name in quoted(leaves)}
    named = [*paths(PAGE), *(f"docs/{link}" for link in re.findall(r"\]\(([^)#:]+)\)", PAGE))]
    assert [path for path in named if path not in left_by_a_run and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("row", table("step"), ids=lambda row: row[2])
def test_the_functions_of_a_step_are_in_its_files(row):
    _, files, functions, leaves = row
    assert paths(files) == quoted(files)
    assert set(quoted(functions)) <= set().union(*map(names_in, paths(files)))
    code = "".join(path.read_text("utf-8") for path in CODE if path.parts[len(ROOT.parts)] == "core")
    assert [name for name in quoted(leaves) if f'"{name.strip("/")}"' not in code] == []


def test_there_is_a_place_for_every_kind_of_part():
    new = {word for what, *_ in table("a new …") for word in re.findall(r"\w+", what)}
    assert set(KINDS) <= new


@pytest.mark.parametrize("folder", [*FOLDERS, *TEST_FOLDERS], ids=label)
def test_a_folder_is_seen_at_a_glance(folder):
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MOST_FILES


@pytest.mark.parametrize("path", CODE, ids=label)
def test_a_name_is_imported_from_where_it_is_defined(path):
    """No module only passes on what others define."""
    body = ast.parse(path.read_text("utf-8")).body
    statements = [node for node in body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    assert not statements or any(not isinstance(node, ast.Import | ast.ImportFrom) for node in statements)
