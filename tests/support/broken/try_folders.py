"""Give every command run folders that were edited, with seals that hold."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

import yaml
from bases import RECIPES
from command import Ended, run_command
from mutants import broken_bytes, changed, written
from sealed_by_hand import read_lines, read_sealed, write_lines, write_sealed


def _finished(folder: Path) -> Path:
    """Make a run that was scored, pruned, evaluated and exported."""
    file = folder / "finished.yaml"
    file.write_bytes(written({**RECIPES["llama"], "export": ["safetensors"]}))
    ended = run_command("run", file, "--folder", folder / "finished", "--registry", "undrawn.yaml")
    assert ended.code == 0, ended
    return folder / "finished"


def _edit(path: Path, draw: Random) -> None:
    """Change what a file says, and seal it anew; of one that is no text its bytes."""
    if path.suffix == ".json" and draw.random() < 0.8 and "seal" in json.loads(path.read_text()):
        write_sealed(path, changed(read_sealed(path), draw))
    elif path.suffix == ".jsonl" and draw.random() < 0.8:
        write_lines(path, [one for one in _as_list(changed(read_lines(path), draw)) if isinstance(one, dict)])
    elif path.name == "recipe.yaml" and draw.random() < 0.8:
        read = yaml.safe_load(path.read_text().rpartition("# seal: ")[0])
        write_sealed(path, written(changed(read, draw)).decode())
    elif draw.random() < 0.1:
        path.unlink()
    else:
        path.write_bytes(broken_bytes(path.read_bytes(), draw))


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def folders(folder: Path, seeds: Iterable[int], *, drawn: bool = False) -> Iterator[tuple[str, Ended]]:
    """Edit a file of a run's folder, and give the folder to every command.

    :param drawn: Also to those that draw pages, which takes most of the time.
    """
    finished = _finished(folder)
    for seed in seeds:
        draw, theirs = Random(f"folder {seed}"), folder / "theirs"
        shutil.copytree(finished, theirs)
        files = sorted(path for path in theirs.rglob("*") if path.is_file() and path.stat().st_size)
        texts = [path for path in files if path.suffix in (".json", ".jsonl", ".yaml")]
        edited = draw.choice([*texts, *texts, *files])
        _edit(edited, draw)
        if draw.random() < 0.5 and (theirs / "report.json").is_file():  # it is gone on with
            (theirs / "report.json").unlink()
        name = f"{seed} {edited.relative_to(theirs)}"
        compared = [("compare", theirs, "--out", folder / "pages", "--overwrite")] if drawn else []
        undrawn = () if drawn else ("--registry", "undrawn.yaml")
        for command in (
            ("report", theirs),
            ("verify", theirs),
            *compared,
            ("export", theirs, "--to", "hugging_face"),
            ("run", "finished.yaml", "--folder", theirs, "--accept-change", *undrawn),
        ):
            yield f"{name}: {command[0]}", run_command(*command)
        shutil.rmtree(theirs)


def drawn_folders(folder: Path, seeds: Iterable[int]) -> Iterator[tuple[str, Ended]]:
    yield from folders(folder, seeds, drawn=True)
