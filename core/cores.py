"""How many cores this process may use, which its user or a scheduler may have bound to some of the machine's."""

import os


def usable_cores() -> int:
    """Count them; at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
