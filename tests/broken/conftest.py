"""Models, data and recipes to break, and a process that tries what is broken."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers.models.siglip")  # the models are of families that LAVIS's transformers has not

import bases as broken_bases
from mutants import written

import ecoflap

SUPPORT = Path(broken_bases.__file__).parents[1]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the models, the data, and a file of each recipe that is right as it stands."""
    folder = tmp_path_factory.mktemp("bases")
    broken_bases.write_bases(folder)
    for name, recipe in broken_bases.RECIPES.items():
        (folder / f"{name}.yaml").write_bytes(written(recipe))
    (folder / "own.yaml").write_bytes(written(broken_bases.REGISTRY))
    (folder / "undrawn.yaml").write_text("version: 1\ndisable: [page, progress]\n")  # drawing takes most of the time
    return folder


@pytest.fixture
def tried(bases: Path) -> Callable[..., dict[str, dict[str, Any]]]:
    """``tried("recipes:0:120")``: what each attempt came to, in a process of its own, by its name."""

    def tried(*asked: str) -> dict[str, dict[str, Any]]:
        folders = [Path(ecoflap.__file__).parents[1], SUPPORT, *(path for path in SUPPORT.rglob("*") if path.is_dir())]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "OMP_NUM_THREADS": "1"}
        environment.pop("ECOFLAP_REGISTRY", None)
        command = [sys.executable, str(SUPPORT / "broken" / "tries.py"), str(bases), *asked]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr[-3000:]
        found: dict[str, dict[str, Any]] = json.loads(ended.stdout.splitlines()[-1])
        return found

    return tried
