"""Say where the compiled library of kernels stands, without opening it; nothing here imports torch."""

from pathlib import Path

FILE = Path(__file__).with_name("libecoflap_kernels.so")


def absent(file: Path) -> str:
    """Say why there is no library; empty where there is one."""
    if file.is_file():
        return ""
    return f"{file} is not there: ecoflap found no compiler when it was installed. Install one, and ecoflap again"
