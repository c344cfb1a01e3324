"""Inspect models whose configuration is broken, and plan and run with one broken file of a model or of the data."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

from bases import RECIPES, save_model
from command import Ended, run_command
from mutants import broken_bytes, changed, mutant, written
from table import ALL_ROWS

CONFIGS = ("config.json", "open_clip_config.json")


def some_configs(folder: Path, seeds: Iterable[int]) -> Iterator[tuple[str, Ended]]:
    """Break the configurations of the models that the recipes are for."""
    yield from _inspected({name: folder / name / "config.json" for name in RECIPES}, seeds)


def configs(folder: Path, seeds: Iterable[int]) -> Iterator[tuple[str, Ended]]:
    """Break those of every family; nothing but a configuration is read of them, so they have no weights."""
    files = {}
    for name, row in sorted(ALL_ROWS.items()):
        if row.is_whole_on_disk:
            save_model(row, folder / "families" / name)
            for weights in (folder / "families" / name).glob("*.safetensors"):
                weights.write_bytes(b"")
            places = (folder / "families" / name / config for config in CONFIGS)
            files[name] = next(file for file in places if file.is_file())
    yield from _inspected(files, seeds)


def _inspected(files: Mapping[str, Path], seeds: Iterable[int]) -> Iterator[tuple[str, Ended]]:
    whole = {name: file.read_bytes() for name, file in files.items()}
    for seed in seeds:
        for name, file in files.items():
            file.write_bytes(mutant(json.loads(whole[name]), f"config {name} {seed}", as_json=True, bytes_too=0.05))
            yield f"{name} {seed}", run_command("inspect", file.parent)
            file.write_bytes(whole[name])


def files(folder: Path, seeds: Iterable[int]) -> Iterator[tuple[str, Ended]]:
    """Break one file of a model or of the data, plan, and run what is planned."""
    recipes = deepcopy(RECIPES)
    recipes["llama"]["export"] = ["safetensors"]
    del recipes["clip"]["export"]
    for name, recipe in recipes.items():
        (folder / f"m-{name}.yaml").write_bytes(written(recipe))
    data = [path for path in folder.iterdir() if path.suffix in (".png", ".jsonl")]
    for seed in seeds:
        draw = Random(f"files {seed}")
        name = draw.choice(list(recipes))
        file = draw.choice(sorted([*(folder / name).iterdir(), *(folder / name).iterdir(), *data]))
        raw = file.read_bytes()
        file.write_bytes(_broken(file, raw, draw))
        yield f"{seed} {name} {file.name}: plan", (ended := run_command("plan", f"m-{name}.yaml"))
        if ended.code == 0:
            arguments = (f"m-{name}.yaml", "--folder", folder / "x", "--registry", "undrawn.yaml")
            yield f"{seed} {name} {file.name}: run", run_command("run", *arguments)
            shutil.rmtree(folder / "x", ignore_errors=True)
        file.write_bytes(raw)


def _broken(file: Path, raw: bytes, draw: Random) -> bytes:
    if file.suffix == ".json" and draw.random() < 0.7:
        return written(changed(json.loads(raw), draw), as_json=True)
    if file.suffix == ".jsonl" and draw.random() < 0.7:
        rows: Any = changed([json.loads(line) for line in raw.splitlines()], draw)
        return b"".join(written(row, as_json=True) + b"\n" for row in (rows if isinstance(rows, list) else [rows]))
    return broken_bytes(raw, draw)
