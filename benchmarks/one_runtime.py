"""Generate text with one model in one runtime, and print what it took as a line of JSON: runtime.py starts this.

    python benchmarks/one_runtime.py RUNTIME PATH --windows windows.json [--threads 1] [--tokens 64] [--repeats 3]
        [--perplexity]

A process for each, because what a process holds in memory can only be told of a whole one. Generation is greedy, of one
text of sixteen tokens or as many as are asked; a token's time is that of all tokens but the first, by their number.
"""

import argparse
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import ecoflap

PROMPT = 16
"""Tokens that are given, where nothing else is asked."""


class Runtime(Protocol):
    """A model that was loaded, in whatever runs it."""

    def generate(self, prompt: Sequence[int], tokens: int) -> None:
        """Say so many tokens, greedily and without an end."""

    def log_likelihoods(self, window: Sequence[int]) -> Iterator[float]:
        """Give the logarithm of each token's probability but the first's, given those before it."""


class InTorch:
    """transformers' own ``generate``; what the model's matrices are differs."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.model.generation_config.eos_token_id = None  # or what is to keep it from ending costs a search each token

    def generate(self, prompt: Sequence[int], tokens: int) -> None:
        import torch

        ids = torch.tensor([list(prompt)])
        settings = {"do_sample": False, "max_new_tokens": tokens, "pad_token_id": 0}
        with torch.inference_mode():
            said = self.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        assert said.shape[1] == len(prompt) + tokens

    def log_likelihoods(self, window: Sequence[int]) -> Iterator[float]:
        import torch

        ids = torch.tensor([list(window)])
        with torch.inference_mode():
            log_probabilities = self.model(ids).logits[0, :-1].float().log_softmax(-1)
        yield from log_probabilities.gather(1, ids[0, 1:, None])[:, 0].tolist()


class StepByStep:
    """A file with ``decoder_with_past``, in whatever runs it.

    :param past: The names of what is kept of each layer, with its heads and width.
    :param run: Gives the logits and what is kept after that, for named arrays.
    """

    past: dict[str, tuple[int, int]]
    run: Callable[[dict[str, Any]], Sequence[Any]]

    def generate(self, prompt: Sequence[int], tokens: int) -> None:
        given, kept = list(prompt), self.nothing()
        for _ in range(tokens):
            logits, kept = self.step(given, kept)
            given = [int(logits[0, -1].argmax())]

    def log_likelihoods(self, window: Sequence[int]) -> Iterator[float]:
        logits, _ = self.step(window, self.nothing())
        yield from said_of(logits[0], window)

    def step(self, given: Sequence[int], kept: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
        """Read some more tokens: their logits, and what is kept of all that were read."""
        import numpy as np

        length = kept[0].shape[2] + len(given)
        inputs = {"input_ids": np.array([list(given)]), "attention_mask": np.ones((1, length), np.int64)}
        logits, *grown = self.run(inputs | dict(zip(self.past, kept, strict=True)))
        return logits, grown

    def nothing(self) -> list[Any]:
        import numpy as np

        return [np.zeros((1, heads, 0, width), np.float32) for heads, width in self.past.values()]


class InOpenVino(StepByStep):
    """OpenVINO, by our loader."""

    def __init__(self, path: Path, threads: int) -> None:
        import ecoflap.openvino

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where there is no AMX it says that zeros gain nothing
            compiled = ecoflap.openvino.compile_model(path, config={"INFERENCE_NUM_THREADS": threads})
        inputs = {one.get_any_name(): one.get_partial_shape() for one in compiled.inputs}
        kept = {name: shape for name, shape in inputs.items() if name.startswith("past_key_values")}
        self.past = {name: (shape[1].get_length(), shape[3].get_length()) for name, shape in kept.items()}
        request = compiled.create_infer_request()
        self.run = lambda given: list(request.infer(given).values())


class InOnnxRuntime(StepByStep):
    """onnxruntime alone, or with our operators registered."""

    def __init__(self, path: Path, threads: int, registers: bool) -> None:
        import onnxruntime

        import ecoflap.onnx

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        made = ecoflap.onnx.load_session if registers else onnxruntime.InferenceSession
        session = made(str(path), options=options) if registers else made(str(path), options)
        kept = [one for one in session.get_inputs() if one.name.startswith("past_key_values")]
        self.past = {one.name: (one.shape[1], one.shape[3]) for one in kept}
        self.run = lambda given: session.run(None, given)


class InLlamaCpp:
    """llama.cpp through llama-cpp-python."""

    def __init__(self, path: Path, threads: int, length: int, all_logits: bool) -> None:
        import llama_cpp

        settings = {"n_ctx": length, "n_batch": length, "logits_all": all_logits, "verbose": False}
        self.model = llama_cpp.Llama(str(path), n_threads=threads, n_threads_batch=threads, **settings)

    def generate(self, prompt: Sequence[int], tokens: int) -> None:
        self.model.reset()  # or it would go on from a prompt that it has read before
        saying = self.model.generate(list(prompt), temp=0.0, top_k=1, reset=True)
        for _ in range(tokens):
            next(saying)
        saying.close()

    def log_likelihoods(self, window: Sequence[int]) -> Iterator[float]:
        self.model.reset()
        self.model.eval(list(window))
        yield from said_of(self.model.scores, window)


def said_of(logits: Any, window: Sequence[int]) -> Iterator[float]:
    """Give the logarithm of each token's probability but the first's, from the logits before it."""
    import numpy as np

    logits = logits[: len(window) - 1].astype(np.float64)
    highest = logits.max(-1)
    sums = highest + np.log(np.exp(logits - highest[:, None]).sum(-1))
    yield from (float(row[token] - total) for row, token, total in zip(logits, window[1:], sums, strict=True))


def dense(path: Path, dtype: str = "bfloat16") -> Any:
    """transformers' model as it is on disk; in float32 where a CPU has no arithmetic for bfloat16."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)


def unpruned(path: Path, dtype: str = "bfloat16") -> Any:
    """The same multiplied by our kernel, with nothing pruned: what a better product alone brings."""
    import torch

    model = dense(path, dtype)
    layers = model.model.layers.named_modules(prefix="model.layers")
    pack_whole(model, [name for name, module in layers if type(module) is torch.nn.Linear])
    return model


def pack_whole(model: Any, names: Sequence[str]) -> None:
    """Have our kernel multiply these layers, embeddings and the head, with every weight kept."""
    from ecoflap.core.kernel.matrix import pack_dense
    from ecoflap.core.kernel.packed_module import PackedLinear

    ecoflap.pack_model(model, embeddings="exact")
    for name in names:
        before = model.get_submodule(name)
        model.set_submodule(name, PackedLinear(pack_dense(before.weight.detach()), before.bias))


def packed(path: Path, dtype: str = "bfloat16") -> Any:
    """Our packed file, kept packed; the head, which is the embedding too, is multiplied by our kernel."""
    import torch

    return ecoflap.load_model(path, weights="packed", embeddings="packed", dtype=getattr(torch, dtype))


def packed_int8(path: Path) -> Any:
    """Our packed file in int8, embedding and head too: x is rounded to 16 bits a token."""
    return ecoflap.load_model(path, weights="packed-int8", embeddings="packed-int8")


def packed_int8a8(path: Path) -> Any:
    """The same with x in 8 bits."""
    return ecoflap.load_model(path, weights="packed-int8a8", embeddings="packed-int8a8")


def unpruned_int8(path: Path) -> Any:
    """The dense model in int8, multiplied by our kernel."""
    model = dense(path)
    ecoflap.pack_model(model, values="int8", embeddings="int8")
    return model


def rounded(path: Path) -> Any:
    """torch's own int8: weights a row, activations as they come."""
    import torch

    return torch.ao.quantization.quantize_dynamic(dense(path, "float32"), {torch.nn.Linear}, dtype=torch.qint8)


IN_TORCH: dict[str, Callable[[Path], Any]] = {
    "torch": dense,
    "torch-float32": partial(dense, dtype="float32"),
    "torch-int8": rounded,
    "ours-dense": unpruned,
    "ours-float32": partial(unpruned, dtype="float32"),
    "packed": packed,
    "packed-float32": partial(packed, dtype="float32"),
    "ours-int8": unpruned_int8,
    "packed-int8": packed_int8,
    "packed-int8a8": packed_int8a8,
}
GROUPED = "-grouped"
"""Ends the name of a way in which queries that share keys are attended to together."""
GROUPABLE = ("torch", "ours-dense", "packed", "ours-int8", "packed-int8", "packed-int8a8")
RUNTIMES = (
    *IN_TORCH, *(f"{name}{GROUPED}" for name in GROUPABLE),
    "onnxruntime", "onnxruntime-packed", "openvino", "llama.cpp",
)  # fmt: skip


def loaded(runtime: str, path: Path, threads: int, length: int, all_logits: bool) -> Runtime:
    if runtime == "llama.cpp":
        return InLlamaCpp(path, threads, length, all_logits)
    if runtime.startswith("onnxruntime"):
        return InOnnxRuntime(path, threads, registers=runtime == "onnxruntime-packed")
    if runtime == "openvino":
        return InOpenVino(path, threads)
    import torch

    torch.set_num_threads(threads)
    model = InTorch(IN_TORCH[runtime.removesuffix(GROUPED)](path))
    if runtime.endswith(GROUPED):
        ecoflap.group_attention(model.model)
    return model


def imported(runtime: str) -> None:
    """Import what a runtime needs, so that it does not count as the model's memory."""
    if runtime == "llama.cpp":
        import llama_cpp  # noqa: F401
    elif runtime.startswith("onnxruntime"):
        import onnxruntime  # noqa: F401

        import ecoflap.onnx
    elif runtime == "openvino":
        import openvino  # noqa: F401

        import ecoflap.openvino  # noqa: F401
    else:
        import torch
        from transformers import AutoModelForCausalLM  # noqa: F401

        torch.nn.functional.linear(torch.ones(4, 4), torch.ones(4, 4))


def resident() -> float:
    """Megabytes of memory that the process holds now, of files that it maps too."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines())
    return int(status["VmRSS"].split()[0]) / 1024


def timed(work: Callable[[], None]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def measured(model: Runtime, prompt: Sequence[int], tokens: int, repeats: int) -> dict[str, float]:
    """Seconds to the first token and for each that follows, by the clock and of the CPU."""
    model.generate(prompt, 2)
    first = [timed(lambda: model.generate(prompt, 1)) for _ in range(repeats)]
    whole = [timed(lambda: model.generate(prompt, 1 + tokens)) for _ in range(repeats)]
    found = {}
    for clock in ("wall", "cpu"):
        start = median(one[clock] for one in first)
        found[f"first_{clock}"] = start
        found[f"token_{clock}"] = (median(one[clock] for one in whole) - start) / tokens
    return found


def perplexity(model: Runtime, windows: Sequence[Sequence[int]]) -> float:
    seen = [value for window in windows for value in model.log_likelihoods(window)]
    return math.exp(-sum(seen) / len(seen))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", choices=RUNTIMES)
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=PROMPT, help="tokens that are given")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--windows", type=Path, required=True, help="JSON: lists of tokens; the first begins the text")
    parser.add_argument("--perplexity", action="store_true", help="of the windows, in place of the times")
    asked = parser.parse_args()
    windows = json.loads(asked.windows.read_text("utf-8"))
    length = max(len(windows[0]), asked.prompt + asked.tokens + 1)
    imported(asked.runtime)
    before = resident()
    model = loaded(asked.runtime, asked.path, asked.threads, length, asked.perplexity)
    found: dict[str, Any]
    if asked.perplexity:
        found = {"perplexity": perplexity(model, windows)}
    else:
        found = measured(model, windows[0][: asked.prompt], asked.tokens, asked.repeats)
        found |= {"resident": resident() - before, "load": os.getloadavg()[0]}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
