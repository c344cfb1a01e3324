"""What is built and installed is what is in git, and works from any folder."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
CODE = ("adapters", "core", "exporters", "plugins")
BOX = tuple(f"examples/box/{name}" for name in ("blip2", "clip", "data", "llava"))
SHIPPED = (*CODE, *BOX, "ecoflap", "kernels", "recipes", "registry.yaml")
SOURCE = (*SHIPPED, "pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE", "tests", "docs")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
OFFLINE = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]

USED = """
import json
from pathlib import Path

import ecoflap
from ecoflap.core.recipe.load import find_recipe, load_recipe
from ecoflap.plugins.datasets.text import Text

registry = ecoflap.load_registry(installed=False)
path = find_recipe("quickstart-llama")
recipe = load_recipe(path, registry=registry)
(shipped,) = Text()._paths()
module = registry.find("pruner", "wanda").__module__
used = [ecoflap.__file__, module, recipe.prune.use, list(Text()._wrong_parameters())]
print(json.dumps([*used, str(path), str(recipe.calibration.data.parameters["path"]), str(shipped)]))
"""


def quietly(*command, **keywords):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **keywords)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def away(path, *command):
    """Run from a folder that has nothing to do with the project.

    :param path: Searched for modules before the environment the tests run in; None for that alone.
    """
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ECOFLAP_REGISTRY")}
    return quietly(*command, cwd=Path(sys.prefix), env=own | ({"PYTHONPATH": str(path)} if path else {}))


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """``made("dist", make)``: the folder of this name, which the first of several processes that run tests makes."""
    base = tmp_path_factory.getbasetemp()
    place = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name, make):
        folder = place / f"packaging-{name}"
        with FileLock(place / f"packaging-{name}.lock"):
            if not folder.exists():
                unfinished = folder.with_name(f"{folder.name}.unfinished")
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def source(made):
    """A copy: building leaves files behind."""

    def copy(folder):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so", "built")
        for name in SOURCE:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
            else:
                shutil.copy(ROOT / name, folder / name)

    return made("source", copy)


@pytest.fixture(scope="session")
def compiling(made):
    """An environment whose compiler takes no time to make the kernels fast, of which nothing here is the subject."""

    def write(folder):
        (folder / "c++").write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -O0\n')
        (folder / "c++").chmod(0o755)

    return {**os.environ, "CXX": str(made("compiler", write) / "c++")} if has_compiler else dict(os.environ)


@pytest.fixture(scope="session")
def built(source, made, compiling):
    """The sdist, and the wheel made of what is in the sdist."""
    command = (sys.executable, "-m", "build", "--no-isolation", "--outdir")
    out = made("dist", lambda folder: quietly(*command, folder, source, env=compiling))
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


LIBRARY = "ecoflap/core/kernel/libecoflap_kernels.so"
COMPILER = shlex.split(os.environ.get("CXX", "c++"))[0]
has_compiler = shutil.which(COMPILER) is not None


@pytest.fixture(scope="session")
def in_wheel(built):
    with zipfile.ZipFile(built[1]) as wheel:
        return sorted(wheel.namelist())


@pytest.fixture(scope="session")
def installed(built, source, made, compiling):
    """``installed("wheel")``: the folder it is in; None for the environment that the tests run in."""
    pip = (sys.executable, "-m", "pip", "install", *OFFLINE, "--no-build-isolation", "--target")
    given = {"wheel": built[1], "source": source}

    def installed(how):
        if how not in given:
            return None
        return made(f"by-{how}", lambda folder: quietly(*pip, folder, given[how], env=compiling))

    return installed


FROM_SOURCE = pytest.param("source", marks=pytest.mark.slow)
"""Builds once more what the wheel was built of."""


def in_git():
    """Every file under version control, and those that would be with the next commit."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not in a git checkout")
    listed = quietly("git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *SHIPPED, cwd=ROOT)
    return [name for name in listed.splitlines() if (ROOT / name).exists() and not (ROOT / name).is_symlink()]


def test_the_wheel_holds_the_files_of_git_and_no_others(in_wheel):
    expected = [name if name.startswith("ecoflap/") else f"ecoflap/{name}" for name in in_git()]
    built = [LIBRARY] if has_compiler else []
    assert [name for name in in_wheel if ".dist-info/" not in name] == sorted([*expected, *built])


def test_the_wheel_installs_one_folder_beside_its_metadata(in_wheel):
    assert {name.split("/")[0] for name in in_wheel} == {
        "ecoflap",
        f"ecoflap-{SETTINGS['project']['version']}.dist-info",
    }
    assert not [name for name in in_wheel if "tests/" in name or name.endswith("conftest.py")]


def test_every_folder_with_code_is_named_as_a_package():
    folders = {path.parent.relative_to(ROOT) for folder in CODE for path in (ROOT / folder).rglob("*.py")}
    expected = {"ecoflap", *(f"ecoflap.{'.'.join(folder.parts)}" for folder in folders)}
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == expected


def test_the_wheel_is_for_any_python_and_its_platform(built):
    """The library is no module of Python's: one wheel serves all."""
    python, abi, platform = built[1].stem.split("-")[-3:]
    assert (python, abi, platform == "any") == ("py3", "none", not has_compiler)


def test_without_a_compiler_there_is_a_wheel_without_a_library(source, tmp_path):
    building(source, "build_wheel", tmp_path, CXX=str(tmp_path / "no-compiler"))
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    assert LIBRARY not in names
    assert {"ecoflap/kernels/build.py", "ecoflap/kernels/src/blocks.h", "ecoflap/core/kernel/library.py"} <= names


@pytest.mark.slow
def test_a_compiler_that_fails_leaves_the_library_out(source, tmp_path):
    """Not only one that is not there: pip install never fails for want of one."""
    building(source, "build_wheel", tmp_path, CXX="false")
    assert [wheel.name.rpartition("-")[2] for wheel in tmp_path.glob("*.whl")] == ["any.whl"]


@pytest.mark.slow
def test_a_wheel_is_the_same_bytes_whenever_it_is_built(source, tmp_path):
    """As SOURCE_DATE_EPOCH asks; the folder it is built in leaves no trace."""
    wheels = []
    for name in ("first", "second"):
        copy = shutil.copytree(source, tmp_path / name / "source", symlinks=True)
        building(copy, "build_wheel", tmp_path / name, SOURCE_DATE_EPOCH="1700000000")
        wheels += [path.read_bytes() for path in (tmp_path / name).glob("*.whl")]
    assert len(wheels) == 2
    assert wheels[0] == wheels[1]


@pytest.mark.slow
def test_what_is_asked_of_a_wheel_holds_for_one_built_here(installed):
    multiplies = "kernels" if has_compiler else "torch"
    command = f"import runpy, sys, sysconfig; sys.argv = ['installed.py', {multiplies!r}]; "
    command += f"sysconfig.get_path = lambda _: {str(installed('wheel') / 'bin')!r}; "
    command += f"runpy.run_path({str(ROOT / '.ci' / 'installed.py')!r}, run_name='__main__')"
    said = away(installed("wheel"), sys.executable, "-c", command)
    assert f"ecoflap {SETTINGS['project']['version']}" in said
    assert "from dense" in said


@pytest.mark.skipif(not has_compiler, reason=f"there is no compiler here: {COMPILER}")
@pytest.mark.parametrize("how", ["wheel", FROM_SOURCE])
def test_the_kernels_are_found_where_they_are_installed(installed, how):
    shown = away(installed(how), installed(how) / "bin" / "ecoflap", "doctor")
    assert str(installed(how) / LIBRARY) in shown
    assert "portable" in shown


def building(source, build, target, **environment):
    """Build as pip does, and take warnings for errors: newer versions of pip print them all. Setuptools' are these."""
    code = f"from setuptools import build_meta; build_meta.{build}({str(target)!r})"
    command = (sys.executable, "-W", "error::UserWarning", "-c", code)
    quietly(*command, cwd=source, env={**os.environ, **environment})


LICENCE = re.compile(r"(?m)^([A-Z][\w.+-]+)\n(?=  )")
"""A heading of NOTICE: a licence by its SPDX identifier, above what is under it."""


def test_the_metadata_names_the_licence_of_all_that_ships(built):
    """And ships what each of them asks to go along; NOTICE says what is under which."""
    with zipfile.ZipFile(built[1]) as wheel:
        metadata = next(name for name in wheel.namelist() if name.endswith("dist-info/METADATA"))
        fields = Parser().parsestr(wheel.read(metadata).decode())
        shipped = wheel.namelist()
    notice = (ROOT / "NOTICE").read_text("utf-8")
    assert fields["License-Expression"].split(" AND ") == sorted(LICENCE.findall(notice))
    files = fields.get_all("License-File")
    assert files == SETTINGS["project"]["license-files"]
    assert not [name for name in files if not any(path.endswith(f"dist-info/licenses/{name}") for path in shipped)]
    named = re.findall(r"(?m)^  ([\w./-]+): ", notice)
    assert len(named) >= len(LICENCE.findall(notice))
    assert not [name for name in named if not any(path.startswith(f"ecoflap/{name}") for path in shipped)]


@pytest.mark.slow
def test_building_for_editing_warns_of_nothing(source, tmp_path):
    building(source, "build_editable", tmp_path)


def test_the_sdist_holds_what_building_takes(built):
    with tarfile.open(built[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE", "core/cli/main.py", "ecoflap/registry.yaml"} <= names
    assert {"ecoflap/kernels/build.py", "ecoflap/kernels/include/ecoflap_kernels.h"} <= names


@pytest.mark.parametrize("how", ["wheel", FROM_SOURCE, "here"])
def test_recipes_registry_and_text_are_found_from_any_folder(installed, how):
    used = json.loads(away(installed(how), sys.executable, "-c", USED))
    file, module, pruner, problems, *paths = used
    assert (module, pruner, problems) == ("ecoflap.plugins.pruners.wanda", "wanda", [])
    home = Path(file).parent
    if installed(how):
        assert home == installed(how) / "ecoflap"
    quickstart, *texts = [Path(path).resolve() for path in paths]
    assert quickstart == (home / "recipes" / "quickstart-llama.yaml").resolve()
    assert texts == [(home / "recipes" / "data" / "wikipedia.jsonl").resolve()] * 2


@pytest.mark.parametrize("how", ["wheel", FROM_SOURCE])
def test_the_command_runs_from_any_folder(installed, how):
    script = installed(how) / "bin" / "ecoflap"
    assert away(installed(how), script, "--version").strip() == SETTINGS["project"]["version"]
    assert "wanda" in away(installed(how), script, "list", "pruner")
    assert away(installed(how), sys.executable, "-m", "ecoflap.core.recipe.docs").startswith("# The recipe")
