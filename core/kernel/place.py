"""Say where the compiled library of kernels stands, without opening it; nothing here imports torch."""

import os
from pathlib import Path

FILE = Path(__file__).with_name("libecoflap_kernels.so")


def absent(file: Path) -> str:
    """Say why there is no library; empty where there is one."""
    if file.is_file():
        return ""
    if os.name == "nt":
        return "there are no kernels for Windows"
    return f"{file} is not there: ecoflap was built without a compiler. Install one, and ecoflap again from its sources"
