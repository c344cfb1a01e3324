"""Plan, list by, and run recipes and registries that are broken; and give every command arguments that are."""

import shutil
from collections.abc import Iterable, Iterator
from copy import deepcopy
from pathlib import Path

from bases import RECIPES, REGISTRY
from command import Ended, run_command
from mutants import mutant

SECONDS = 30
"""A run is stopped after so many: one that asks for a million noises does what it was asked."""
KINDS = (*RECIPES, "registry")


def recipes(folder: Path, seeds: Iterable[int]) -> Iterator[tuple[str, Ended]]:
    """Plan each broken recipe; list by each broken registry, and plan by it."""
    file = folder / "m.yaml"
    for seed in seeds:
        kind = KINDS[seed % len(KINDS)]
        name = f"{kind} {seed}"
        file.write_bytes(mutant(REGISTRY if kind == "registry" else RECIPES[kind], name))
        if kind != "registry":
            yield name, run_command("plan", file)
        else:
            yield name, run_command("list", "--registry", file)
            yield f"{name}, planned by", run_command("plan", "clip.yaml", "--registry", file)


def runs(folder: Path, seeds: Iterable[int]) -> Iterator[tuple[str, Ended]]:
    """Run what passes the plan."""
    quick = deepcopy(RECIPES)
    quick["llama"]["export"] = ["safetensors"]
    del quick["clip"]["export"], quick["blip2"]["evaluate"]  # of which some would make texts of 100,000 tokens
    file, run = folder / "m.yaml", folder / "runs" / "m"
    for seed in seeds:
        kind = list(quick)[seed % len(quick)]
        file.write_bytes(mutant(quick[kind], f"run {kind} {seed}", bytes_too=0))
        if run_command("plan", file).code == 0:
            arguments = (file, "--folder", run, "--registry", "undrawn.yaml")
            yield f"{kind} {seed}", run_command("run", *arguments, seconds=SECONDS)
            shutil.rmtree(run, ignore_errors=True)


ARGUMENTS = [
    "",
    " ",
    "\0",
    "x" * 5000,
    "~no_such_user_of_mine",
    ".",
    "\udcff",
    "é" * 300,
    "-",
    "a\nb",
    "\x1b[2J",
]
"""A file name in an argument may be of any bytes."""


def arguments(folder: Path, seeds: Iterable[int]) -> Iterator[tuple[str, Ended]]:
    """Give each command the arguments of these numbers."""
    for argument in (ARGUMENTS[seed] for seed in seeds if seed < len(ARGUMENTS)):
        commands = (
            ("plan", argument),
            ("run", argument),
            ("inspect", argument),
            ("report", argument),
            ("verify", argument),
            ("compare", argument),
            ("export", argument, "--to", "safetensors"),
            ("densify", argument, folder / "x"),
            ("sweep", argument, "--dry-run"),
            ("list", argument),
            ("list", "--registry", argument),
            ("plan", "llama.yaml", "--set", argument),
            ("plan", "llama.yaml", "--set", f"seed={argument}"),
            ("inspect", "llama", "--adapter", argument),
            ("export", folder, "--to", argument),
            ("sweep", "llama.yaml", "--dry-run", "--seeds", argument),
            ("sweep", "llama.yaml", "--dry-run", "--set", argument),
        )
        for command in commands:
            yield ascii(command)[:100], run_command(*command)
