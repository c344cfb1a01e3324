"""Say what a run ran on, for its report."""

import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import torch

from ecoflap.core.dtypes import dtype_name
from ecoflap.core.kernel.route import route

CAN_CHANGE_NUMBERS = (
    "ecoflap", "torch", "transformers", "safetensors", "numpy", "tokenizers", "sentencepiece", "pillow", "datasets",
    "gguf", "timm", "open_clip_torch", "salesforce-lavis",
)  # fmt: skip
"""Packages that compute, or read what is computed with."""


def versions(used: Iterable[Callable[..., Any]] = ()) -> dict[str, str]:
    """Return the versions of all that can change a number: Python, this package, libraries, and plugins that are used.

    :param used: What makes the parts that are used. A plugin that is only installed computes nothing.
    """
    found = {"python": platform.python_version()}
    for name in dict.fromkeys([*CAN_CHANGE_NUMBERS, *_plugins_with(used)]):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _plugins_with(used: Iterable[Callable[..., Any]]) -> list[str]:
    """Name the distributions with plugins whose package has any of the code that is used."""
    packages = {_package(str(getattr(one, "__module__", ""))) for one in used}
    return sorted({distribution for package, distribution in _plugins() if package in packages})


def _plugins() -> list[tuple[str, str]]:
    """List the package and the distribution of each plugin that is installed."""
    return [(_package(point.module), point.dist.name) for point in entry_points(group="ecoflap") if point.dist]


def _package(module: str) -> str:
    return module.partition(".")[0]


def changed_versions(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Say what has another version than before, came or is gone; empty where nothing has.

    Of plugins only those that are used as before: what a recipe names may change where it changes nothing that is
    there, and with it which of them are used.
    """
    always = {"python", *CAN_CHANGE_NUMBERS}
    names = dict.fromkeys([*before, *now])
    return changed(before, now, [name for name in names if name in always or (name in before and name in now)])


def changed(before: Mapping[str, str | int], now: Mapping[str, str | int], names: Iterable[str]) -> str:
    """Say which of some things are otherwise than before: ``threads 1 (now 2)``; empty where none is."""
    differing = [name for name in names if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name, 'absent')} (now {now.get(name, 'absent')})" for name in differing)


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


def arithmetic() -> dict[str, str | int]:
    """Tell by what this process computes on a CPU, beside libraries: the last bits of sums depend on it.

    These are torch's threads, what torch takes the CPU for, and which of the kernels is taken, ``torch`` for none.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    return {"threads": torch.get_num_threads(), "cpu": capability, "kernels": route().name}


def machine(device: str, computed_in: torch.dtype) -> dict[str, str | int]:
    """Describe what this process ran on; of a GPU also its name and the most memory it held, in bytes.

    :param device: Where the model's blocks ran: ``cpu``, ``cuda``, ``cuda:1``.
    :param computed_in: The type of the model's products.
    """
    used: dict[str, str | int] = {
        "device": device,
        "computed_in": dtype_name(computed_in),
        **arithmetic(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.startswith("cuda"):
        used |= {"gpu": torch.cuda.get_device_name(device), "peak_gpu_memory": torch.cuda.max_memory_allocated(device)}
    return used
