"""Prune one model by one code, and print what it took as a line of JSON: peers.py starts this.

    python benchmarks/one_peer.py ours|in_turn|on_disk|wanda|sparsegpt|llmcompressor SETTING MODEL TOKENS WEIGHTS
        [--code PATH]

MODEL is a folder as transformers writes it, in the type that all compute in, TOKENS a safetensors file with the
windows ``calibration``; the prunable matrices go into WEIGHTS afterwards. The clock runs while the model is pruned,
from the windows to the last weight: not while libraries are imported or the model is read. Only ``ours``, ``in_turn``,
which is ours with ``sequential: true``, and ``on_disk``, which has ``offload: disk`` too, import ecoflap, so that
llm-compressor may have an environment of its own.

The published codes are read from where they lie and run as they are, but for what today's libraries and a machine
without a GPU ask. Each change is a text that has to be there, or nothing is run:

wanda (lib/prune.py at 8e8fc87)
    Windows are those given, not of C4 (lib/data.py is not read). Inputs are held for as many windows as there are, not
    for 128. Blocks are handed ``position_embeddings``, which they want now, where they were handed ``position_ids``.
    The model is said to be on one device.
sparsegpt (llama.py and sparsegpt.py at 147d215)
    Windows as above. ``position_embeddings`` are caught and handed on beside the mask. ``torch.cuda.synchronize()`` is
    gone, which fails without a GPU.
llmcompressor (0.14)
    Nothing is changed. Its ``ignore`` is ``re:.*lm_head``: ``lm_head`` does not match, and a tied embedding would be
    pruned with the head.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

MEGABYTE = 1 << 20
SPARE = 1 << 30
"""Bytes that a run would find free here for forwards that wait: more than they take."""
POSITIONS = {
    "cache['position_ids'] = kwargs['position_ids']": "cache['position_ids'] = kwargs['position_embeddings']",
    "position_ids=position_ids": "position_embeddings=position_ids",
    "torch.zeros((128, model.seqlen,": "torch.zeros((len(dataloader), model.seqlen,",
}
CAUGHT = {
    'cache["attention_mask"] = kwargs["attention_mask"]': (
        'cache["attention_mask"], cache["position"] = kwargs["attention_mask"], kwargs["position_embeddings"]'
    ),
    "attention_mask=attention_mask)[0]": 'attention_mask=attention_mask, position_embeddings=cache["position"])[0]',
}
NO_GPU = {"torch.cuda.synchronize()": ""}


@dataclass(frozen=True)
class Setting:
    """What is asked, written ``wanda-50%`` or ``sparsegpt-2:4``."""

    method: str
    asked: str

    @classmethod
    def parse(cls, text: str) -> "Setting":
        method, _, asked = text.partition("-")
        return cls(method, asked)

    @property
    def pattern(self) -> tuple[int, int]:
        """Give how many of how many go; 0 of 0 where no pattern is asked."""
        gone, colon, of = self.asked.partition(":")
        return (int(gone), int(of)) if colon else (0, 0)

    @property
    def sparsity(self) -> float:
        gone, of = self.pattern
        return gone / of if of else float(self.asked.rstrip("%")) / 100


Prune = Callable[[], object]


def ours(
    setting: Setting, model: Path, windows: Tensor, code: Path | None, in_turn: bool = False, on_disk: bool = False
) -> tuple[Any, Prune]:
    """Our engine as a run uses it: the plan, every check, and each finished block written to disk.

    :param in_turn: Whether a block's layers see what those before them in it give after they were pruned.
    :param on_disk: Whether weights stay in their files, and each finished block goes into one of the saved model's.
    """
    from fractions import Fraction

    from ecoflap import Replay
    from ecoflap.adapters.llama import LlamaAdapter
    from ecoflap.core.budget.counts import Pattern
    from ecoflap.core.contracts.protocols import ignore
    from ecoflap.core.contracts.records import Sample
    from ecoflap.core.model.mapped_weights import mapped_beside
    from ecoflap.core.model.source import open_source
    from ecoflap.core.planning.plan import make_plan, pools_of
    from ecoflap.core.pruning.finished_weights import FinishedWeights
    from ecoflap.core.pruning.prune_blocks import BlockwisePruning
    from ecoflap.core.recipe.part_spec import PartSpec
    from ecoflap.plugins.allocators.uniform import Uniform
    from ecoflap.plugins.pruners.sparsegpt import SparseGPT
    from ecoflap.plugins.pruners.wanda import Wanda

    adapter = LlamaAdapter()
    source = replace(open_source(str(model), Path.cwd()), with_processor=False)  # as the published codes read none
    scratch = tempfile.TemporaryDirectory()
    folder = Path(scratch.name)
    with mapped_beside(folder) if on_disk else nullcontext() as mapped:
        loaded = adapter.load(replace(source, mapped=mapped), None, "cpu")
    finished_weights = None if mapped is None else FinishedWeights(loaded, mapped, folder)
    pruner = {"wanda": Wanda, "sparsegpt": SparseGPT}[setting.method]()
    gone, of = setting.pattern
    asked = Pattern(of - gone, of) if of else Fraction(str(setting.sparsity))

    def prune() -> None:
        batches = [adapter.collate(loaded, [Sample(tokens=window)]) for window in windows]
        replay = Replay(loaded, adapter, batches, spare=SPARE if in_turn else 0)
        plan = make_plan(pools_of(replay.anatomy, asked, {}, []), Uniform(), "layer", None)
        spec = PartSpec("pruner", setting.method, {}, lambda: pruner)
        walk = BlockwisePruning(
            replay, plan, {"language": spec}, folder, ignore, sequential=in_turn, finished_weights=finished_weights
        )
        with scratch:
            walk()

    return loaded, prune


def wanda(setting: Setting, model: Path, windows: Tensor, code: Path) -> tuple[Any, Prune]:
    """``prune_wanda`` of github.com/locuslab/wanda."""
    loaded = plain(model, windows)
    loaded.hf_device_map = {}
    package, data = ModuleType("lib"), ModuleType("lib.data")
    package.__path__ = [str(code / "lib")]
    data.get_loaders = lambda *args, **keys: (loader(windows), None)  # type: ignore[attr-defined]
    sys.modules |= {"lib": package, "lib.data": data}
    published = imported("lib.prune", code / "lib" / "prune.py", POSITIONS)
    gone, of = setting.pattern
    args = Namespace(nsamples=len(windows), seed=0, sparsity_ratio=setting.sparsity, use_variant=False)
    return loaded, lambda: published.prune_wanda(args, loaded, None, torch.device("cpu"), gone, of)


def sparsegpt(setting: Setting, model: Path, windows: Tensor, code: Path) -> tuple[Any, Prune]:
    """``llama_sequential`` of github.com/IST-DASLab/sparsegpt, all matrices of a block at once, as is its default."""
    loaded = plain(model, windows)
    sys.path.insert(0, str(code))
    imported("sparsegpt", code / "sparsegpt.py", NO_GPU)
    published = imported("llama", code / "llama.py", CAUGHT)
    gone, of = setting.pattern
    published.args = Namespace(  # type: ignore[attr-defined]
        nsamples=len(windows), true_sequential=False, minlayer=-1, maxlayer=1000, prune_only="", invert=False, wbits=16,
        sparsity=setting.sparsity, prunen=gone, prunem=of, percdamp=0.01, blocksize=128,
    )  # fmt: skip
    return loaded, lambda: published.llama_sequential(loaded, loader(windows), torch.device("cpu"))


def llmcompressor(setting: Setting, model: Path, windows: Tensor, code: None) -> tuple[Any, Prune]:
    """``oneshot`` of llm-compressor with the modifier of the method, block by block, which is its default."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
    from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier
    from transformers import AutoTokenizer

    loaded, tokenizer = plain(model, windows), AutoTokenizer.from_pretrained(model)
    kind = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[setting.method]
    structure = ":".join(map(str, setting.pattern))
    recipe = kind(sparsity=setting.sparsity, mask_structure=structure, targets=["Linear"], ignore=["re:.*lm_head"])
    batches = [{"input_ids": window[None], "attention_mask": torch.ones_like(window)[None]} for window in windows]

    def prune() -> None:
        data = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
        oneshot(model=loaded, processor=tokenizer, dataset=data, recipe=[recipe], num_calibration_samples=len(batches))

    return loaded, prune


CODES: Mapping[str, Callable[..., tuple[Any, Prune]]] = {
    "ours": ours, "in_turn": partial(ours, in_turn=True), "on_disk": partial(ours, in_turn=True, on_disk=True),
    "wanda": wanda, "sparsegpt": sparsegpt, "llmcompressor": llmcompressor,
}  # fmt: skip


def plain(model: Path, windows: Tensor) -> Any:
    """Load a model as the codes' own scripts leave it, with the length of a window beside it."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
    loaded.seqlen = windows.shape[1]
    return loaded


def loader(windows: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Give windows as ``get_loaders`` gives them: each a batch of one, with targets that nobody reads."""
    return [(window[None], window[None]) for window in windows]


def imported(name: str, path: Path, changes: Mapping[str, str]) -> ModuleType:
    """Run a published file as the module of this name, each text in it that is to change replaced wherever it is."""
    text = edited(path.read_text("utf-8"), changes, path)
    module = sys.modules[name] = ModuleType(name)
    module.__package__, module.__file__ = name.rpartition(".")[0], str(path)
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module


def edited(text: str, changes: Mapping[str, str], path: Path) -> str:
    """Replace texts, each of which has to be there."""
    missing = [old for old in changes if old not in text]
    if missing:
        sys.exit(f"{path}: it is not the version that this script knows, for it has no {' and no '.join(missing)}")
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """Find the most megabytes that this process holds: in no file, so that they cannot be evicted, and in all.

    ``before`` is what it held of the first at the start: libraries, and of the model what was copied from its file.
    """
    most, done = {"before": held()[0], "unevictable": 0, "resident": 0}, threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            for name, now in zip(("unevictable", "resident"), held(), strict=True):
                most[name] = max(most[name], now)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def held() -> tuple[int, int]:
    """Give the megabytes that this process holds now and that are in no file, and all of them."""
    _, resident, in_files, *_ = map(int, Path("/proc/self/statm").read_text().split())
    page = os.sysconf("SC_PAGE_SIZE")
    return (resident - in_files) * page // MEGABYTE, resident * page // MEGABYTE


def matrices(model: Any) -> dict[str, Tensor]:
    """Give the prunable matrices, under their names: those of the blocks."""
    named = ((name, weight.detach()) for name, weight in model.named_parameters())
    return {
        name: weight.contiguous() for name, weight in named if name.startswith("model.layers.") and weight.ndim == 2
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("who", choices=CODES)
    parser.add_argument("setting", type=Setting.parse)
    parser.add_argument("model", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--code", type=Path, help="the repository of a published code")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    windows = load_file(asked.tokens)["calibration"]
    model, prune = CODES[asked.who](asked.setting, asked.model, windows, asked.code)
    with watched() as most, contextlib.redirect_stdout(io.StringIO()):
        cpu, wall = time.process_time(), time.perf_counter()
        prune()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    pruned = matrices(model)
    save_file(pruned, asked.weights)
    found = {
        "cpu_seconds": round(cpu, 2),
        "seconds": round(wall, 2),
        "megabytes": most,
        "zeros": sum(int((weight == 0).sum()) for weight in pruned.values()),
        "of": sum(weight.numel() for weight in pruned.values()),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
