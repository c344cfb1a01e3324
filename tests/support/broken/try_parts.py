"""Plan and run with parts that raise or answer nonsense, each of whose members is wrong in one way."""

import io
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from command import Ended
from nonsense import KINDS, broken_parts

import ecoflap
from ecoflap.core.cli.plan_report import plan_tables
from ecoflap.core.errors import EcoflapError
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import Registry, load_registry

Asked: TypeAlias = Callable[[dict[str, Any], Registry, Path], None]
TEXT = {"use": "text", "path": "text.jsonl", "sequence_length": 8, "samples": 2}
PLAIN: dict[str, Any] = {
    "version": 1,
    "model": "./llama",
    "calibration": {**TEXT, "batch_size": 2},
    "sparsity": 0.5,
    "prune": "magnitude",
    "allocate": "uniform",
}


def recipe_with(kind: str, part: type[Any]) -> dict[str, Any]:
    """Give a recipe that uses a part of a kind, small enough to run in a moment."""
    scored = {"score": {"use": "zeroth_order", "samples": 2}, "allocate": "ecoflap"}
    own = "samples" in vars(part)  # a value that is broken is not set by the recipe
    keys: dict[str, dict[str, Any]] = {
        "scorer": {"score": part if own else {"use": part, "samples": 2}, "allocate": "ecoflap"},
        "allocator": {"allocate": part, "score": "magnitude"},
        "pruner": {"prune": part},
        "dataset": {"calibration": {**TEXT, "use": part}, "prune": "wanda"},
        "evaluator": {"evaluate": {"use": part, "data": TEXT}},
        "exporter": {"export": part},
        "adapter": {
            "model": {"source": "./llama", "adapter": part},
            **scored,
            "prune": "wanda",
            "evaluate": {"use": "perplexity", "data": TEXT},
            "export": "safetensors",
        },
    }
    return {**PLAIN, **keys[kind]}


def parts(folder: Path, seeds: Iterable[int]) -> Iterator[tuple[str, Ended]]:
    """Plan and run with the broken parts of these numbers."""
    registry = replace(load_registry(installed=False), _observers=())  # which would draw bars
    wanted = set(seeds)
    every = ((kind, name, part) for kind in KINDS for name, part in broken_parts(kind))
    for number, (kind, name, part) in enumerate(every):
        for asked in (planned, ran) if number in wanted else ():
            yield f"{kind}: {name}: {asked.__name__}", ended(asked, recipe_with(kind, part), registry, folder)


def ended(asked: Asked, recipe: dict[str, Any], registry: Registry, folder: Path) -> Ended:
    shutil.rmtree(folder / "part", ignore_errors=True)
    try:
        with redirect_stderr(io.StringIO()):
            asked(recipe, registry, folder)
    except EcoflapError as error:
        return Ended(2, "", str(error))
    except BaseException:  # such as that of sys.exit, which must not end us
        return Ended(1, "", "", traceback.format_exc())
    return Ended(0, "", "")


def planned(recipe: dict[str, Any], registry: Registry, folder: Path) -> None:
    plan_tables(parse_recipe(recipe, registry=registry, file=Path("recipe").absolute()), registry)


def ran(recipe: dict[str, Any], registry: Registry, folder: Path) -> None:
    ecoflap.run(recipe, folder=folder / "part", registry=registry)


def told(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, Ended]]:
    """Say how each of these parts is refused, which are named by kind and by what is wrong: by the plan, or the run."""
    registry = replace(load_registry(installed=False), _observers=())
    for one in names:
        kind, _, name = one.partition(": ")
        recipe = recipe_with(kind, dict(broken_parts(kind))[name])
        outcomes = (ended(asked, recipe, registry, folder) for asked in (planned, ran))
        yield one, next((outcome for outcome in outcomes if outcome.code), Ended(0, "refused by neither", ""))
