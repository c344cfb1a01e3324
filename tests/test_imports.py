"""What is imported when: nothing heavy before it is needed, and every public name from where it says."""

import ast
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import ecoflap

HEAVY = {
    "transformers",
    "open_clip",
    "timm",
    "onnx",
    "onnxruntime",
    "datasets",
    "matplotlib",
    "pandas",
    "gguf",
    "openvino",
}
SHOWN = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def imported_by(code):
    """The top-level modules a fresh interpreter has imported after ``code``."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{SHOWN}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def declared():
    """Public name by public name, the module that the ``TYPE_CHECKING`` block imports it from."""
    tree = ast.parse(Path(ecoflap.__file__).read_text("utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    return {alias.asname: (node.module, alias.name) for node in block.body for alias in node.names}


def test_the_registry_loads_no_model_library():
    found = imported_by("import ecoflap\necoflap.load_registry(installed=False)")
    assert "torch" in found
    assert not found & HEAVY


def test_importing_the_package_loads_no_torch():
    assert not imported_by("import ecoflap") & {*HEAVY, "torch", "numpy"}


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_load_no_torch(option):
    command = f"import sys\nfrom ecoflap.core.cli.main import main\nsys.argv = ['ecoflap', {option!r}]"
    run = "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code"
    assert not imported_by(f"{command}\n{run}") & {*HEAVY, "torch", "numpy"}


def test_what_type_checkers_see_is_what_is_public():
    assert sorted(declared()) == ecoflap.__all__


@pytest.mark.parametrize("name", ecoflap.__all__)
def test_a_public_name_is_what_type_checkers_see(name):
    module, declared_name = declared()[name]
    assert declared_name == name
    assert getattr(ecoflap, name) is getattr(import_module(module), name)
    assert name in dir(ecoflap)


def test_another_name_is_an_ordinary_error():
    with pytest.raises(AttributeError, match="module 'ecoflap' has no attribute 'prune'"):
        _ = ecoflap.prune


ROOT = Path(__file__).parents[1]
READ = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "recipes").rglob("*.md"))]
EXAMPLES = [*sorted((ROOT / "examples").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.py"))]


def code_of(path):
    """The Python of a file or of a page."""
    text = path.read_text("utf-8")
    if path.suffix == ".py":
        return [text]
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def imports_of(path):
    """Each module of this package that the Python imports, with the names taken from it."""
    for code in code_of(path):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                yield from ((alias.name, ()) for alias in node.names if alias.name.split(".")[0] == "ecoflap")
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ecoflap":
                yield node.module, tuple(alias.name for alias in node.names)


@pytest.mark.parametrize("path", [*READ, *EXAMPLES], ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_and_examples_import_public_names_alone(path):
    for module, names in imports_of(path):
        assert module in ecoflap.PUBLIC, f"{module} is private"
        assert set(names) <= set(import_module(module).__all__)


@pytest.mark.parametrize("module", ecoflap.PUBLIC)
def test_a_public_module_says_what_it_has(module):
    public = import_module(module)
    assert public.__doc__
    assert list(public.__all__) == sorted(public.__all__)
    assert all(hasattr(public, name) for name in public.__all__)


def test_the_public_modules_are_those_there_are():
    files = (ROOT / "ecoflap").glob("*.py")
    found = {f"ecoflap.{file.stem}" for file in files if not file.stem.startswith("_")}
    assert set(ecoflap.PUBLIC) == {"ecoflap", *found}


def test_a_public_module_is_there_when_it_is_asked_for():
    code = "import ecoflap; assert ecoflap.kernel.packed_linear is not None"
    subprocess.run([sys.executable, "-c", code], check=True)
