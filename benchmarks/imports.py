"""Measure what ecoflap adds to ``import torch``, in CPU seconds of fresh interpreters: python benchmarks/imports.py."""

import os
import subprocess
import sys
from statistics import median

REPEATS = 5
CODE = {
    "import torch": "import torch",
    "import ecoflap": "import ecoflap",
    "ecoflap --help": "import sys; sys.argv = ['ecoflap', '--help']; from ecoflap.core.cli.main import main; main()",
    "import ecoflap; load_registry()": "import ecoflap; ecoflap.load_registry()",
    "ecoflap list": "import sys; sys.argv = ['ecoflap', 'list']; from ecoflap.core.cli.main import main; main()",
}


def cpu_seconds(code: str) -> float:
    """Give the user and system time that a fresh interpreter takes for some code."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Print each median, its difference from ``import torch``, and its ratio to it.

    All are measured once before any is measured again, so that a busy moment of the machine spoils no one's median.
    """
    cpu_seconds("import torch")  # reads the files of torch into the disk cache
    rounds = [{name: cpu_seconds(code) for name, code in CODE.items()} for _ in range(REPEATS)]
    seconds = {name: median(times[name] for times in rounds) for name in CODE}
    base = seconds["import torch"]
    for name, value in seconds.items():
        print(f"{name:32} {value:6.2f} s {value - base:+6.2f} s {value / base:6.2f} ×")


if __name__ == "__main__":
    main()
