"""What is imported when: nothing heavy before it is needed, and every public name from where it says."""

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import ecoflap

HEAVY = {"transformers", "open_clip", "timm", "onnx", "onnxruntime", "datasets", "matplotlib", "pandas", "gguf"}
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
