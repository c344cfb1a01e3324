"""What seals find and what they cost.

    python benchmarks/seals.py flips [--flips 500] [--seed 0]
    python benchmarks/seals.py cost [FOLDER] [--recipe RECIPE]

``flips`` turns one bit at a time, at random places, in each format that a run of a small LLaMA leaves, reads the file
as ecoflap does, and counts: refused with the file's name, read with the same numbers, read with other numbers.
``cost`` runs a recipe, quickstart-llama (SmolLM2-135M) if none is named, goes on with the finished run and verifies
it, and sums the processor time that goes into hashes. Figures go into measured/engine.md as they are printed.
"""

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ecoflap
from ecoflap import EcoflapError, Pruned, Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.model.source import fingerprint, open_source
from ecoflap.core.planning.plan import Plan
from ecoflap.core.planning.plan_file import read_plan, read_scores_of
from ecoflap.core.pruning.prune_blocks import BlockwisePruning
from ecoflap.core.recipe.load import find_recipe
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.record.evaluations import remembered_seals
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.remembered import open_remembered
from ecoflap.core.record.report import check_lines, read_report
from ecoflap.core.sealing.sealed_lines import read_lines
from ecoflap.core.sealing.sums import write_sums
from ecoflap.core.verifying.verify import verify
from ecoflap.plugins.pruners.magnitude import Magnitude

WORDS = [f"word{number}" for number in range(60)]


@dataclass(frozen=True)
class Format:
    """Says how a format is read.

    :param files: Those in which bits are turned.
    :param read: Reads them as ecoflap does, and gives all numbers that it had from them.
    """

    name: str
    files: tuple[Path, ...]
    read: Callable[[], object]


def digest(value: object) -> str:
    """Give a hash of numbers, whatever they are in."""
    return sha256(repr(_plain(value)).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return sha256(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.tobytes() if hasattr(value, "tobytes") else value


def flipped(one: Format, flips: int, seed: int) -> Counter[str]:
    """Turn a bit, read, and turn it back; so many times."""
    draw, expected = random.Random(f"{seed} {one.name}"), digest(one.read())
    sizes = [file.stat().st_size for file in one.files]
    found: Counter[str] = Counter()
    for _ in range(flips):
        (file,) = draw.choices(one.files, sizes)
        at, bit = draw.randrange(file.stat().st_size), draw.randrange(8)
        _turn(file, at, bit)
        found[_outcome(one, file, expected)] += 1
        _turn(file, at, bit)
    return found


def _turn(file: Path, at: int, bit: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1 << bit]))


def _outcome(one: Format, file: Path, expected: str) -> str:
    try:
        found = digest(one.read())
    except EcoflapError as error:
        return "refused by name" if file.name in str(error) or "SHA256SUMS" in str(error) else "refused"
    except Exception as error:
        return f"a traceback of {type(error).__name__}"
    return "same numbers" if found == expected else "OTHER NUMBERS"


def small_run(work: Path) -> RunFolder:
    """Prune a small LLaMA, and export it in every format."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).save_pretrained(work / "model")
    words = Tokenizer(models.WordLevel({word: at for at, word in enumerate(["<unk>", *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(work / "model")
    (work / "text.txt").write_text(" ".join(random.Random(0).choices(WORDS, k=400)))
    text = {"use": "text", "path": str(work / "text.txt"), "sequence_length": 16, "samples": 2}
    recipe = {
        "version": 1,
        "model": str(work / "model"),
        "calibration": {**text, "batch_size": 2},
        "sparsity": 0.5,
        "score": {"use": "zeroth_order", "samples": 2},
        "prune": "wanda",
        "evaluate": [{"use": "perplexity", "data": text}, {"use": "kl", "data": text}],
        "export": ["safetensors", "onnx", "torchscript", "openvino"],
    }
    return RunFolder(ecoflap.run(recipe, folder=work / "run").folder)


def formats(run: RunFolder, work: Path) -> Iterator[Format]:
    """Give each format that a run and its exports are in."""
    exports, plan = run.exports, read_plan(run.plan)

    def blocks() -> object:
        model = _fresh(work / "model")
        return dict(_pruning(model, plan, work / "blocks")().bits), model.state_dict()

    blocks()  # which writes them
    yield Format("finished block", tuple(sorted((work / "blocks").iterdir())), blocks)
    yield Format("masks", (run.masks,), lambda: dict(ecoflap.load_masks(run.path)))
    yield Format("model/", tuple(run.model.iterdir()), lambda: _checked_model(run))
    yield Format("model/, as another's source", tuple(run.model.iterdir()), lambda: _as_source(run))
    yield Format("plan", (run.plan,), lambda: read_plan(run.plan).dump())
    yield Format("scores", (run.scores,), lambda: _scores(run))
    yield Format("evaluations, stages", (run.evaluations, run.stage_times), lambda: _lines(run))
    yield Format("dense/", tuple(run.dense.iterdir()), lambda: _remembered(run))
    yield Format("report", (run.report,), lambda: read_report(run.report).dump())
    packed = exports / "safetensors"
    beside = ("model.packed.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "SHA256SUMS")
    yield Format(
        "packed safetensors", tuple(packed / name for name in beside), lambda: ecoflap.load_model(packed).state_dict()
    )
    yield from _graphs(exports, work)


def _graphs(exports: Path, work: Path) -> Iterator[Format]:
    import numpy as np
    import onnx

    from ecoflap import torchscript
    from ecoflap.onnx import load_session
    from ecoflap.openvino import compile_model

    ids = np.arange(8, dtype=np.int64)[None]
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def session(path: Path) -> object:
        made = load_session(path)
        wanted = {one.name for one in made.get_inputs()}
        return made.run(None, {name: value for name, value in inputs.items() if name in wanted})

    one = exports / "onnx" / "decoder.onnx"
    yield Format("ONNX", (one, exports / "onnx" / "SHA256SUMS"), lambda: session(one))
    (work / "apart").mkdir()
    apart = work / "apart" / "decoder.onnx"
    onnx.save_model(onnx.load(one), apart, save_as_external_data=True, location="decoder.onnx.data")
    sums = write_sums(apart.parent)
    yield Format("ONNX with its data", (apart, apart.with_name("decoder.onnx.data"), sums), lambda: session(apart))
    script = exports / "torchscript" / "decoder.pt"
    given = [torch.from_numpy(value) for value in inputs.values()]
    yield Format("TorchScript", (script, script.with_name("SHA256SUMS")), lambda: torchscript.load(script)(*given))
    files = tuple(exports / "openvino" / name for name in ("decoder.xml", "decoder.bin", "SHA256SUMS"))

    def compiled() -> object:
        model = compile_model(files[0])
        asked = {one.get_any_name() for one in model.inputs}
        return list(model({name: value for name, value in inputs.items() if name in asked}).values())

    yield Format("OpenVINO", files, compiled)


def _fresh(folder: Path) -> nn.Module:
    return LlamaAdapter().load(open_source(str(folder), Path.cwd()), None, "cpu")


class Doubled(Magnitude):
    """Changes the weights that it keeps, so that finished blocks have weights beside their masks."""

    def __call__(self, *given: Any) -> Pruned:
        pruned = super().__call__(*given)
        return pruned._replace(weight=2 * pruned.weight)


def _pruning(model: nn.Module, plan: Plan, folder: Path) -> BlockwisePruning:
    ids = torch.arange(8)[None]
    replay = Replay(model, LlamaAdapter(), [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    return BlockwisePruning(replay, plan, {"language": PartSpec("pruner", "doubled", {}, Doubled)}, folder, str)


def _checked_model(run: RunFolder) -> object:
    run.check_model()
    return _fresh(run.model).state_dict()


def _as_source(run: RunFolder) -> object:
    """Take the pruned model as another recipe does: its settings, then its fingerprint, then its weights."""
    source = open_source(str(run.model), Path.cwd())
    fingerprint(source, lambda: _fresh(run.model))
    return LlamaAdapter().load(source, None, "cpu").state_dict()


def _scores(run: RunFolder) -> object:
    scores = read_scores_of(run.plan, run.scores)
    return scores.unit, scores.aggregate, scores.values


def _lines(run: RunFolder) -> object:
    check_lines(run, read_report(run.report))
    return read_lines(run.evaluations), run.stages()


def _remembered(run: RunFolder) -> object:
    ((name, seal),) = remembered_seals(run.evaluations).items()
    with open_remembered(run.dense / name, seal) as found:
        return dict(found)


def flips(count: int, seed: int) -> None:
    """Print a row for each format."""
    with tempfile.TemporaryDirectory() as work:
        run = small_run(Path(work))
        print(f"{count} flips of each, seed {seed}")
        for one in formats(run, Path(work)):
            found = flipped(one, count, seed)
            print(f"{one.name:22} " + ", ".join(f"{number} {what}" for what, number in found.most_common()), flush=True)


HASHED = (
    ("disk.sums", "sha256_of"), ("disk.sealed", "_hash"), ("disk.sealed_text", "_seal"), ("disk.sealed_lines", "_seal"),
    ("export.exports", "sha256_of"), ("export.write_manifest", "sha256_of"),
)  # fmt: skip
"""Where a run hashes what it writes and reads: rooms' modules, each with its function."""


@contextmanager
def timed(spent: Counter[str]) -> Iterator[None]:
    """Add up the processor seconds that go into hashes inside, by module."""

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def counted(*given: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*given)
            finally:
                spent[name] += time.thread_time() - began  # type: ignore[assignment]

        return counted

    modules = [(import_module(f"ecoflap.core.{module}"), name) for module, name in HASHED]
    before = [getattr(module, name) for module, name in modules]
    for (module, name), function in zip(modules, before, strict=True):
        setattr(module, name, counting(module.__name__.removeprefix("ecoflap.core."), function))
    try:
        yield
    finally:
        for (module, name), function in zip(modules, before, strict=True):
            setattr(module, name, function)


def cost(folder: Path, recipe: Path) -> None:
    """Print what a run, one that goes on, and ``verify`` spend on hashes."""
    for what, call in (
        ("run", lambda: ecoflap.run(recipe, folder=folder)),
        ("again", lambda: ecoflap.run(recipe, folder=folder)),
        ("verify", lambda: verify(folder)),
    ):
        spent: Counter[str] = Counter()
        began = time.process_time()
        with timed(spent):
            call()
        whole, hashing = time.process_time() - began, sum(spent.values())
        places = ", ".join(f"{name} {seconds:.2f}" for name, seconds in spent.most_common(4))
        print(
            f"{what:7} {whole:8.1f} s of processor, {hashing:.2f} s in hashes ({hashing / whole:.2%}): {places}",
            flush=True,
        )
    checked = verify(folder).bytes
    print(f"verify read {checked / 1e9:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description="What seals find and what they cost.")
    parser.add_argument("what", choices=("flips", "cost"))
    parser.add_argument("folder", type=Path, nargs="?", help="where the run of cost goes")
    parser.add_argument("--recipe", type=Path, default=find_recipe("quickstart-llama"), help="what cost runs")
    parser.add_argument("--flips", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.what == "flips":
        flips(asked.flips, asked.seed)
    else:
        with tempfile.TemporaryDirectory() as work:
            cost(asked.folder or Path(work) / "run", asked.recipe)


if __name__ == "__main__":
    main()
