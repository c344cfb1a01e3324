"""Say what a run ran on, for its report."""

import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

import torch

from ecoflap.core.errors import dtype_name

CAN_CHANGE_NUMBERS = (
    "ecoflap", "torch", "transformers", "safetensors", "numpy", "tokenizers", "sentencepiece", "pillow", "datasets",
    "gguf", "timm", "open_clip_torch", "salesforce-lavis",
)  # fmt: skip
"""Packages that compute, or read what is computed with."""


def versions() -> dict[str, str]:
    """Return the versions of everything that can change a number: Python, this package, its plugins and libraries."""
    found = {"python": platform.python_version()}
    plugins = {point.dist.name for point in entry_points(group="ecoflap") if point.dist is not None}
    for name in dict.fromkeys([*CAN_CHANGE_NUMBERS, *sorted(plugins)]):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def peak_memory() -> int:
    """Give the most memory this process has held so far, in bytes; 0 where it cannot be found out, as on Windows."""
    # Linux's ru_maxrss also remembers the process that started this one, so its own account comes first.
    status = Path("/proc/self/status")
    told = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE) if status.is_file() else None
    if told:
        return 1024 * int(told[1])
    try:
        import resource
    except ModuleNotFoundError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def machine(device: str, computed_in: torch.dtype) -> dict[str, str | int]:
    """Describe what this process ran on; of a GPU also its name and the most memory it held, in bytes.

    :param device: Where the model's blocks ran: ``cpu``, ``cuda``, ``cuda:1``.
    :param computed_in: The type of the model's products.
    """
    used: dict[str, str | int] = {
        "device": device,
        "computed_in": dtype_name(computed_in),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.startswith("cuda"):
        used |= {"gpu": torch.cuda.get_device_name(device), "peak_gpu_memory": torch.cuda.max_memory_allocated(device)}
    return used
